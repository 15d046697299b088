"""Keeps the kernel's side as it should be: node port, kernel VXLAN devices, routes on the underlay.

The work is done by `routes.watch.KernelReconciler`; this file tells it what should be, in its own words
(`fabric.daemon.desired`), tells people what happened, and has the node port made again when somebody deleted it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from fabric.model import Address, Network
from routes.state import DeviceState, InterfaceState, ReconcileResult

log = logging.getLogger("fabric.kernel")
Reachability = Mapping[Address, str | None]


class Reconciler(Protocol):
    """`routes.watch.KernelReconciler`; tests give their own."""

    counters: dict[str, int]

    def set_desired(
        self,
        states: Iterable[DeviceState],
        blackholes: frozenset[Network] = frozenset(),
        unreachables: frozenset[Network] = frozenset(),
    ) -> None:
        """From now on the devices should be like that."""

    def watch_reachable(self, addresses: Iterable[Address]) -> None:
        """From now on tell which of these are on link."""

    def watch_underlay(self, name: str) -> None:
        """From now on tell of changes of this interface."""

    async def reconcile(self) -> ReconcileResult:
        """One complete look and repair, now."""

    async def settled(self) -> None:
        """Until what is desired now has been written."""

    async def withdraw(self) -> ReconcileResult:
        """Remove everything of ours."""

    async def run(self) -> None:
        """Keep it so."""

    def late(self) -> float:
        """Seconds by which its next look at the kernel is late."""

    def close(self) -> None:
        """End its thread."""


class ReconcilerFactory(Protocol):
    """Makes a reconciler with its callbacks; `KernelReconciler` itself is one."""

    def __call__(
        self,
        *,
        underlay: str | None,
        on_device: Callable[[str, int | None], None] | None,
        on_underlay: Callable[[InterfaceState | None], None] | None,
        on_reachable: Callable[[dict[Address, str | None]], None] | None,
        on_result: Callable[[ReconcileResult], None] | None,
    ) -> Reconciler:
        """A reconciler that calls back in the event loop."""


class KernelKeeper:
    """`want` says what should be, `watch` which peers' addresses matter; `run` keeps it so and `on_link` up to date.

    `node_port_gone` is called when somebody deleted the node port; `underlay_changed` when the underlay interface is
    another than before (None: it is gone); `reachable_changed` when `on_link` is.
    """

    def __init__(
        self,
        make: ReconcilerFactory,
        underlay: str,
        node_port_gone: Callable[[], None],
        underlay_changed: Callable[[InterfaceState | None], None],
        reachable_changed: Callable[[], None],
    ) -> None:
        self._reconciler = make(
            underlay=underlay,
            on_device=self._on_device,
            on_underlay=underlay_changed,
            on_reachable=self._on_reachable,
            on_result=self._on_result,
        )
        self._node_port_gone = node_port_gone
        self._reachable_changed = reachable_changed
        self._states: tuple[DeviceState, ...] | None = None
        self._nowhere: tuple[frozenset[Network], frozenset[Network]] = (frozenset(), frozenset())
        self._node_ports: frozenset[str] = frozenset()
        self._addresses: frozenset[Address] = frozenset()
        self._settled = False
        self._problems: tuple[str, ...] = ()
        self.on_link: Reachability = MappingProxyType({})

    def want(
        self,
        states: Sequence[DeviceState],
        blackholes: frozenset[Network] = frozenset(),
        unreachables: frozenset[Network] = frozenset(),
    ) -> None:
        """Set the desired state of all devices."""
        wanted, nowhere = tuple(states), (blackholes, unreachables)
        if (wanted, nowhere) != (self._states, self._nowhere):
            self._states, self._nowhere = wanted, nowhere
            self._node_ports = frozenset(state.name for state in wanted if state.addresses and state.vxlan is None)
            self._reconciler.set_desired(wanted, blackholes, unreachables)

    def watch(self, addresses: frozenset[Address]) -> None:
        """Keep `on_link` answered for these addresses."""
        if addresses != self._addresses:
            self._addresses = addresses
            self._reconciler.watch_reachable(addresses)

    async def withdraw(self) -> None:
        """Remove everything of ours from the kernel."""
        await self._reconciler.withdraw()

    def follow(self, underlay: str) -> None:
        """The underlay interface is another one from now on."""
        self._reconciler.watch_underlay(underlay)

    async def first(self) -> ReconcileResult:
        """The reconcile at start-up, at once."""
        result = await self._reconciler.reconcile()
        self._settled = True
        return result

    async def settled(self) -> None:
        """Until the kernel has been brought to what is wanted now, as far as that is possible."""
        await self._reconciler.settled()

    async def run(self) -> None:
        """Reconcile for ever."""
        await self._reconciler.run()

    def late(self) -> float:
        """Seconds by which the next look at the kernel is late."""
        return self._reconciler.late()

    def close(self) -> None:
        """Give back what it holds. Idempotent."""
        self._reconciler.close()

    def problems(self) -> tuple[str, ...]:
        """What could not be brought to its desired state, one line each."""
        return self._problems

    def counters(self) -> dict[str, int]:
        """The reconciler's counters."""
        return dict(self._reconciler.counters)

    def _on_device(self, name: str, index: int | None) -> None:
        if index is None and self._settled and name in self._node_ports:
            # Not inside the reconciler's own callback: it is still looking at the device that is gone.
            asyncio.get_running_loop().call_soon(self._node_port_gone)

    def _on_reachable(self, answer: Reachability) -> None:
        self.on_link = MappingProxyType(dict(answer))
        self._reachable_changed()

    def _on_result(self, result: ReconcileResult) -> None:
        for change in result.changes:
            log.debug("kernel: %s", change)
        problems = tuple(str(error) for error in result.errors)
        for problem in problems:
            if problem not in self._problems:  # said once, not at every look
                log.log(logging.ERROR if self._settled else logging.DEBUG, "%s", problem)
        self._problems = problems
