"""From what is known now to what the data path and the kernel hold: one synchronous `refresh`, fed by every input.

It computes the desired state from current inputs and takes the steps that lead there (`calc.sequence`): a VTEP is in
the data path before the kernel has a route to it, and until the route is gone. What the kernel has been asked for is
confirmed later, by one task for as many changes as come meanwhile; a step that would leave a route without a VTEP waits
for that, nothing else does.

The data path's node port and threads exist only where something needs them: always when our own backend type is spoken
by it, else from the first peer on that is. A port or device that somebody else holds then costs those peers, not the
node; it is tried again every `RETRY_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fabric import calc
from fabric.daemon.cluster import Cluster
from fabric.daemon.desired import Translator
from fabric.daemon.interface import External
from fabric.daemon.kernel import KernelKeeper, ReconcilerFactory
from fabric.daemon.parts import Dataplane
from fabric.errors import DataplaneError, FabricError, StartError
from fabric.identity import differing
from fabric.model import DataplaneSettings, Encapsulation, ExtensionPeer, ForwardingState, KernelState, Network, Peer
from routes.state import DeviceState, InterfaceState

log = logging.getLogger("fabric")
RECREATE_SECONDS = 1.0
RETRY_SECONDS = 10.0
SETTLE_SECONDS = 0.2


class _Issued(NamedTuple):
    """A state of the kernel that was asked for, in our words and the reconciler's, device by device."""

    state: KernelState
    wanted: tuple[DeviceState, ...]

    def leads_to_any(self, prefixes: set[Network]) -> bool:
        """Whether one of `prefixes` is routed into the node port."""
        pairs = zip(self.state.devices, self.wanted, strict=True)
        return any(not wanted.prefixes.isdisjoint(prefixes) for device, wanted in pairs if device.role == "node port")


class Forwarding:
    """`start` once the lease is there, then keep `run_kernel` and `run_sequence` running; `close` at any time.

    `node` describes this node as it is now, `clock` gives Unix time in seconds; `device_free` refuses a name that is
    taken. `blackholes` are prefixes of our own to which nothing leads that has no route, `unreachables` those of which
    senders are told so; `extension_peers` is told of the extension backend's.
    """

    def __init__(
        self,
        dataplane: Dataplane,
        settings: DataplaneSettings,
        cluster: Cluster,
        node: Callable[[], calc.Node],
        device_free: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.dataplane = dataplane
        self.outcome: calc.Outcome | None = None
        self.keeper: KernelKeeper | None = None
        self.blackholes: Callable[[], frozenset[Network]] = frozenset
        self.unreachables: Callable[[], frozenset[Network]] = frozenset
        self.extension_peers: Callable[[Sequence[ExtensionPeer]], None] = lambda peers: None
        self._settings = settings
        self._cluster = cluster
        self._node = node
        self._device_free = device_free
        self._clock = clock
        self._memo = calc.Memo()
        self._unavailable: Mapping[Encapsulation, str] = {}
        self._has_port = False
        self._applied: ForwardingState | None = None
        self._issued: list[_Issued] = []  # what the kernel was last known to be at, and was asked for since
        self._translate = Translator(settings.txqueuelen, settings.bridges)
        self._settled = False  # the kernel was brought to a first state
        self._running = False  # the threads are
        self._unconfirmed = asyncio.Event()
        self._urgent = False  # something new waits for the confirmation
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.port_made: Callable[[], None] = lambda: None  # the node port was made again
        self.before_threads: Callable[[], None] | None = None  # called when everything else is ready

    async def start(
        self, external: External, make: ReconcilerFactory, underlay_changed: Callable[[InterfaceState | None], None]
    ) -> None:
        """Bring data path and kernel to their first state and start the threads. Raises FabricError."""

        def changed(state: InterfaceState | None) -> None:
            self.dataplane.follow_offloads()
            underlay_changed(state)

        self.keeper = KernelKeeper(make, external.name, self._device_gone, changed, self._reachable_changed)
        _, outcome = self._calculate()
        if outcome.asked:  # known before the first state is set, which would take routes of an earlier run away else
            self.keeper.watch(outcome.asked)
            await self.keeper.settled()
        self.refresh()
        assert self.outcome is not None
        result = await self.keeper.first()
        own = [error for error in result.errors if not error.is_of_a_peer]
        devices = [device.name for device in self.outcome.kernel.devices if device.role != "underlay"]
        gone = [name for name in devices if result.devices.get(name) is None]
        if own or gone:  # a peer's route that fails is that peer's trouble only
            raise StartError(f"{own[0] if own else f'device {gone[0]}: it is gone'}")
        self._settled = True
        del self._issued[:-1]
        self._run_threads()

    async def undo(self) -> None:
        """The start failed: take back what it made in the kernel; what was there before stays. Never raises."""
        if self.keeper is not None and self.keeper.counters()["changes"]:
            await self.keeper.withdraw()

    def close(self) -> None:
        """Stop the workers; the node port disappears, what is the kernel's own stays. Idempotent."""
        self._closed = True
        self._refresh_at(None)
        if self.keeper is not None:
            self.keeper.close()
        self.dataplane.stop()

    def rebind(self, external: External, mtu: int) -> None:
        """Go on from other underlay addresses, with this MTU of the node port. Raises DataplaneError, nothing changed.
        """
        assert self.keeper is not None
        self.dataplane.rebind(external.underlay, mtu, external.name)
        self.keeper.follow(external.name)

    async def run_kernel(self) -> None:
        """Keep the kernel at the desired state for ever."""
        assert self.keeper is not None
        await self.keeper.run()

    async def run_sequence(self) -> None:
        """Take the steps that have to wait for the kernel, for ever."""
        assert self.keeper is not None
        while True:
            await self._unconfirmed.wait()
            self._unconfirmed.clear()
            if not self._urgent:
                await asyncio.sleep(SETTLE_SECONDS)  # one look at the kernel for many changes
            issued = len(self._issued)
            await self.keeper.settled()
            del self._issued[: issued - 1]
            self._advance()

    def refresh(self) -> None:
        """Compute the desired state and hand on what differs. An unusable one leaves the last, unless it is the first.

        Raises FabricError for the first only."""
        assert self.keeper is not None
        node, outcome = self._calculate()
        before = self.outcome
        self._say_verdicts(node, before, outcome)
        self.outcome = outcome
        try:
            self._advance()
        except DataplaneError as error:
            if not self._settled:
                raise
            log.error("the new forwarding state is not used, the last one stays: %s", error)
            self.outcome = before
        self._refresh_at(self._cluster.table.next_end())
        self.keeper.watch(outcome.asked)
        self.extension_peers(outcome.extension)
        self._run_threads()

    def _advance(self) -> None:
        """Take the steps towards the present outcome, up to the first that has to wait for the kernel."""
        assert self.outcome is not None
        steps = calc.sequence(self._applied, self._issued[-1].state if self._issued else None, self.outcome)
        for position, step in enumerate(steps):
            if isinstance(step, calc.SetKernel):
                self._issue(step.state)
            elif self._leaves_a_route(step.state):
                self._urgent = any(isinstance(later, calc.SetKernel) for later in steps[position:])
                self._unconfirmed.set()
                return
            else:
                self.dataplane.apply(step.state)
                self._applied = step.state
        self._issue(self.outcome.kernel)

    def _leaves_a_route(self, state: ForwardingState) -> bool:
        """Whether the kernel may have a route into the node port that leads nowhere with `state` but does now."""
        gone, come = differing(self._applied.peers if self._applied else (), state.peers)
        lost = _reached(gone) - _reached(come)
        return bool(lost) and any(issued.leads_to_any(lost) for issued in self._issued)

    def _issue(self, state: KernelState) -> None:
        """Have the reconciler bring the kernel there; nothing happens when it is on its way already."""
        assert self.keeper is not None
        wanted = self._translate(state, self._node().conf.networks)
        if not self._issued or self._issued[-1].state != state:
            self._issued.append(_Issued(state, wanted))
            self._unconfirmed.set()
        self.keeper.want((*wanted, *self._translate.bridge_port()), self.blackholes(), self.unreachables())

    def _calculate(self) -> tuple[calc.Node, calc.Outcome]:
        """The outcome, and the node it is for: what the data path cannot do now changes what is wanted of it."""
        assert self.keeper is not None
        leases = self._cluster.leases()
        while True:
            node = replace(self._node(), unavailable=self._unavailable)
            outcome = calc.calculate(node, leases, self._memo, self.keeper.on_link)
            unavailable = self._require(node, outcome)
            if unavailable.items() <= self._unavailable.items():
                return node, outcome
            self._unavailable = {**self._unavailable, **unavailable}

    def _require(self, node: calc.Node, outcome: calc.Outcome) -> Mapping[Encapsulation, str]:
        """Have the data path ready for `outcome`; the formats that cannot be had, with the reason."""
        if not outcome.formats_needed:
            return {}
        unavailable = dict(self.dataplane.require(outcome.formats_needed))
        wanted = any(device.role == "node port" for device in outcome.kernel.devices)
        if self._has_port or not wanted or not unavailable.items() <= self._unavailable.items():
            return unavailable
        try:
            if node.conf.backend.encapsulation is None:  # else it was looked at before anything else was done
                self._device_free(self._settings.device)
            self.dataplane.create_node_port()
            self._has_port = True
        except FabricError as error:
            if node.conf.backend.encapsulation is not None:
                raise
            return dict.fromkeys(outcome.formats_needed, str(error))
        return unavailable

    def _run_threads(self) -> None:
        if self._has_port and self._settled and not self._running:
            self.dataplane.start(self.before_threads)
            self.before_threads = None
            self._running = True

    def _refresh_at(self, end: float | None) -> None:
        """Compute again when a remembered lease ends or something may be available again; nobody tells us of that."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed:
            return
        now = self._clock()
        delays = [min(end - now, 3600.0)] if end is not None and end > now else []
        if self._unavailable:
            delays.append(RETRY_SECONDS)
        if delays:
            self._timer = asyncio.get_running_loop().call_later(min(delays) + 0.01, self._retry)

    def _retry(self) -> None:
        self._unavailable = {}
        self.refresh()

    def _say_verdicts(self, node: calc.Node, before: calc.Outcome | None, outcome: calc.Outcome) -> None:
        gone, come = differing(before.verdicts if before else (), outcome.verdicts)
        known = {verdict.lease.key: verdict for verdict in gone}
        for verdict in come:
            old = known.pop(verdict.lease.key, None)
            if verdict.reason and (old is None or old.reason != verdict.reason):
                how = "used in part" if verdict.used else "not used"
                log.warning("peer %s is %s: %s", verdict.lease.key, how, verdict.reason)
                if calc.beats_ours(verdict, node.lease):
                    log.error("other nodes use %s instead of our lease %s: it is older; remove one of the two",
                              verdict.lease.key, node.lease.key)  # fmt: skip
            if before is not None and verdict.used and (old is None or _place(old) != _place(verdict)):
                log.info("peer %s", _place(verdict))
        for key, verdict in sorted(known.items()):
            if verdict.used:
                log.info("peer %s is gone", key)

    def _reachable_changed(self) -> None:
        if self.outcome is not None:
            self.refresh()

    def _device_gone(self) -> None:
        log.warning("device %s was deleted by somebody: making it again", self._settings.device)
        self._recreate("")

    def _recreate(self, said: str) -> None:
        if self._closed:
            return
        try:
            self.dataplane.recreate_node_port()
        except DataplaneError as error:
            if str(error) != said:  # not at every try: somebody may have taken the name for good
                log.error("%s; trying again every %g s", error, RECREATE_SECONDS)
            asyncio.get_running_loop().call_later(RECREATE_SECONDS, self._recreate, str(error))
        else:
            self.port_made()


def _reached(peers: Iterable[Peer]) -> set[Network]:
    """The prefixes that the data path sends to."""
    return {prefix for peer in peers if peer.encapsulation for prefix in peer.prefixes}


def _place(verdict: calc.Verdict) -> str:
    """Where a used peer is and how it is reached."""
    lease = verdict.lease
    public = ", ".join(str(address) for address in (lease.public_ip, lease.public_ipv6) if address)
    return f"{lease.key} at {public} by {verdict.way}"
