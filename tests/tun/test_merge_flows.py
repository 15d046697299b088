import os
import struct
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tun.fuzz import fuzz_merge, merge_cases
from tests.tun.merging import chain, counted, merged, normal, restore
from tests.tun.packets import (
    ACK,
    CWR,
    ECE,
    FIN,
    MF,
    PSH,
    SYN,
    TCP,
    UDP,
    Packet,
    inet_sum,
    naive_split,
    superframe_header,
)
from tun.batch import ALL_FEATURES as ALL
from tun.batch import MergeCounters, merge, write_merged
from tun.virtio import refusal
from tun.vnet import (
    FEATURE_CSUM,
    FEATURE_TSO,
    GSO_NONE,
    VNET_NEEDS_CSUM,
    VnetHeader,
)

BOTH = [(4, TCP), (4, UDP), (6, TCP), (6, UDP)]


# --- order


@pytest.mark.parametrize(
    "change",
    [
        {"payload": b""},
        {"flags": ACK | SYN},
        {"flags": ACK | FIN},
        {"flags": ACK | CWR},
        {"fragment": MF},
        {"ip_options": b"\x01" * 4},
        {"check": "bad"},
        {"seq": 5},
    ],
)
def test_frame_that_cannot_join_keeps_its_place(change: dict[str, object]) -> None:
    packets = chain(Packet(4, TCP, b"12345678"), 2)
    packets.append(packets[-1].next(**change))
    packets += chain(packets[1].next(), 2)
    written = merged(*packets)
    assert restore(written) == [p.build() for p in packets]
    assert written[0][0].gso_type != GSO_NONE


def test_fragment_waits_only_for_its_addresses() -> None:
    near = Packet(4, UDP, b"12345678")
    other = replace(near, source="192.0.2.7")
    packets = [near, other, near.next(), other.next(), replace(near, fragment=MF, sport=1)]
    written = merged(*packets)
    assert [frame[15] for _, frame in written] == [1, 1, 7]
    assert len(written[2][1]) == near.header_length + 16


@pytest.mark.parametrize("flows", [2, 31, 32])
def test_interleaved_flows_merge(flows: int) -> None:
    packets = [Packet(4, UDP, b"12345678", sport=1000 + i) for i in range(flows)]
    rounds = packets + [p.next() for p in packets]
    assert len(merged(*rounds)) == flows


def test_oldest_slot_makes_room() -> None:
    packets = [Packet(4, UDP, b"12345678", sport=1000 + i) for i in range(33)]
    packets.append(packets[32].next())
    packets.append(packets[1].next())
    written = merged(*packets)
    assert written[0][1] == packets[0].build()
    assert sorted(header.gso_size for header, _ in written) == [0] * 31 + [8, 8]


def test_other_protocols_pass_unchanged() -> None:
    icmp = Packet(4, UDP, b"12345678").build()
    icmp = icmp[:9] + b"\x01" + icmp[10:]
    icmp = icmp[:10] + b"\0\0" + icmp[12:]
    icmp = icmp[:10] + struct.pack("!H", inet_sum(icmp[:20]) ^ 0xFFFF) + icmp[12:]
    assert merge([icmp, icmp]) == [(VnetHeader(), icmp)] * 2


@pytest.mark.parametrize("frame", [b"\x45", bytes(19), bytes(60), b"\x65" + bytes(38), b"\x4f" + bytes(30)])
def test_what_is_no_packet_is_written_unchanged(frame: bytes) -> None:
    assert merge([frame]) == [(VnetHeader(), frame)]


def test_trailing_bytes_keep_a_frame_alone() -> None:
    frames = [p.build() + b"\0" for p in chain(Packet(4, TCP, b"12345678"), 2)]
    assert merge(frames) == [(VnetHeader(), frame) for frame in frames]


# --- superframes of a peer


@pytest.mark.parametrize(("family", "protocol"), BOTH)
@pytest.mark.parametrize("check", ["partial", "full"])
def test_superframe_passes_whole(family: int, protocol: int, check: str) -> None:
    packet = Packet(family, protocol, os.urandom(5000), check=check)
    [(header, frame)] = merge([(packet.build(), 1000)])
    assert header == superframe_header(packet, 1000)._replace(hdr_len=packet.header_length)
    assert frame == replace(packet, check="partial").build()


@pytest.mark.parametrize(("family", "protocol"), BOTH)
@pytest.mark.parametrize("features", [0, FEATURE_CSUM])
def test_superframe_is_cut_for_a_port_without_offload(family: int, protocol: int, features: int) -> None:
    packet = Packet(family, protocol, os.urandom(5000), check="partial", flags=ACK | PSH)
    written = merge([(packet.build(), 1000)], features=features)
    assert written == [(VnetHeader(), segment) for segment in naive_split(packet, 1000)]


def test_superframe_of_many_datagrams_is_cut() -> None:
    packet = Packet(4, UDP, bytes(65 * 8), check="partial")
    assert len(merge([(packet.build(), 8)])) == 65


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_superframe_of_one_segment_only_needs_its_checksum(family: int, protocol: int) -> None:
    packet = Packet(family, protocol, bytes(1000), check="partial")
    [(header, frame)] = merge([(packet.build(), 1000)])
    assert (header.flags, header.gso_type, frame) == (VNET_NEEDS_CSUM, GSO_NONE, packet.build())
    assert merge([(packet.build(), 1000)], features=0) == [(VnetHeader(), replace(packet, check="full").build())]


def test_superframe_with_a_wrong_checksum_is_not_repaired() -> None:
    packet = Packet(4, TCP, bytes(5000), check="bad")
    assert merge([(packet.build(), 1000)]) == [(VnetHeader(), packet.build())]


def test_superframe_follows_the_slot_of_its_flow() -> None:
    packets = chain(Packet(4, TCP, b"12345678"), 2)
    big = packets[-1].next(payload=bytes(100), check="partial")
    last = big.next(payload=b"12345678", check="full")
    written = merge([p.build() for p in packets] + [(big.build(), 50), last.build()])
    expected = [p.build() for p in packets] + naive_split(big, 50) + [last.build()]
    assert [header.gso_size for header, _ in written] == [8, 50, 0]
    assert restore(written) == expected


def test_superframe_leaves_other_flows_open() -> None:
    other = Packet(4, TCP, b"12345678", sport=7)
    big = Packet(4, TCP, bytes(100), check="partial")
    written = merge([other.build(), (big.build(), 50), other.next().build()])
    assert [header.gso_size for header, _ in written] == [50, 8]


# --- refused writes


def test_deleted_port_is_counted() -> None:
    frames = [p.build() for p in chain(Packet(4, TCP, b"12345678"), 2)]
    counters = write_merged(-1, frames)
    assert (counters.frames, counters.writes, counters.merged, counters.errors_gone) == (2, 0, 0, 2)


def test_full_port_is_counted_and_not_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        frames = [Packet(4, TCP, bytes(60000), flags=ACK | PSH).build() for _ in range(4)]
        counters = write_merged(writer, frames)
    finally:
        os.close(reader)
        os.close(writer)
    assert counters.errors_again > 0
    assert counters.writes + counters.errors_again == 4


def test_frames_of_a_batch_are_accounted_for() -> None:
    packets = [*chain(Packet(4, TCP, b"12345678"), 3), Packet(4, UDP, b"1"), Packet(6, TCP, b"1", check="bad")]
    counters = counted(*packets)
    sizes = [packets[0].header_length + 24, packets[3].header_length + 1, packets[4].header_length + 1]
    assert counters == MergeCounters(5, 3, sum(sizes), 3, 1, 0, 0, 0, 0)


@pytest.mark.parametrize("item", [bytes(65536), (b"", -1), (b"", 65536)])
def test_item_out_of_range_is_refused(item: bytes | tuple[bytes, int]) -> None:
    with pytest.raises(ValueError, match="at most 65535"):
        merge([item])


# --- the twin: cutting what was merged gives back what came in


FLOWS = [
    Packet(4, TCP, sport=1),
    Packet(4, TCP, sport=2, fragment=0),
    Packet(4, UDP, sport=1),
    Packet(6, TCP, sport=1),
    Packet(6, UDP, sport=1, source="2001:db8::7"),
]
CHANGES: list[dict[str, object]] = [
    *[{}] * 10,
    {"flags": ACK | PSH},
    {"flags": ACK | FIN},
    {"flags": SYN},
    {"flags": ACK | ECE},
    {"flags": ACK | CWR},
    {"ack": 3000},
    {"window": 3},
    {"options": b"\x01" * 12},
    {"ttl": 3},
    {"tos": 3},
    {"flow_label": 3},
    {"fragment": 0},
    {"fragment": MF},
    {"ident": 500},
    {"seq": 77},
    {"check": "bad"},
    {"check": "partial"},
    {"check": "zero"},
    {"ip_options": b"\x01" * 4},
]
EVENTS = st.lists(
    st.tuples(st.integers(0, len(FLOWS) - 1), st.sampled_from([8, 8, 8, 8, 3, 20, 0]), st.sampled_from(CHANGES)),
    max_size=40,
)


def packets_of(events: list[tuple[int, int, dict[str, object]]]) -> list[Packet]:
    state = dict(enumerate(FLOWS))
    packets = []
    for serial, (flow, size, change) in enumerate(events):
        packet = replace(state[flow], payload=bytes([serial]) * size, **change)  # type: ignore[arg-type]
        if packet.check == "zero" and (packet.protocol == TCP or packet.family == 6):
            packet = replace(packet, check="bad")
        packets.append(packet)
        state[flow] = replace(packet.next(), **{name: getattr(FLOWS[flow], name) for name in change if name != "seq"})
    return packets


def orders(frames: list[bytes]) -> dict[tuple[bytes, bytes], list[bytes]]:
    """Frames per flow in their order; a frame whose flow is not plain stands in the order of all between its hosts."""
    plain: dict[bytes, set[bytes]] = defaultdict(set)
    keyed = []
    for frame in frames:
        four = frame[0] >> 4 == 4
        hosts = frame[12:20] if four else frame[8:40]
        odd = four and (frame[0] != 0x45 or frame[6] & 0x3F or frame[7])
        key = b"" if odd else (frame[9:10] + frame[20:24] if four else frame[6:7] + frame[40:44])
        plain[hosts].add(key)
        keyed.append((hosts, key, normal(frame)))
    found: dict[tuple[bytes, bytes], list[bytes]] = defaultdict(list)
    for hosts, key, frame in keyed:
        for other in [key] if key else plain[hosts]:
            found[hosts, other].append(frame)
    return found


@pytest.mark.slow
@given(EVENTS, st.sampled_from([ALL, ALL, ALL, FEATURE_CSUM | FEATURE_TSO, FEATURE_CSUM, 0]))
@settings(max_examples=100, deadline=None)
def test_merge_then_split_gives_every_flow_back(
    events: list[tuple[int, int, dict[str, object]]], features: int
) -> None:
    packets = packets_of(events)
    written = merged(*packets, features=features)
    fragments = [p.fragment & 0x3FFF != 0 and p.family == 4 for p in packets]
    expected = [
        (replace(p, check="full") if p.check == "partial" and not fragment else p).build()
        for p, fragment in zip(packets, fragments, strict=True)
    ]
    assert orders(restore(written)) == orders(expected)
    assert [refusal(header, frame) for header, frame in written] == [""] * len(written)


@given(EVENTS)
@settings(max_examples=60, deadline=None)
def test_bad_checksums_are_counted_once_each(events: list[tuple[int, int, dict[str, object]]]) -> None:
    packets = packets_of(events)
    bad = sum(p.check == "bad" and not (p.family == 4 and p.fragment & 0x3FFF) for p in packets)
    assert counted(*packets).bad_checksum == bad


@pytest.mark.slow
def test_malformed_input_never_crashes() -> None:
    for case in merge_cases(seed=1, count=20_000):
        fuzz_merge(case)
