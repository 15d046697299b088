"""Whatever happened before, the same state of the store ends in the same desired state, by safe steps only."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from fabric import calc
from fabric.lease_table import LeaseTable
from fabric.model import KernelState
from fabric.store.base import Entry, Snapshot
from tests.fabric.calc.recorder import RecordingPlane, assert_disjoint
from tests.fabric.calc.worlds import (
    ALL,
    B_UDP,
    ETH0,
    EXPIRES,
    EXTENSION,
    GW,
    NODES,
    NODES6,
    OURS,
    PREFIX,
    STATE_LISTS,
    A,
    dual,
    value,
)
from tests.fabric.expanders import AWAY, RUBBISH, State, histories

KEYS = sorted({key for states in STATE_LISTS.values() for state in states for key in state.entries} | RUBBISH.keys())
REVISIONS = {key: number for number, key in enumerate(KEYS, 10)}
NOW = 1000.0


class Run:
    """The control plane from the store's content to the kernel's, without I/O."""

    def __init__(self, node: calc.Node) -> None:
        self.node = node
        self.table = LeaseTable(PREFIX)
        self.memo = calc.Memo()
        self.plane = RecordingPlane(node.device)
        self.links: calc.OnLink = {}
        self.number = 100
        self.written: dict[str, tuple[bytes, int]] = {}
        self.outcome = self.step(State({}))

    def step(self, item: State | str) -> calc.Outcome:
        """One thing that happens; the outcome after it."""
        if isinstance(item, State):
            self.number += 1
            self.links = {ip_address(text): device for text, device in item.links.items()}
            self.table.update(self._snapshot(item), NOW)
        leases = self.table.current(NOW)
        self.outcome = calc.calculate(self.node, leases, self.memo, self.links)
        assert self.outcome == calc.calculate(self.node, list(reversed(leases)), None, self.links)
        self.plane.go(self.outcome)
        assert_consistent(self.outcome)
        return self.outcome

    def _snapshot(self, state: State) -> Snapshot:
        """The store's content; a key keeps its creation revision however often it comes back."""
        values = {**state.rubbish, **{k: b"{" if k in state.damaged else v for k, v in state.entries.items()}}
        before = self.written
        self.written = {
            key: before[key] if key in before and before[key][0] == data else (data, self.number)
            for key, data in values.items()
        }
        entries = {
            PREFIX + key: Entry(PREFIX + key, data, REVISIONS.get(key, 99), revision, EXPIRES)
            for key, (data, revision) in self.written.items()
        }
        return Snapshot("store", self.number, entries)


def assert_consistent(outcome: calc.Outcome) -> None:
    """What must hold after every step, whatever the backend is."""
    peers, devices = outcome.forwarding.peers, outcome.kernel.devices
    assert_disjoint([prefix for peer in peers for prefix in peer.prefixes])
    assert_disjoint([route.prefix for device in devices for route in device.routes])
    assert len({peer.underlay for peer in peers}) == len(peers)
    macs = [peer.mac for peer in peers if not peer.any_mac]
    assert len(set(macs)) == len(macs)
    assert len({device.name for device in devices}) == len(devices)
    assert all(peer.accepts for peer in peers)
    assert all(verdict.used or verdict.reason for verdict in outcome.verdicts)
    assert {peer.key for peer in outcome.extension} == {v.lease.key for v in outcome.verdicts if v.way == "extension"}
    formats = {form for peer in peers for form in peer.accepts}
    assert formats <= outcome.formats_needed


def end(node: calc.Node, state: State) -> calc.Outcome:
    return Run(node).step(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATE_LISTS)
@pytest.mark.parametrize("own", NODES)
def test_the_output_depends_on_the_last_state_only(own: str, name: str) -> None:
    states = STATE_LISTS[name]
    expected = end(NODES[own], states[-1])
    for how, history in histories(states):
        run = Run(NODES[own])
        for item in history:
            run.step(item)
        assert (how, run.step(states[-1])) == (how, expected)


SIX = {
    "everybody of two families": [
        State({}),
        State(dict([dual(2), dual(3, ""), dual(4, "host-gw")]), {"192.0.2.2": "eth0", "2001:db8::4": "eth0"}),
        State(dict([dual(2), dual(4, "host-gw")]), {"192.0.2.4": "eth0"}),
    ],
    "types of two families": [State(dict([dual(2, kind)]), ETH0) for kind in ("vxlan", "host-gw", "", "vxlan")],
}  # fmt: skip
REVISIONS |= {key: number for number, key in enumerate((dual(n)[0] for n in (2, 3, 4)), 60)}


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("own", NODES6)
def test_the_same_with_two_families(own: str, name: str) -> None:
    states = SIX[name]
    expected = end(NODES6[own], states[-1])
    for how, history in histories(states):
        run = Run(NODES6[own])
        for item in history:
            run.step(item)
        assert (how, run.step(states[-1])) == (how, expected)


def used(outcome: calc.Outcome) -> set[str]:
    return {verdict.lease.key for verdict in outcome.verdicts if verdict.used}


@pytest.mark.parametrize("own", NODES)
def test_nobody_is_removed_while_the_store_is_away(own: str) -> None:
    run = Run(NODES[own])
    before = run.step(State(ALL, ETH0))
    for _ in range(3):
        assert run.step(AWAY) == before


@pytest.mark.parametrize("own", NODES)
def test_nobody_is_removed_by_what_cannot_be_read(own: str) -> None:
    """Keys that are no keys, values that are no values, also in place of good ones: each keeps its last good value."""
    run = Run(NODES[own])
    before = run.step(State(ALL, ETH0))
    assert run.step(State(ALL, ETH0, damaged=frozenset(ALL))) == before
    after = run.step(State(ALL, ETH0, rubbish=RUBBISH))
    assert (after.forwarding, after.kernel, used(after)) == (before.forwarding, before.kernel, used(before))
    assert len(run.table.problems()) == len(RUBBISH)


@pytest.mark.parametrize("own", [own for own in NODES if own != "alloc"])
@pytest.mark.parametrize("gone", sorted(ALL.keys() - OURS.keys()))
def test_never_more_than_the_vanished_peer_is_removed(own: str, gone: str) -> None:
    run = Run(NODES[own])
    before = run.step(State(ALL, ETH0))
    after = run.step(State({key: data for key, data in ALL.items() if key != gone}, ETH0))
    assert used(before) - used(after) <= {gone}
    prefix = gone.replace("-", "/")

    def routed(kernel: KernelState) -> set[str]:
        return {str(route.prefix) for device in kernel.devices for route in device.routes}

    assert routed(before.kernel) - routed(after.kernel) <= {prefix}
    lost = set(before.forwarding.peers) - set(after.forwarding.peers)
    assert {str(item) for peer in lost for item in peer.prefixes} <= {prefix}
    assert set(before.extension) - set(after.extension) <= {peer for peer in before.extension if peer.key == gone}


POISON = {
    "the whole network": ("10.244.0.0-16", value("192.0.2.66")),
    "our subnet": ("10.244.1.0-25", value("192.0.2.66")),
    "our public address": ("10.244.66.0-24", value("192.0.2.1", "02:00:00:00:00:66")),
    "our MAC": ("10.244.66.0-24", value("192.0.2.66", "02:00:00:00:00:01")),
    "a peer's subnet, younger": ("10.244.2.128-25", value("192.0.2.66")),
    "a peer's public address, younger": ("10.244.66.0-24", value("192.0.2.2", "02:00:00:00:00:66")),
    "a peer's MAC, younger": ("10.244.66.0-24", value("192.0.2.66", "02:00:00:00:00:02")),
    "a peer's address in host-gw": ("10.244.66.0-24", value("192.0.2.3", kind="host-gw")),
    "loopback": ("10.244.66.0-24", value("127.0.0.1")),
    "multicast": ("10.244.66.0-24", value("224.0.0.5", kind="host-gw")),
    "inside the pod network": ("10.244.66.0-24", value("10.244.2.1", kind="host-gw")),
    "a shell in an extension": ("10.244.66.0-24", value("192.0.2.66", kind="extension", BackendData={"$(reboot)": 1})),
    "a number for a type": ("10.244.66.0-24", b'{"PublicIP":"192.0.2.66","BackendType":7}'),
    "a huge VNI": ("10.244.66.0-24", value("192.0.2.66", vni=1 << 60)),
    "a type nobody has": ("10.244.66.0-24", value("192.0.2.66", kind="x" * 60)),
}
REVISIONS |= {key: 90 for key, _ in POISON.values() if key not in REVISIONS}


@pytest.mark.parametrize("name", POISON)
@pytest.mark.parametrize("own", NODES)
def test_a_poisoned_object_removes_and_adds_nobody(own: str, name: str) -> None:
    key, data = POISON[name]
    if name == "our MAC" and NODES[own].conf.backend.type not in ("vxlan", "alloc"):
        return  # we have none
    run = Run(NODES[own])
    before = run.step(State(ALL, ETH0))
    after = run.step(State({**ALL, key: data}, {**ETH0, "192.0.2.66": "eth0"}))
    assert (after.forwarding, after.kernel, after.extension) == (before.forwarding, before.kernel, before.extension)
    assert used(after) == used(before)
    assert key in {verdict.lease.key for verdict in after.verdicts} or key in run.table.problems() or "public" in name


def test_every_way_is_taken_somewhere() -> None:
    """The lists above cover all types: each way of reaching a peer is the way of one of them."""
    found = {verdict.way for own in NODES for verdict in end(NODES[own], State(ALL, ETH0)).verdicts if verdict.used}
    assert found == {"vxlan", "vxlan (kernel)", "direct route", "host-gw", "udp", "extension"}
    assert {**A, **B_UDP, **GW, **EXTENSION}.keys() <= ALL.keys()
