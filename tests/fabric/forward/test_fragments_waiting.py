"""Later fragments that overtake the first one of their datagram: held, then as the first one; bounds, losses, accounts.

One node without threads (`fabric.forward.probe`), whose clock stands still: pods a, b and bridged (on a port here), and
the peers 2 and 3.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encap.vxlan import encapsulate
from fabric.forward.flows import FlowTable
from fabric.forward.probe import Probe
from fabric.lab import measure
from fabric.model import ForwardingState, LocalVtep
from tests.fabric.forward.harness import HarnessPort, address4, address6, make_peer, node_mac, prefixes_of
from tests.fabric.forward.policed import Object, address, allow, enforced, policy, snapshot_of
from tests.scenarios.evasions_both import SCTP, Try
from tun.vnet import VnetHeader

OPEN, CLOSED = 53, 54
NUMBERS = itertools.count(1)
PORTS = ("node", "a", "b", "bridged")
ONLY_OPEN = [allow((), "UDP", OPEN)]
# Who sends to whom, and where the policy that decides is judged.
WAYS = {
    "port to port": ("a", "b", policy("b", ingress=ONLY_OPEN)),
    "port to underlay": ("a", "c", policy("a", egress=ONLY_OPEN)),
    "port to outside": ("a", "outside", policy("a", egress=ONLY_OPEN)),
    "node port to port": ("outside", "b", policy("b", ingress=ONLY_OPEN)),
    "underlay to port": ("c", "b", policy("b", ingress=ONLY_OPEN)),
}
IN_WAYS = pytest.mark.parametrize("way", WAYS)
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def place(name: str, family: int) -> str:
    """Pods of peer 3 are called by their host number."""
    if not name.isdigit():
        return address(name, family)
    return address4(3, int(name)) if family == 4 else address6(3, int(name))


def fixed(packet: bytes) -> bytes:
    """Without what a router changes."""
    if packet[0] >> 4 == 6:
        return packet[:7] + packet[8:]
    return packet[:8] + packet[9:10] + packet[12:]


@dataclass
class Stage:
    stack: ExitStack
    table: FlowTable = field(default_factory=lambda: FlowTable(4096))
    number: int = 0
    now: int = 100

    def __post_init__(self) -> None:
        own = ("", *(place(name, 4) for name in PORTS[1:]))
        six = ("", *(place(name, 6) for name in PORTS[1:]))
        self.ports = {
            name: HarnessPort(f"waiting-{name}", [each for each in ends if each], 9000)
            for name, ends in zip(PORTS, zip(own, six, strict=True), strict=True)
        }
        for port in self.ports.values():
            self.stack.callback(port.close)
        self.wire, sender = (self.stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2))
        self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.wire.bind(("127.0.0.2", 0))
        sender.bind(("127.0.0.1", 0))
        self.apply()
        self.probe = Probe(self.snapshot, sender.fileno())

    def apply(self, *policies: Object) -> None:
        self.number += 1
        state = ForwardingState(
            1, (LocalVtep(ip_address("127.0.0.1"), node_mac(1), prefixes_of(1)),),  # type: ignore[arg-type]
            tuple(make_peer(number, ip_address(f"127.0.0.{number}"), "vxlan", 9000) for number in (2, 3)),
        )  # fmt: skip
        port = self.wire.getsockname()[1]
        enforcement = enforced(policies, self.number)
        self.snapshot = snapshot_of(state, list(self.ports.values()), self.table, enforcement, self.number, port)
        if self.number > 1:
            self.probe.swap(self.snapshot)

    def ends(self, source: str, target: str, family: int) -> Try:
        """A datagram's, with a number of its own."""
        return Try(place(source, family), place(target, family), OPEN, CLOSED, next(NUMBERS))

    def give(self, source: str, packet: bytes) -> None:
        """Its accounts are checked by the probe."""
        if source == "c" or source.isdigit():
            peer = 2 if source == "c" else 3
            payload = encapsulate(packet, vni=1, destination=node_mac(1), source=node_mac(peer))
            self.probe.receive(payload, int(ip_address(f"127.0.0.{peer}")))
        else:
            position = PORTS.index("node" if source == "outside" else source)
            self.probe.send(position, packet, VnetHeader().emit())

    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.probe.set_clock(self.now)

    def counts(self) -> Counter[str]:
        found = Counter(self.probe.ingress_counts()) + Counter(self.probe.egress_counts())
        del found["pass"]
        return found

    def arrived(self) -> list[bytes]:
        """Everywhere, since the last call."""
        packets = [frame for port in self.ports.values() for _, frame in port.take_all()]
        while select.select([self.wire], [], [], 0)[0]:
            packets.append(self.wire.recv(65536)[22:])
        return [fixed(packet) for packet in packets]


@pytest.fixture(scope="module")
def made() -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(stack)


@pytest.fixture
def stage(made: Stage) -> Stage:
    """Nothing waits, nothing is known."""
    begin(made)
    return made


def begin(stage: Stage) -> None:
    stage.wait(1000)
    stage.arrived()
    assert stage.counts()["held"] == 0


# --- the twin ---


class Naive:
    """What becomes of fragments, by the rule as it is written."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, int], bool] = {}
        self.waiting: list[tuple[int, tuple[str, int], bytes]] = []
        self.now = 0
        self.delivered: list[bytes] = []
        self.refused = self.lost = 0

    def settle(self, packet: bytes, allowed: bool) -> None:
        if allowed:
            self.delivered.append(fixed(packet))
        else:
            self.refused += 1

    def take(self, key: tuple[str, int], packet: bytes, *, first: bool, allowed: bool) -> None:
        if first:
            self.known[key] = allowed
            self.settle(packet, allowed)
            for _, _, held in [each for each in self.waiting if each[1] == key]:
                self.settle(held, allowed)
            self.waiting = [each for each in self.waiting if each[1] != key]
        elif key in self.known:
            self.settle(packet, self.known[key])
        else:
            self.waiting.append((self.now, key, packet))

    def wait(self, seconds: int) -> None:
        self.now += seconds
        late = [each for each in self.waiting if each[0] + 2 <= self.now]
        self.lost += len(late)
        self.waiting = [each for each in self.waiting if each not in late]


@st.composite
def traffic(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int]]:
    """Datagrams (port, number of fragments), and in which order theirs come: index of a fragment of all; below 0: time
    passes. Some come twice, some never."""
    datagrams = draw(
        st.lists(st.tuples(st.sampled_from([OPEN, CLOSED]), st.integers(2, 6)), min_size=1, max_size=4)
    )
    total = sum(count for _, count in datagrams)
    order = draw(st.permutations(range(total)))
    extra = draw(st.lists(st.tuples(st.integers(0, total), st.integers(-2, total - 1)), max_size=4))
    events = list(order)
    for at, event in extra:
        events.insert(at, event)
    missing = draw(st.sets(st.integers(0, total - 1), max_size=2))
    return datagrams, [event for event in events if event not in missing]


@settings(max_examples=40, deadline=None)
@given(way=st.sampled_from(sorted(WAYS)), family=st.sampled_from([4, 6]), case=traffic())
def test_like_the_rule(
    made: Stage, way: str, family: int, case: tuple[list[tuple[int, int]], list[int]]
) -> None:
    source, target, rule = WAYS[way]
    begin(made)
    made.apply(rule)
    before, naive = made.counts(), Naive()
    pieces: list[tuple[tuple[str, int], bytes, bool, bool]] = []
    datagrams, events = case
    for port, count in datagrams:
        t = made.ends(source, target, family)
        cut = t.pieces(t.datagram(port, count * 24), 24)
        pieces += [((source, t.number), piece, i == 0, port == OPEN) for i, piece in enumerate(cut)]
    for event in events:
        if event < 0:
            made.wait(-event)
            naive.wait(-event)
            continue
        key, piece, first, allowed = pieces[event]
        made.give(source, piece)
        naive.take(key, piece, first=first, allowed=allowed)
        assert made.counts()["held"] == len(naive.waiting)
    assert made.arrived() == naive.delivered
    naive.wait(2)
    made.wait(2)
    reason = "policy_egress" if "egress" in rule["spec"] else "policy_ingress"
    wanted = Counter({reason: naive.refused, "policy_fragment": naive.lost})
    assert made.counts() - before == +wanted


# --- large ones, and what is not theirs ---


@IN_WAYS
@FAMILIES
@pytest.mark.parametrize("size", [1232, 1360, 8920])
def test_a_datagram_of_65000_bytes_backwards(stage: Stage, way: str, family: int, size: int) -> None:
    """Two of them at once, and the same to a closed port."""
    source, target, rule = WAYS[way]
    stage.apply(rule)
    both = [(t := stage.ends(source, target, family), t.pieces(t.good(65_000), size))[1] for _ in range(2)]
    if size == 1232:
        both.pop()
    closed = (t := stage.ends(source, target, family)).pieces(t.bad(65_000), size)
    packets = [piece for turn in zip(*both, strict=True) for piece in turn][::-1]
    for packet in packets:
        stage.give(source, packet)
    wanted = [fixed(packet) for packet in [packets[-len(both)], *packets[0 :: len(both)][:-1]]]
    found = stage.arrived()
    assert sorted(found) == sorted(fixed(packet) for packet in packets)
    assert found[: len(wanted)] == wanted, "the first one, and then as they came"
    for packet in closed[::-1]:
        stage.give(source, packet)
    assert stage.arrived() == []
    assert stage.counts()["held"] == 0


@FAMILIES
def test_only_their_own_first_fragment_frees_them(stage: Stage, family: int) -> None:
    """Another identification, protocol (IPv4), source or port of entry is another datagram."""
    stage.apply(policy("b", ingress=ONLY_OPEN))
    t = stage.ends("a", "b", family)
    others = [
        ("a", stage.ends("a", "b", family)),
        ("bridged", Try(place("bridged", family), t.target, OPEN, CLOSED, t.number)),
        ("c", Try(place("c", family), t.target, OPEN, CLOSED, t.number)),
        ("a", Try(t.source, place("bridged", family), OPEN, CLOSED, t.number)),
        ("outside", t),
    ]
    first, *later = t.pieces(t.good())
    stage.give("a", later[1])
    for by, other in others:
        stage.give(by, other.pieces(other.good())[0])
    if family == 4:
        stage.give("a", t.piece(0, True, t.good()[:24], SCTP))
    stage.arrived()
    assert stage.counts()["held"] == 1
    stage.give("a", first)
    assert stage.arrived() == [fixed(first), fixed(later[1])]


def test_the_last_first_fragment_decides(stage: Stage) -> None:
    """As it does for what comes behind it."""
    stage.apply(policy("b", ingress=ONLY_OPEN))
    t = stage.ends("a", "b", 4)
    before = stage.counts()
    good, bad = t.pieces(t.good()), t.pieces(t.bad())
    stage.give("a", bad[1])
    stage.give("a", bad[0])
    stage.give("a", good[0])
    stage.give("a", bad[2])
    assert stage.arrived() == [fixed(good[0]), fixed(bad[2])]
    assert stage.counts() - before == Counter({"policy_ingress": 2})


def test_other_rules_meanwhile(stage: Stage) -> None:
    """Those in force when the first one comes decide."""
    t = stage.ends("a", "b", 4)
    first, second, third = t.pieces(t.good())
    stage.apply(policy("b", ingress=ONLY_OPEN))
    stage.give("a", second)
    stage.apply(policy("b", ingress=[]))
    stage.give("a", first)
    assert stage.arrived() == []
    stage.apply(policy("b", ingress=ONLY_OPEN), policy("a", egress=ONLY_OPEN))
    stage.give("a", third)
    assert stage.arrived() == [], "the verdict was that of other rules"
    assert stage.counts()["held"] == 1
    stage.give("a", first)
    assert stage.arrived() == [fixed(first), fixed(third)]
    stage.apply()
    alone = stage.ends("a", "b", 4)
    stage.give("a", alone.pieces(alone.bad())[1])
    assert len(stage.arrived()) == 1, "nothing isolates them"


# --- bounds ---


def orphans(stage: Stage, by: str, sources: Sequence[str], family: int, each: int, target: str = "b") -> None:
    """Later fragments of so many datagrams of each source that never begin."""
    for source, _ in itertools.product(sources, range(each)):
        t = stage.ends(source, target, family)
        stage.give(by if by else source, t.pieces(t.bad())[1])


def assert_gets_through(stage: Stage, source: str, size: int = 65_000) -> None:
    t = stage.ends(source, "b", 4)
    pieces = t.pieces(t.good(size), 1360)
    for piece in pieces[::-1]:
        stage.give(source, piece)
    assert sorted(stage.arrived()) == sorted(map(fixed, pieces))


def test_one_pod_cannot_take_the_room_of_others(stage: Stage) -> None:
    """96 places of a source; when all are taken, who has most gives way to who has less."""
    stage.apply(policy("b", ingress=ONLY_OPEN))
    before = stage.counts()
    orphans(stage, "", ["a"], 4, 300)
    assert (stage.counts() - before) == Counter({"held": 96, "policy_fragment": 204})
    assert_gets_through(stage, "bridged")
    orphans(stage, "", ["a"], 6, 300)
    orphans(stage, "outside", ["outside"], 4, 300)
    assert stage.counts()["held"] == 256
    assert_gets_through(stage, "bridged")
    stage.wait(2)
    assert stage.counts() - before == Counter({"policy_fragment": 900})


def test_one_node_cannot_take_the_room_of_others(stage: Stage) -> None:
    """It has many sources; of those of another node each has its share."""
    stage.apply(policy("b", ingress=ONLY_OPEN))
    orphans(stage, "", [str(number) for number in range(2, 200)], 4, 3)
    assert stage.counts()["held"] == 256
    assert_gets_through(stage, "c")
    assert stage.counts()["held"] == 256 - 47


def test_one_datagram_has_64_places(stage: Stage) -> None:
    """More fragments than that are smaller than any link asks for."""
    stage.apply(policy("b", ingress=ONLY_OPEN))
    before = stage.counts()
    t = stage.ends("a", "b", 4)
    pieces = t.pieces(t.good(100 * 24), 24)
    for piece in pieces[::-1]:
        stage.give("a", piece)
    assert stage.counts() - before == Counter({"policy_fragment": 35})
    assert len(stage.arrived()) == 65


def test_a_flood_costs_what_it_costs(stage: Stage) -> None:
    """Whatever comes, the room is 256 places, and afterwards as if nothing had been."""
    stage.apply(policy("b", ingress=ONLY_OPEN))
    for _ in range(2):
        for name in ("a", "bridged", "outside", "c"):
            orphans(stage, "", [name], 4, 110)
            orphans(stage, "", [name], 6, 50)
        assert stage.counts()["held"] <= 2 * 256
        stage.wait(1)
    begin(stage)
    for name in ("a", "bridged", "outside", "c"):
        assert_gets_through(stage, name)


def test_the_resident_set_grows_with_the_first_one_only(stage: Stage) -> None:
    """512 KiB of places, once, however much comes."""
    stage.apply(policy("b", ingress=ONLY_OPEN))
    orphans(stage, "", ["a"], 4, 100)
    before = measure.resident(os.getpid())
    orphans(stage, "", ["a"], 6, 600)
    assert measure.resident(os.getpid()) - before < 256 << 10
