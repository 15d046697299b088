"""All of fabricd but its beginning (`fabric.daemon.main`): parse, refuse or run, and end with the contract's exit codes
(0 asked to stop, 1 refused, 2 usage)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fabric import flags
from fabric.daemon import handover, logs, prerequisites, systemd
from fabric.daemon.sources import make_source
from fabric.errors import FabricError, StartError
from fabric.flags import Options

if TYPE_CHECKING:
    from fabric.daemon.node import Node
    from fabric.daemon.parts import Dataplane, Parts, Source, Steerer, Traffic
    from fabric.forward.resumed import LastingDataplane
    from fabric.model import DataplaneSettings

log = logging.getLogger("fabric")
SOON_SECONDS = 0.5


def run(words: Sequence[str], store: systemd.FdStore, early: LastingDataplane | None) -> int:
    """Run the daemon with these options; the exit code. `early` is the data path where it forwards already."""
    logs.configure(flags.log_format_of(words))
    try:
        options = flags.parse(words)
        logs.hide(options.etcd.password)
        logs.configure(options.log_format, options.verbosity)
        for line in options.warnings:
            log.warning("%s", line)
        return _run(words, options, store, early)
    except FabricError as error:
        log.error("fabricd does not start: %s", error)
        systemd.hold_back()
        return 1
    except SystemExit as error:
        if error.code:
            systemd.hold_back()
        return int(error.code or 0)
    finally:
        if early is not None:
            early.stop()


def real_parts(
    words: Sequence[str], source: Source, store: systemd.FdStore, early: LastingDataplane | None = None
) -> Parts:
    """The parts of a node on this machine; `store` has what an earlier run has left, `early` goes on with it."""
    from fabric.daemon.interface import system_host
    from fabric.daemon.parts import Parts
    from fabric.forward.kept import NODE
    from routes.watch import KernelReconciler

    def privileges() -> None:
        prerequisites.check_privilege()
        prerequisites.check_tun()

    return Parts(
        host=system_host(),
        source=source,
        dataplane=lambda settings: _dataplane(words, settings, store, early),
        device_free=lambda name: None if early or store.holds(NODE) else prerequisites.check_device_name(name),
        reconciler=KernelReconciler,
        traffic=_traffic,
        steering=_steering,
        privileges=privileges,
        successor=handover.Successor.from_environment(store),
    )


def _dataplane(
    words: Sequence[str], settings: DataplaneSettings, store: systemd.FdStore, early: LastingDataplane | None
) -> Dataplane:
    try:
        from fabric.forward.resumed import LastingDataplane as RealDataplane
    except ImportError as error:
        raise StartError(f"the data path is not built ({error}): run ./dev build") from None
    if early is not None and early.settings == settings:
        return early
    if early is not None:
        log.info("forwarding anew: not all is as it was in the last run")
        for name, fd in store.kept():
            store.put(name, os.dup(fd))
        early.stop()
    dataplane: Dataplane = RealDataplane(settings, store, words, _soon)
    return dataplane


def _soon(act: Callable[[], None]) -> None:
    """Call it when changes of the next moment have come, too."""
    asyncio.get_running_loop().call_later(SOON_SECONDS, act)


def _traffic(resync: float) -> Traffic:
    from fabric.traffic.manager import TrafficManager  # takes its time; we forward by then

    return TrafficManager(resync)


def _steering() -> Steerer:
    from fabric.steering.manager import SteeringManager

    return SteeringManager()


def _run(words: Sequence[str], options: Options, store: systemd.FdStore, early: LastingDataplane | None) -> int:
    source = make_source(options)
    # Refusals that need no event loop come before the imports that take the time.
    prerequisites.check_privilege()
    prerequisites.check_tun()
    from fabric.daemon.node import Node

    if systemd.HANDOVER in os.environ:
        # What takes time comes before our predecessor holds still.
        import fabric.forward.dataplane
        import fabric.traffic.manager  # noqa: F401
    parts = real_parts(words, source, store, early)
    if early is not None:
        early.soon = _soon

    async def body() -> int:
        return await serve(Node(options, parts), store)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(body())


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    with contextlib.suppress(ImportError):
        import uvloop

        factory: type[asyncio.AbstractEventLoop] = uvloop.Loop
        return factory
    return None


async def serve(node: Node, store: systemd.FdStore) -> int:
    """Run `node` until a signal, a `stop` request, a successor that took over or a crash loop; the exit code.

    Raises FabricError from the start."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.stop_requested.set)
    loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP: only a service manager's main process hands over")
    stop = loop.create_task(node.stop_requested.wait(), name="stop")
    start = loop.create_task(node.start(), name="start")
    failed: asyncio.Task[str] | None = None
    try:
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            return 0
        start.result()
        failed = loop.create_task(node.supervisor.failed(), name="failed")
        giver = handover.Giver(node, store)
        if os.environ.get("NOTIFY_SOCKET"):
            loop.add_signal_handler(signal.SIGHUP, giver.begin)
        await asyncio.wait({stop, failed}, return_when=asyncio.FIRST_COMPLETED)
        if await giver.finished():
            log.info("handed over")
            return 0
        if stop.done():
            log.info("asked to stop")
            return 0
        return 1
    finally:
        for task in (stop, failed):
            if task is not None:
                task.cancel()
        await node.stop()
