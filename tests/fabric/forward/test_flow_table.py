"""The flow table against its twin, under memory pressure, and under threads."""

from __future__ import annotations

import os
import struct
import threading
from collections import Counter
from ipaddress import ip_address, ip_network
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encap.checksum import checksum
from fabric.forward.flow_probe import FlowProbe
from fabric.forward.flows import BYTES_PER_FLOW, FlowTable
from fabric.forward.snapshot import Snapshot
from fabric.model import ForwardingState, LocalVtep
from tests.fabric.forward import naive_flows
from tests.fabric.forward.naive_flows import ACK, FIN, NODE, RST, SYN, UNDERLAY, NaiveFlows, Seen
from tests.fuzz.seeds import NullPort

PODS = ["10.244.2.10", "10.244.2.11"]
ALIEN = "10.244.3.10"
PODS6, ALIEN6 = ["2001:db8:42:2::10", "2001:db8:42:2::11"], "2001:db8:42:3::10"
NAMES = {NODE: "node", 1: "pod0", 2: "pod1", UNDERLAY: "underlay"}


def on(table: FlowTable, packets: list[bytes] | None = None) -> FlowProbe:
    """A node with two pods, accounts 1 and 2, that tracks in `table`."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    ports = [NullPort(null), *(NullPort(null, 1450, (address,)) for address in PODS)]
    for number, port in enumerate(ports[1:]):
        port.name = f"pod{number}"
    own = LocalVtep(ip_address("127.0.0.2"), b"\x02\0\0\0\0\x02", (ip_network("10.244.2.0/24"),))
    state, formats = ForwardingState(1, (own,), ()), {"vxlan": 1, "udp": 2}
    return FlowProbe(Snapshot(1, state, ports, 1, formats, True, table), packets or [])  # type: ignore[arg-type]


def make(protocol: int, source: tuple[str, int], destination: tuple[str, int], flags: int = 0) -> bytes:
    """IPv4 with the headers alone; nothing looks at transport checksums here."""
    rest = struct.pack("!HH", source[1], destination[1])
    if protocol == naive_flows.TCP:
        rest += struct.pack("!IIBBHHH", 1, 1, 0x50, flags, 512, 0, 0)
    elif protocol == naive_flows.UDP:
        rest += struct.pack("!HH", 8, 0)
    else:
        rest = struct.pack("!BBHHH", 8, 0, 0, source[1], 1)
    ends = ip_address(source[0]).packed + ip_address(destination[0]).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(rest), 1, 0x4000, 64, protocol, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + rest


def make6(protocol: int, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """A UDP datagram's headers over IPv6."""
    ends = ip_address(source[0]).packed + ip_address(destination[0]).packed
    rest = struct.pack("!HHHH", source[1], destination[1], 8, 0)
    return struct.pack("!IHBB", 0x60000000, len(rest), protocol, 64) + ends + rest


ENDS = st.tuples(st.sampled_from([*PODS, ALIEN]), st.sampled_from([1, 2]))
FLAGS = st.sampled_from([SYN, SYN | ACK, ACK, FIN | ACK, RST])


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, Seen | None]]:
    """Packets of few ends, so that they meet; None is a sweep."""
    found: list[tuple[int, Seen | None]] = []
    now = 1000
    for _ in range(draw(st.integers(1, 40))):
        now += draw(st.sampled_from([0, 0, 1, 5, 11, 60, 500_000]))
        protocol = draw(st.sampled_from([6, 6, 6, 17, 1]))
        source, destination = draw(ENDS), draw(ENDS)
        if protocol == naive_flows.ICMP:
            destination = (destination[0], source[1] + 1)
        if source == destination or draw(st.integers(0, 15)) == 0:
            found.append((now, None))
            continue
        flags = draw(FLAGS) if protocol == naive_flows.TCP else 0
        found.append((now, Seen(protocol, source, destination, flags, draw(st.sampled_from(list(NAMES))), now)))
    return found


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(history=histories(), quota=st.integers(1, 9))
def test_same_as_the_twin(history: list[tuple[int, Seen | None]], quota: int) -> None:
    table = FlowTable(8, quota)
    probe, twin = on(table), NaiveFlows({PODS[0]: 1, PODS[1]: 2}, quota)
    for now, packet in history:
        if packet is None:
            table.sweep(now)
            twin.sweep(now)
        else:
            raw = make(packet.protocol, packet.source, packet.destination, packet.flags)
            found = probe.track(raw, packet.entry, now)
            assert found == twin.track(packet, {identity(flow) for flow in table.dump(100, now)})
        held = sorted(twin_described(flow, now) for flow in twin.held(now))
        assert sorted(map(described, table.dump(100, now))) == held


def described(flow: dict[str, object]) -> tuple[object, ...]:
    names = ("protocol", "source", "sport", "destination", "dport", "state", "entry", "reply_entry", "expires_in")
    return tuple(str(flow[name]) for name in names)


def identity(flow: dict[str, object]) -> tuple[int, naive_flows.End, naive_flows.End]:
    """As `naive_flows.Record.identity`."""
    protocol, source, sport, destination, dport = described(flow)[:5]
    return int(str(protocol)), (str(source), int(str(sport))), (str(destination), int(str(dport)))


def twin_described(flow: naive_flows.Record, now: int) -> tuple[object, ...]:
    reply = flow.entry.get(flow.other)
    return tuple(
        map(
            str,
            (flow.protocol, *flow.origin, *flow.other, flow.state, NAMES[flow.entry[flow.origin]],
             None if reply is None else NAMES[reply], flow.expires - now),
        )
    )  # fmt: skip


def connect(probe: FlowProbe, source: tuple[str, int], destination: tuple[str, int], entry: int, now: int) -> None:
    """A TCP handshake of which both sides are seen."""
    probe.track(make(6, source, destination, SYN), entry, now)
    probe.track(make(6, destination, source, SYN | ACK), UNDERLAY, now)
    probe.track(make(6, source, destination, ACK), entry, now)


def test_a_flood_of_one_pod_leaves_the_others_alone() -> None:
    """The flooder fills its quota; every connection of the neighbour is tracked, before, during and after."""
    table = FlowTable(4096)
    probe = on(table)
    for port in range(200):
        connect(probe, (PODS[1], 10_000 + port), (ALIEN, 80), 2, 100)
    for number in range(8_000):
        probe.track(make(17, (PODS[0], number % 60_000), (ALIEN, 1 + number // 60_000)), 1, 100)
        if number % 40 == 0:
            connect(probe, (PODS[1], 20_000 + number // 40), (ALIEN, 80), 2, 100)
    held = Counter((flow["account"], flow["state"]) for flow in table.dump(10_000, 100))
    assert held["pod1", "established"] == 400
    assert 500 <= held["pod0", "unreplied"] <= 512
    counters = table.counters()
    assert counters["flow_refused_quota"] + counters["flow_evicted_embryonic"] > 7_000
    assert counters["flow_refused_full"] == 0
    assert counters["flows"] == sum(held.values())


def test_what_a_pod_has_closed_does_not_keep_it_from_new_connections() -> None:
    """Wherever in the table they lie: a busy pod closes more than its quota in the time that one is remembered."""
    table = FlowTable(4096)
    probe = on(table)
    for port in range(3_000):
        ends = (PODS[0], 10_000 + port), (ALIEN, 80)
        connect(probe, *ends, 1, 100)
        probe.track(make(6, *ends, FIN | ACK), 1, 100)
        probe.track(make(6, *ends[::-1], FIN | ACK), UNDERLAY, 100)
    counters = table.counters()
    assert (counters["flow_inserted"], counters["flow_refused_quota"]) == (3_000, 0)
    assert (counters["flows"], counters["flow_evicted_closing"]) == (512, 3_000 - 512)


def test_answered_datagrams_make_room_within_their_pod_alone() -> None:
    """A pod that is asked from ever new ports can be asked by connections, too; those are never pushed out."""
    table = FlowTable(4096)
    probe = on(table)
    for number in range(3_000):
        ends = (ALIEN, 1_000 + number), (PODS[0], 53)
        probe.track(make(17, *ends), UNDERLAY, 100)
        probe.track(make(17, *ends[::-1]), 1, 100)
    for port in range(600):
        ends = (ALIEN, 10_000 + port), (PODS[0], 80)
        probe.track(make(6, *ends, SYN), UNDERLAY, 100)
        probe.track(make(6, *ends[::-1], SYN | ACK), 1, 100)
        probe.track(make(6, *ends, ACK), UNDERLAY, 100)
    held = Counter((flow["account"], flow["state"]) for flow in table.dump(10_000, 100))
    assert held["pod0", "established"] >= 480
    assert sum(held.values()) == 512
    assert table.counters()["flow_evicted_answered"] >= 3_000 - 32
    assert table.counters()["flow_refused_quota"] > 0, "established ones stay"


def test_established_flows_outlive_a_flood_without_quota() -> None:
    """Half-open flows push out each other only."""
    table = FlowTable(1024, 1 << 20)
    probe = on(table)
    for port in range(300):
        connect(probe, (PODS[1], 10_000 + port), (ALIEN, 80), 2, 100)
    flood = [make(6, (PODS[0], port), (ALIEN, 80), SYN) for port in range(1024, 7_000)]
    on_flood = FlowProbe(snapshot_of(table), flood)
    on_flood.run(1, 100, 1)
    states = Counter(flow["state"] for flow in table.dump(10_000, 100))
    assert states["established"] == 300
    assert states["syn-sent"] > 500
    assert table.counters()["flow_evicted_embryonic"] > 4_000


def snapshot_of(table: FlowTable) -> Snapshot:
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    own = LocalVtep(ip_address("127.0.0.2"), b"\x02\0\0\0\0\x02", (ip_network("10.244.2.0/24"),))
    state = ForwardingState(1, (own,), ())
    return Snapshot(1, state, [NullPort(null)], 1, {"vxlan": 1, "udp": 2}, True, table)  # type: ignore[arg-type,list-item]


def test_it_fills_up_without_losing_any() -> None:
    """Two choices of a bucket: the first flow has to make room when about three quarters of the places are used.

    The hash is keyed anew each time: at five eighths none ever has to.
    """
    table = FlowTable(8192, 1 << 20)
    count = table.capacity * 5 // 8
    packets = [make(17, (PODS[0], 1 + i % 60_000), (ALIEN, 1 + i // 60_000)) for i in range(count)]
    FlowProbe(snapshot_of(table), packets).run(1, 100, 1)
    counters = table.counters()
    assert counters["flows"] == counters["flow_inserted"] == count
    table.sweep(131)
    assert table.counters()["flows"] == 0
    assert table.dump(10, 131) == []


def test_memory_is_what_was_promised() -> None:
    assert BYTES_PER_FLOW <= 128
    assert FlowTable(131_072).capacity == 131_072
    assert FlowTable(100_000).capacity == 131_072
    for size in (0, (1 << 26) + 1):
        with pytest.raises(ValueError, match="flows, not"):
            FlowTable(size)


def test_an_account_is_kept_and_given_away_when_its_port_is_gone() -> None:
    table = FlowTable(64)
    assert [table.account(name) for name in ("a", "b", "a")] == [1, 2, 1]
    table.keep_accounts(["b"])
    assert table.account("c") == 1
    assert table.account("b") == 2


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_pod_leaves_is_forgotten_with_it(version: int) -> None:
    """Its account's flows, also to Services; those of others with its address; nothing of its neighbour's."""
    table = FlowTable(256)
    probe = on(table)
    make_one = make if version == 4 else make6
    pods, alien = (PODS, ALIEN) if version == 4 else (PODS6, ALIEN6)
    kept = [((pods[1], port), (alien, 80)) for port in range(1, 5)]
    gone = [((pods[0], port), (alien, 80)) for port in range(1, 5)]
    gone += [((pods[1], port), (pods[0], 80)) for port in range(10, 14)]  # charged to the neighbour
    for source, destination in kept + gone:
        probe.track(make_one(17, source, destination), 1 + pods.index(source[0]), 1000)
        probe.track(make_one(17, destination, source), UNDERLAY, 1000)
    held = table.dump(100, 1000)
    assert len(held) == len(kept + gone)
    assert table.forget(1, [ip_address(pods[0])]) == len(gone)
    assert [flow for flow in held if pods[0] not in (flow["source"], flow["destination"])] == table.dump(100, 1000)
    counters = table.counters()
    assert (counters["flows"], counters["flow_forgotten"]) == (len(kept), len(gone))
    assert table.forget(1, [ip_address(pods[0])]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "forgetting"), [(9, False), (40, False), (9, True)])
def test_threads_see_no_torn_record(ends: int, forgetting: bool) -> None:
    """Writers push each other's flows out of a table of eight, while others read, look, and forget the pod."""
    table = FlowTable(8, 1 << 20)
    snapshot = snapshot_of(table)
    ports = [1 + 7 * i for i in range(ends)]
    packets = [make(17, (PODS[0], port), (ALIEN, 60_000)) for port in ports]
    torn: list[int] = []
    seen: list[bool] = []

    def write(number: int) -> None:
        probe = FlowProbe(snapshot, packets[number:] + packets[:number])
        for now in count(1000, 2):
            if now >= 2000 and len(torn) > 5:  # on a busy machine the reader comes late
                break
            probe.run(0, now, 4000 // ends, spread=500)

    def read() -> None:
        probe = FlowProbe(snapshot, packets)
        while any(writer.is_alive() for writer in writers):
            torn.append(probe.torn(500, 1000))
            if forgetting:
                table.forget(0, [ip_address(PODS[0])])
            seen.extend((flow["source"], flow["sport"] in ports) == (PODS[0], True) for flow in table.dump(8, 0))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    reader = threading.Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in (*writers, reader):
        thread.join(60)
        assert not thread.is_alive()
    assert len(torn) > 5
    assert sum(torn) == 0
    assert all(seen)
    held = table.dump(8, 0)
    assert len({flow["sport"] for flow in held}) == len(held), "no flow is there twice"
    counters = table.counters()
    assert counters["flows"] == len(held)
    assert counters["flow_inserted"] > (1_000 if forgetting else 10_000)
    assert (counters["flow_forgotten"] > 0) is forgetting
