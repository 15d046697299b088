"""A data path and a kernel that carry out steps one object at a time and refuse states that break an order rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

from fabric import calc
from fabric.model import (
    ForwardingState,
    KernelDevice,
    KernelFdbEntry,
    KernelNeighbour,
    KernelRoute,
    KernelState,
    Network,
)


@dataclass
class RecordingPlane:
    """Start empty, then `go` to one outcome after another."""

    node_port: str
    forwarding: ForwardingState | None = None
    kernel: KernelState | None = None
    routes: set[tuple[str, KernelRoute]] = field(default_factory=set)
    neighbours: set[tuple[str, KernelNeighbour]] = field(default_factory=set)
    fdb: set[tuple[str, KernelFdbEntry]] = field(default_factory=set)
    lasting: set[Network] = field(default_factory=set)

    def go(self, outcome: calc.Outcome) -> None:
        """Carry out the steps to `outcome`; AssertionError for a state on the way that must not be."""
        self.lasting = self._lasting(outcome)
        for step in calc.sequence(self.forwarding, self.kernel, outcome):
            if isinstance(step, calc.SetForwarding):
                self.forwarding = step.state
                self._check()
            else:
                self._set_kernel(step.state)
                self.kernel = step.state
        assert (self.forwarding, self.kernel) == (outcome.forwarding, outcome.kernel)
        assert calc.sequence(self.forwarding, self.kernel, outcome) == ()

    def _set_kernel(self, state: KernelState) -> None:
        """As the reconciler does it: routes that go, then neighbours and entries, then routes that come."""
        wanted = set(_each(state, "routes"))
        neighbours, fdb = set(_each(state, "neighbours")), set(_each(state, "fdb"))
        prefixes = {route.prefix: item for item in wanted for route in (item[1],)}
        for item in sorted(self.routes - wanted, key=str):
            if item[1].prefix not in prefixes:
                self.routes.discard(item)
                self._check()
        for item in sorted(neighbours - self.neighbours, key=str):
            self.neighbours = {old for old in self.neighbours if (old[0], old[1].address) != (item[0], item[1].address)}
            self.neighbours.add(item)
        for entry in sorted(fdb - self.fdb, key=str):
            self.fdb = {old for old in self.fdb if (old[0], old[1].mac) != (entry[0], entry[1].mac)} | {entry}
        self._check()
        for item in sorted(wanted - self.routes, key=str):
            self.routes = {old for old in self.routes if old[1].prefix != item[1].prefix} | {item}  # one replace
            self._check()
        self.neighbours, self.fdb = neighbours, fdb
        self._check()

    def _lasting(self, outcome: calc.Outcome) -> set[Network]:
        """Prefixes that are routed before and after, so at every moment between. Left out are those that go from the
        data path to a plain route at another underlay address: there the old VTEP is in the way of the new one."""
        old = (
            {prefix: peer.underlay for peer in self.forwarding.peers if peer.encapsulation for prefix in peer.prefixes}
            if self.forwarding
            else {}
        )
        new = {prefix: peer for peer in outcome.forwarding.peers for prefix in peer.prefixes}
        moved = {
            prefix
            for prefix, underlay in old.items()
            if prefix in new and new[prefix].encapsulation is None and new[prefix].underlay != underlay
        }
        after = {item.prefix for _, item in _each(outcome.kernel, "routes")}  # type: ignore[attr-defined]
        return {route.prefix for _, route in self.routes} & after - moved

    def _check(self) -> None:
        """Every route leads somewhere, no prefix leads to two places, and none is without a route in between."""
        missing = self.lasting - {route.prefix for _, route in self.routes}
        assert not missing, f"{missing} had a route, will have one, and has none"
        peers = self.forwarding.peers if self.forwarding else ()
        tunnelled = {prefix for peer in peers if peer.encapsulation for prefix in peer.prefixes}
        answered = {(device, item.address): item.mac for device, item in self.neighbours}
        known = {(device, item.mac) for device, item in self.fdb}
        for device, route in self.routes:
            if device == self.node_port:
                assert route.prefix in tunnelled, f"{route.prefix} is routed into {device}, and there is no VTEP"
            elif route.onlink:
                mac = answered.get((device, route.gateway))
                assert mac is not None, f"nobody answers for {route.gateway} on {device}"
                assert (device, mac) in known, f"{device} knows no VTEP with MAC {mac.hex(':')}"
        assert_disjoint([prefix for peer in peers for prefix in peer.prefixes])
        assert_disjoint([route.prefix for _, route in self.routes])
        assert len({peer.underlay for peer in peers}) == len(peers)


def _each(state: KernelState, what: str) -> Iterator[tuple[str, object]]:
    for device in state.devices:
        assert isinstance(device, KernelDevice)
        for item in getattr(device, what):
            yield device.name, item


def assert_disjoint(prefixes: list[Network]) -> None:
    for left, right in combinations(prefixes, 2):
        assert left.version != right.version or not left.overlaps(right), f"{left} and {right} overlap"  # type: ignore[arg-type]
