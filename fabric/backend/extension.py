"""flannel's extension backend: commands of the administrator's at start and for each peer.

Source: flannel `pkg/backend/extension/` and `Documentation/extension.md`. PreStartupCommand runs before the lease is
taken and makes its BackendData; PostStartupCommand runs after. SubnetAddCommand runs for a peer that comes or changes,
SubnetRemoveCommand for one that goes, both with that peer's BackendData on standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fabric.backend.command import Bounds, CommandError, run_command
from fabric.config import ExtensionCommands
from fabric.errors import StartError
from fabric.model import Address, ExtensionPeer, Lease, Network

log = logging.getLogger("fabric.extension")
PARALLEL = 8
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


@dataclass(slots=True)
class _Row:
    """One peer: what should be (None: it is gone), what the last run was about, what has succeeded."""

    wanted: ExtensionPeer | None = None
    tried: ExtensionPeer | None = None
    done: ExtensionPeer | None = None
    failures: int = 0
    due: float = 0.0
    problem: str = ""
    task: asyncio.Task[None] | None = None

    @property
    def settled(self) -> bool:
        return self.wanted == self.done if self.wanted else self.tried is None


class ExtensionBackend:
    """`pre_startup`, take the lease, `post_startup`; then `want` at any time while `run` runs.

    `environment` is what the commands get besides their own variables.
    """

    def __init__(
        self, commands: ExtensionCommands, environment: Mapping[str, str], bounds: Bounds | None = None
    ) -> None:
        self._commands = commands
        self._environment = dict(environment)
        self._bounds = bounds or Bounds()
        self._rows: dict[str, _Row] = {}
        self._wake = asyncio.Event()

    async def pre_startup(self) -> str:
        """Run PreStartupCommand, if there is one; the text of our lease's BackendData. Raises StartError."""
        return await self._startup("PreStartupCommand", self._commands.pre_startup, {}, "")

    async def post_startup(self, networks: Iterable[Network], lease: Lease, output: str) -> None:
        """Run PostStartupCommand, if there is one, for our lease. Raises StartError."""
        cluster = next((network for network in networks if network.version == 4), None)
        own = variables(lease.subnet, lease.ipv6_subnet, lease.public_ip, lease.public_ipv6)
        given = {"NETWORK": _text(cluster), **own}
        await self._startup("PostStartupCommand", self._commands.post_startup, given, output)

    def want(self, peers: Sequence[ExtensionPeer]) -> None:
        """From now on these are the peers."""
        wanted = {peer.key: peer for peer in peers}
        for key in self._rows.keys() | wanted.keys():
            row = self._rows.setdefault(key, _Row())
            if row.wanted != wanted.get(key):
                row.wanted, row.failures, row.due = wanted.get(key), 0, 0.0
        self._wake.set()

    async def run(self) -> None:
        """Run commands for ever; when cancelled, those that run are killed."""
        try:
            while True:
                self._wake.clear()
                pause = self._start_due(asyncio.get_running_loop().time())
                # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
        finally:
            running = [row.task for row in self._rows.values() if row.task]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def problems(self) -> tuple[str, ...]:
        """Peers for which a command does not succeed, one line each."""
        return tuple(f"peer {key}: {row.problem}" for key, row in sorted(self._rows.items()) if row.problem)

    async def _startup(self, name: str, command: str, given: Mapping[str, str], stdin: str) -> str:
        if not command:
            return ""
        try:
            output = await run_command(name, command, {**self._environment, **given}, stdin, self._bounds)
        except CommandError as error:
            raise StartError(f"extension backend: {error}; correct the command or the cause of its failure") from None
        log.info("%s has run", name)
        return output

    def _start_due(self, now: float) -> float | None:
        """Start what is due, as many as may run at once; seconds until the next one is, None when nothing waits."""
        running = sum(1 for row in self._rows.values() if row.task)
        for key in [key for key, row in self._rows.items() if row.settled and row.wanted is None and not row.task]:
            del self._rows[key]
        waiting = sorted((row.due, key) for key, row in self._rows.items() if not row.settled and row.task is None)
        for due, key in waiting:
            if due > now:
                return due - now
            if running >= PARALLEL:
                return None  # one that ends wakes us
            running += 1
            self._rows[key].task = asyncio.create_task(self._work(key, self._rows[key]), name=f"extension {key}")
        return None

    async def _work(self, key: str, row: _Row) -> None:
        wanted = row.wanted
        about = wanted or row.tried
        assert about is not None
        row.tried = about
        try:
            if wanted:
                await self._run("SubnetAddCommand", self._commands.subnet_add, wanted)
                row.done = wanted
            else:
                await self._run("SubnetRemoveCommand", self._commands.subnet_remove, about)
                row.tried = row.done = None
        except CommandError as error:
            self._failed(key, row, str(error))
        else:
            if row.failures:
                log.info("extension peer %s: done after %d failures", key, row.failures)
            row.failures, row.problem = 0, ""
        finally:
            row.task = None
            self._wake.set()

    def _failed(self, key: str, row: _Row, problem: str) -> None:
        if problem != row.problem:  # said once, not at every try
            log.error("extension peer %s: %s; it is tried again", key, problem)
        row.problem = problem
        row.due = asyncio.get_running_loop().time() + min(FIRST_PAUSE * 2**row.failures, LONGEST_PAUSE)
        row.failures = min(row.failures + 1, 16)

    async def _run(self, name: str, command: str, peer: ExtensionPeer) -> None:
        if command:
            given = variables(peer.subnet, peer.ipv6_subnet, peer.public_ip, peer.public_ipv6)
            await run_command(name, command, {**self._environment, **given}, peer.data, self._bounds)
            log.info("%s has run for peer %s", name, peer.key)


def variables(
    subnet: Network | None, ipv6_subnet: Network | None, public_ip: Address | None, public_ipv6: Address | None
) -> dict[str, str]:
    """The variables that commands get about a lease; empty where it has none."""
    return {
        "SUBNET": _text(subnet),
        "IPV6SUBNET": _text(ipv6_subnet),
        "PUBLIC_IP": _text(public_ip),
        "PUBLIC_IPV6": _text(public_ipv6),
    }


def _text(value: Network | Address | None) -> str:
    return "" if value is None else str(value)
