"""Keeps the kernel at the desired state for as long as it runs: wake-ups, pacing, and the thread that does the work.

Theory of operation. Everything is level-triggered. A wake-up says only that something may have changed; what is done
about it follows from a complete look at the kernel and from the desired state, so a lost, doubled or reordered event
has no consequence but a later or an extra look. Events of what a look repaired cause one more look, which finds nothing
to do. The looks run in one thread of their own (system calls that wait for the kernel's rtnl lock would stop the event
loop), one at a time. Listening starts before the look, so there is no gap between them.

A new desired state is written at once, as the difference to the last look, without waiting for a pace or reading
anything. Where it only adds to tables and takes from them, the kernel's acknowledgement is all there is to know: what
it announces of that carries our netlink port and is passed over, so that one more peer costs no dump of all. Anything
else is verified by the next look. New addresses are asked about at once, too, and again at every look.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from routes import sysctls
from routes.lookup import observe_interface
from routes.namespace import NamespaceReconciler
from routes.netlink import Netlink
from routes.pace import Pacer, Pacing
from routes.reachable import Reachability, ask_on_link
from routes.state import (
    DesiredState,
    DeviceState,
    InterfaceState,
    IPAddress,
    IPNetwork,
    ObjectError,
    ReconcileResult,
)
from routes.wakeups import FileEvents, NetlinkEvents
from routes.work import Work

RECEIVE_BUFFER = 1 << 20
"""Bytes for unread events: room for the burst that programming 1,000 peers makes."""
OWN_PORTS = 1 << 30
"""Netlink port numbers from here on: above process ids, below those that the kernel chooses for further sockets."""


@dataclass(slots=True)
class Look:
    """What one look at the kernel found. `underlay` and `reachable` are None when that was not asked or not answered;
    `underlay` is a list of one or no interface, `asked` the addresses that `reachable` answers for."""

    result: ReconcileResult
    underlay: Sequence[InterfaceState] | None = None
    reachable: Reachability | None = None
    asked: frozenset[IPAddress] = frozenset()


class KernelReconciler:
    """Brings the devices, routes and blackholes of this namespace to `set_desired` states while `run` runs.

    Nothing is touched before the first `set_desired`: an incomplete list must not sweep anything. Callbacks run in the
    event loop. `on_device` gets name and index of a desired device when it appears or is replaced, and None when it is
    gone; a VXLAN device of our own is made again here, any other by its owner. `on_underlay` gets the interface named
    `underlay` as first seen and after each change of link, MTU or addresses, None when there is none. `on_reachable`
    gets the answer for the addresses of `watch_reachable` whenever it is another than before. `on_result` gets every
    result that changed something, that failed, or that is the first without errors again; its errors are all that is
    known to be wrong at that time.

    `counters`: reconciles (complete looks), flushes (desired states written without a look), changes, errors (per
    object and try), events, overruns.
    """

    def __init__(
        self,
        *,
        underlay: str | None = None,
        on_device: Callable[[str, int | None], None] | None = None,
        on_underlay: Callable[[InterfaceState | None], None] | None = None,
        on_reachable: Callable[[Reachability], None] | None = None,
        on_result: Callable[[ReconcileResult], None] | None = None,
        receive_buffer: int = RECEIVE_BUFFER,
        pacing: Pacing | None = None,
    ) -> None:
        self.counters = dict.fromkeys(("reconciles", "flushes", "changes", "errors", "events", "overruns"), 0)
        self._underlay = underlay
        self._on_device, self._on_underlay = on_device, on_underlay
        self._on_reachable, self._on_result = on_reachable, on_result
        self._receive_buffer = receive_buffer
        self._desired: DesiredState | None = None
        self._addresses: frozenset[IPAddress] | None = None
        self._flush_wanted = self._answer_wanted = False
        self._problems: tuple[ObjectError, ...] = ()
        self._pacer = Pacer(pacing)
        self._port = OWN_PORTS | random.getrandbits(30)
        self._kernel = NamespaceReconciler(self._port)
        self._unverified = True  # something was written of which only a look can tell how it went
        self._devices_told: dict[str, int | None] = {}
        self._underlay_told: Sequence[InterfaceState] | None = None
        self._reachable_told: Reachability | None = None
        self._answered: Look | None = None  # the last one that answered for addresses
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="routes")
        self._busy = asyncio.Lock()
        self._wake = asyncio.Event()
        self._events: NetlinkEvents | None = None
        self._files: FileEvents | None = None

    def set_desired(
        self,
        states: DeviceState | Iterable[DeviceState],
        blackholes: frozenset[IPNetwork] = frozenset(),
        unreachables: frozenset[IPNetwork] = frozenset(),
    ) -> None:
        """From now on the kernel should be like `states`, which are complete: what they do not list is removed.

        Routes are swept on the devices that are named, or were before: name the underlay also while it carries none.
        Raises ValueError for two states of one device and two routes for one prefix.
        """
        devices = (states,) if isinstance(states, DeviceState) else tuple(states)
        self._desired = DesiredState(devices, blackholes, unreachables)
        self._flush_wanted = True
        self._wake.set()

    def watch_underlay(self, name: str) -> None:
        """From now on `on_underlay` is told of the interface `name`."""
        if name != self._underlay:
            self._underlay, self._underlay_told = name, None
            self._pacer.event(asyncio.get_running_loop().time())
            self._wake.set()

    def watch_reachable(self, addresses: Iterable[IPAddress]) -> None:
        """From now on `on_reachable` is told which of `addresses` are on link, and through which device."""
        self._addresses = frozenset(addresses)
        self._answer_wanted = True
        self._wake.set()

    async def run(self) -> None:
        """Listen and reconcile until cancelled. Errors are values in the results; only a bug raises."""
        loop = asyncio.get_running_loop()
        self._events = events = NetlinkEvents(self._receive_buffer, self._port)
        self._pacer.event(loop.time())  # a look before this one was not listened after
        loop.add_reader(events.fileno(), self._netlink_readable, events)
        try:
            while True:
                await self._until_due()
                now = loop.time()
                if self._pacer.due(now) > now:
                    await self._catch_up()
                else:
                    await self.reconcile()
        finally:
            loop.remove_reader(events.fileno())
            events.close()
            self._events = None
            self._watch_files(None)

    async def withdraw(self) -> ReconcileResult:
        """Remove our addresses, routes and VXLAN devices, and want nothing any more; also after `run`.

        Without it everything stays as it is, and a process that starts later takes it over.
        """
        self.set_desired(())
        return await self.reconcile()

    async def settled(self) -> None:
        """Until what is desired now has been written, as far as the kernel takes it; also works without `run`."""
        await self._catch_up()
        if self._unverified:
            await self.reconcile()

    def late(self) -> float:
        """Seconds by which the next look is late, or the present one takes too long. A little of it is normal."""
        return self._pacer.late(asyncio.get_running_loop().time())

    def close(self) -> None:
        """End the thread, when neither `run` nor anything else will be called any more. Idempotent."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def reconcile(self) -> ReconcileResult:
        """One complete look at the kernel now, and the repair of what differs. Also works without `run`."""
        async with self._busy:
            loop = asyncio.get_running_loop()
            self._flush_wanted = self._answer_wanted = False
            self._pacer.started(loop.time())
            self.counters["reconciles"] += 1
            desired = self._desired
            if self._events is not None:
                self._watch_files(desired)
            look = await loop.run_in_executor(self._thread, self._look, desired, self._addresses)
            self._unverified = False
            self._pacer.finished(loop.time(), failed=bool(look.result.errors))
            self._watch_neighbours(desired, look.result)
            self._tell(look.result, look.result.errors)
            self._tell_observed(look)
            return look.result

    async def _catch_up(self) -> None:
        """Write a new desired state, and answer for new addresses, without a look."""
        async with self._busy:
            if not (self._flush_wanted or self._answer_wanted):
                return
            loop = asyncio.get_running_loop()
            desired = self._desired if self._flush_wanted else None
            addresses = self._addresses if self._answer_wanted else None
            self._flush_wanted = self._answer_wanted = False
            self.counters["flushes"] += desired is not None
            look = await loop.run_in_executor(self._thread, self._write, desired, addresses, self._answered)
            if (desired is not None and not look.result.acknowledged) or look.result.errors:
                self._unverified = True
                self._pacer.event(loop.time())  # a look soon, whether the changes are announced or not
            if desired is not None:
                self._watch_neighbours(desired, look.result)
            known = tuple(error for error in self._problems if error not in look.result.errors)
            self._tell(look.result, (*known, *look.result.errors))
            self._tell_observed(look)

    def _look(self, desired: DesiredState | None, addresses: frozenset[IPAddress] | None) -> Look:
        """In the thread: reconcile, and observe what else is asked for."""
        look = Look(guarded(self._kernel.reconcile, desired) if desired else ReconcileResult())
        work = Work()
        if self._underlay is not None:
            with work.attempt(f"interface {self._underlay}"), Netlink() as netlink:
                found = observe_interface(netlink, self._underlay)
                look.underlay = [] if found is None else [found]
        answer(look, work, addresses)
        return look

    def _write(
        self, desired: DesiredState | None, addresses: frozenset[IPAddress] | None, answered: Look | None
    ) -> Look:
        """In the thread: the part of a look that cannot wait."""
        look = Look(guarded(self._kernel.flush, desired) if desired else ReconcileResult())
        answer(look, Work(), addresses, answered)
        return look

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while not (self._flush_wanted or self._answer_wanted):
            now = loop.time()
            delay = self._pacer.due(now) - now
            if delay <= 0:
                return
            self._wake.clear()
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                return

    def _netlink_readable(self, events: NetlinkEvents) -> None:
        now = asyncio.get_running_loop().time()
        messages, overruns = events.drain()
        self.counters["events"] += messages
        self.counters["overruns"] += overruns
        if messages:
            self._pacer.event(now)
        if overruns:
            self._pacer.overrun(now)
            listen_again(events.fileno(), self._netlink_readable, events)
        self._wake.set()

    def _file_written(self, files: FileEvents) -> None:
        files.drain()
        self._pacer.event(asyncio.get_running_loop().time())
        self._wake.set()

    def _watch_neighbours(self, desired: DesiredState | None, result: ReconcileResult) -> None:
        """Neighbours and forwarding entries matter on VXLAN devices of our own; their indexes are known now."""
        if self._events is not None and desired is not None:
            indexes = (result.devices.get(state.name) for state in desired.devices if state.vxlan)
            if self._events.watch_neighbours(frozenset(index for index in indexes if index is not None)):
                self._pacer.event(asyncio.get_running_loop().time())  # the look was not listened after

    def _watch_files(self, desired: DesiredState | None) -> None:
        """Watch all sysctls through a new descriptor: the files of a re-created device are other files."""
        loop = asyncio.get_running_loop()
        if self._files is not None:
            loop.remove_reader(self._files.fileno())
            self._files.close()
            self._files = None
        wanted = [sysctl for state in desired.devices for sysctl in state.sysctls] if desired else []
        if wanted:
            with contextlib.suppress(OSError):  # no inotify to be had: the regular check finds those changes
                self._files = FileEvents(sysctls.root() / sysctl.path for sysctl in wanted)
                loop.add_reader(self._files.fileno(), self._file_written, self._files)

    def _tell(self, result: ReconcileResult, problems: tuple[ObjectError, ...]) -> None:
        """Count `result` and tell it with `problems` for errors: all that is known to be wrong, also after a flush."""
        self.counters["changes"] += len(result.changes)
        self.counters["errors"] += len(result.errors)
        healed = bool(self._problems) and not problems
        self._problems = problems
        if self._on_result is not None and (result.changes or problems or healed):
            self._on_result(replace(result, errors=problems))
        before, self._devices_told = self._devices_told, {**self._devices_told, **result.devices}
        for name, index in result.devices.items():
            if self._on_device is not None and (name not in before or before[name] != index):
                self._on_device(name, index)

    def _tell_observed(self, look: Look) -> None:
        if look.underlay is not None and look.underlay != self._underlay_told:
            self._underlay_told = look.underlay
            if self._on_underlay is not None:
                self._on_underlay(look.underlay[0] if look.underlay else None)
        if look.reachable is not None:
            self._answered = look
        if look.reachable is not None and look.reachable != self._reachable_told:
            self._reachable_told = look.reachable
            if self._on_reachable is not None:
                self._on_reachable(look.reachable)


def answer(look: Look, work: Work, addresses: frozenset[IPAddress] | None, before: Look | None = None) -> None:
    """Put into `look` which of `addresses` are on link, and the errors of `work` so far. What the look `before` has an
    answer for is not asked again."""
    if addresses is not None:
        known = dict(before.reachable) if before is not None and before.reachable is not None else {}
        asked = before.asked if known and before is not None else frozenset[IPAddress]()
        for address in asked - addresses:
            del known[address]
        with work.attempt("on-link addresses"), Netlink() as netlink:
            look.reachable = known | ask_on_link(netlink, addresses - asked)
            look.asked = addresses
    if work.errors:
        look.result = replace(look.result, errors=(*look.result.errors, *work.errors))


def listen_again(descriptor: int, callback: Callable[..., None], *arguments: object) -> None:
    """Undo what libuv does to a descriptor whose socket had an error: it calls back once and then never polls it again.

    An overrun is such an error. Under uvloop the reader would look registered and be dead; asyncio needs none of this.
    """
    loop = asyncio.get_running_loop()
    loop.remove_reader(descriptor)
    loop.add_reader(descriptor, callback, *arguments)


def guarded(job: Callable[[DesiredState], ReconcileResult], desired: DesiredState) -> ReconcileResult:
    """`job(desired)`; an unforeseen failure in it is a value too, because traffic goes on without the reconciler."""
    try:
        return job(desired)
    except Exception as error:
        devices = ", ".join(state.name for state in desired.devices)
        failure = ObjectError(f"device {devices}", f"reconciling failed unexpectedly: {type(error).__name__}: {error}")
        return ReconcileResult(errors=(failure,))
