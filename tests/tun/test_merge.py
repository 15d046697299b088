import os
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tun.merging import chain, counted, merged, normal, restore
from tests.tun.packets import (
    ACK,
    CWR,
    DF,
    ECE,
    FIN,
    MF,
    PSH,
    RESERVED,
    RST,
    SYN,
    TCP,
    UDP,
    URG,
    Packet,
    destination_options,
    superframe_header,
)
from tun.batch import ALL_FEATURES as ALL
from tun.batch import merge
from tun.split import split
from tun.vnet import (
    FEATURE_CSUM,
    FEATURE_TSO,
    FEATURE_USO,
    GSO_NONE,
    VNET_NEEDS_CSUM,
    VnetHeader,
)

BOTH = [(4, TCP), (4, UDP), (6, TCP), (6, UDP)]


# --- what a superframe looks like


@pytest.mark.parametrize(("family", "protocol"), BOTH)
@pytest.mark.parametrize("count", [2, 3, 46])
def test_chain_becomes_one_superframe(family: int, protocol: int, count: int) -> None:
    packets = chain(Packet(family, protocol, os.urandom(1398)), count)
    [(header, frame)] = merged(*packets)
    whole = replace(packets[0], payload=b"".join(p.payload for p in packets), check="partial")
    assert header == superframe_header(whole, 1398)._replace(hdr_len=whole.header_length)
    assert frame == whole.build()
    assert split(frame, header) == [p.build() for p in packets]


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_single_frame_is_written_as_it_came(family: int, protocol: int) -> None:
    packet = Packet(family, protocol, b"data")
    assert merged(packet) == [(VnetHeader(), packet.build())]


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_partial_single_frame_is_left_to_the_kernel(family: int, protocol: int) -> None:
    packet = Packet(family, protocol, b"data", check="partial")
    [(header, frame)] = merged(packet)
    offset = 16 if protocol == TCP else 6
    assert header == VnetHeader(VNET_NEEDS_CSUM, GSO_NONE, packet.header_length, 0, packet.l4, offset)
    assert frame == packet.build()


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_partial_single_frame_is_finished_for_a_port_without_checksums(family: int, protocol: int) -> None:
    packet = Packet(family, protocol, b"data", check="partial")
    assert merged(packet, features=0) == [(VnetHeader(), replace(packet, check="full").build())]


@pytest.mark.parametrize("checks", ["partial partial", "partial full", "full partial"])
def test_partial_frames_join(checks: str) -> None:
    packets = [replace(p, check=c) for p, c in zip(chain(Packet(4, TCP, b"12345678"), 2), checks.split(), strict=True)]
    written = merged(*packets)
    assert len(written) == 1
    assert restore(written) == [replace(p, check="full").build() for p in packets]


def test_psh_ends_the_chain_and_stays_on_the_last_segment() -> None:
    packets = chain(Packet(4, TCP, b"12345678"), 4)
    packets[1] = replace(packets[1], flags=ACK | PSH)
    written = merged(*packets)
    assert [len(frame) for _, frame in written] == [packets[0].header_length + 16] * 2
    assert written[0][1][33] == ACK | PSH
    assert restore(written) == [p.build() for p in packets]


def test_identification_wraps() -> None:
    packets = chain(Packet(4, UDP, b"12345678", fragment=0, ident=0xFFFF), 3)
    written = merged(*packets)
    assert len(written) == 1
    assert restore(written) == [p.build() for p in packets]


def test_sequence_number_wraps() -> None:
    packets = chain(Packet(4, TCP, b"12345678", seq=2**32 - 8), 3)
    assert len(merged(*packets)) == 1


# --- what joins and what does not


class Rule(NamedTuple):
    family: int
    protocol: int
    change: dict[str, object]
    base: Mapping[str, object] = MappingProxyType({})
    joins: bool = False


RULES = {
    "source address": Rule(4, TCP, {"source": "192.0.2.9"}),
    "destination address": Rule(4, UDP, {"destination": "192.0.2.9"}),
    "IPv6 source address": Rule(6, TCP, {"source": "2001:db8::9"}),
    "IPv6 destination address": Rule(6, UDP, {"destination": "2001:db8::1:0:2"}),
    "source port": Rule(4, TCP, {"sport": 40001}),
    "destination port": Rule(6, UDP, {"dport": 81}),
    "protocol": Rule(4, TCP, {"protocol": UDP}),
    "family": Rule(4, UDP, {"family": 6}),
    "TOS": Rule(4, TCP, {"tos": 0x10}),
    "ECN": Rule(4, TCP, {"tos": 3}),
    "traffic class": Rule(6, TCP, {"tos": 1}),
    "flow label": Rule(6, TCP, {"flow_label": 1}),
    "TTL": Rule(4, UDP, {"ttl": 63}),
    "hop limit": Rule(6, UDP, {"ttl": 63}),
    "DF cleared": Rule(4, TCP, {"fragment": 0}),
    "DF set": Rule(4, TCP, {"fragment": DF}, {"fragment": 0}),
    "reserved bit": Rule(4, TCP, {"fragment": DF | RESERVED}),
    "identification with DF": Rule(4, TCP, {"ident": 999}, joins=True),
    "equal identification with DF": Rule(4, UDP, {"ident": 7}, joins=True),
    "identification without DF": Rule(4, TCP, {"ident": 9, "fragment": 0}, {"fragment": 0}),
    "next identification without DF": Rule(4, UDP, {}, {"fragment": 0}, joins=True),
    "more fragments": Rule(4, UDP, {"fragment": MF}),
    "fragment offset": Rule(4, UDP, {"fragment": 1}),
    "IPv4 options": Rule(4, TCP, {"ip_options": b"\x01" * 4}),
    "IPv4 options on both": Rule(4, TCP, {}, {"ip_options": b"\x01" * 4}),
    "extension headers on both": Rule(6, UDP, {}, {"extension": destination_options(UDP)}),
    "acknowledgment": Rule(4, TCP, {"ack": 2001}),
    "window": Rule(6, TCP, {"window": 501}),
    "urgent pointer": Rule(4, TCP, {"urgent": 1}),
    "timestamps": Rule(4, TCP, {"options": bytes.fromhex("0101080a0000000100000003")}),
    "no options": Rule(4, TCP, {"options": b""}),
    "more options": Rule(4, TCP, {"options": b"\x01" * 16}),
    "gap in sequence": Rule(4, TCP, {"seq": 1009}),
    "repeated segment": Rule(4, TCP, {"seq": 1000}),
    "segment before": Rule(4, TCP, {"seq": 992}),
    "pure acknowledgment": Rule(4, TCP, {"payload": b""}),
    "after a pure acknowledgment": Rule(4, TCP, {"payload": b"12345678"}, {"payload": b""}),
    "PSH": Rule(4, TCP, {"flags": ACK | PSH}, joins=True),
    "after PSH": Rule(4, TCP, {"flags": ACK}, {"flags": ACK | PSH}),
    "ECE only on one": Rule(4, TCP, {"flags": ACK | ECE}),
    "ECE on both": Rule(4, TCP, {}, {"flags": ACK | ECE}, joins=True),
    "CWR": Rule(4, TCP, {"flags": ACK | CWR}),
    "SYN": Rule(4, TCP, {"flags": ACK | SYN}),
    "FIN": Rule(4, TCP, {"flags": ACK | FIN}),
    "RST": Rule(4, TCP, {"flags": ACK | RST}),
    "URG": Rule(4, TCP, {"flags": ACK | URG}),
    "FIN on both": Rule(4, TCP, {}, {"flags": ACK | FIN}),
    "without ACK": Rule(4, TCP, {}, {"flags": 0}),
    "shorter": Rule(4, TCP, {"payload": b"1234567"}, joins=True),
    "longer": Rule(4, TCP, {"payload": b"123456789"}),
    "shorter datagram": Rule(6, UDP, {"payload": b"1"}, joins=True),
    "longer datagram": Rule(6, UDP, {"payload": b"123456789"}),
    "empty datagrams": Rule(4, UDP, {"payload": b""}, {"payload": b""}),
    "no UDP checksum": Rule(4, UDP, {"check": "zero"}),
    "no UDP checksum on both": Rule(4, UDP, {}, {"check": "zero"}),
    "wrong checksum": Rule(4, TCP, {"check": "bad"}),
    "wrong checksum on the first": Rule(4, TCP, {"check": "full"}, {"check": "bad"}),
    "plain TCP": Rule(4, TCP, {}, joins=True),
    "plain TCP over IPv6": Rule(6, TCP, {}, joins=True),
    "plain UDP": Rule(4, UDP, {}, joins=True),
    "plain UDP over IPv6": Rule(6, UDP, {}, joins=True),
}


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    rule = RULES[name]
    first = replace(Packet(rule.family, rule.protocol, b"12345678"), **rule.base)  # type: ignore[arg-type]
    packets = [first, first.next(**rule.change)]
    written = merged(*packets)
    assert len(written) == (1 if rule.joins else 2)
    if not rule.joins:
        assert {frame for _, frame in written} == {p.build() for p in packets}
        assert all(header == VnetHeader() for header, _ in written)


def test_shorter_segment_ends_the_chain() -> None:
    packets = [Packet(4, UDP, b"12345678")]
    for payload in (b"1234", b"1234", b"12345678"):
        packets.append(packets[-1].next(payload=payload))
    written = merged(*packets)
    assert [header.gso_size for header, _ in written] == [8, 0, 0]
    assert restore(written) == [p.build() for p in packets]


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_64_segments_at_most(family: int, protocol: int) -> None:
    packets = chain(Packet(family, protocol, b"12345678"), 130)
    sizes = [len(frame) - packets[0].header_length for _, frame in merged(*packets)]
    assert sizes == [512, 512, 16]


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_65535_bytes_at_most(family: int, protocol: int) -> None:
    header = Packet(family, protocol).header_length
    packets = chain(Packet(family, protocol, bytes((65535 - header) // 3)), 4)
    sizes = [len(frame) for _, frame in merged(*packets)]
    assert sizes == [header + 3 * len(packets[0].payload), header + len(packets[0].payload)]
    assert len(merged(*chain(Packet(family, protocol, bytes((65535 - header) // 2 + 1)), 2))) == 2


@pytest.mark.parametrize(
    ("protocol", "features", "writes"),
    [
        (TCP, ALL, 1),
        (TCP, FEATURE_CSUM | FEATURE_TSO, 1),
        (TCP, FEATURE_CSUM | FEATURE_USO, 3),
        (TCP, FEATURE_TSO, 3),
        (TCP, 0, 3),
        (UDP, FEATURE_CSUM | FEATURE_USO, 1),
        (UDP, FEATURE_CSUM | FEATURE_TSO, 3),
        (UDP, FEATURE_CSUM, 3),
        (UDP, 0, 3),
    ],
)
def test_only_what_the_port_accepts(protocol: int, features: int, writes: int) -> None:
    packets = chain(Packet(4, protocol, b"12345678"), 3)
    written = merged(*packets, features=features)
    assert len(written) == writes
    assert restore(written) == [p.build() for p in packets]


# --- checksums are never repaired


@pytest.mark.parametrize(("family", "protocol"), BOTH)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_wrong_checksum_survives_and_is_counted(family: int, protocol: int, position: int) -> None:
    packets = chain(Packet(family, protocol, b"12345678"), 3)
    packets[position] = replace(packets[position], check="bad")
    assert restore(merged(*packets)) == [p.build() for p in packets]
    assert counted(*packets).bad_checksum == 1


@pytest.mark.parametrize("position", [0, 1])
def test_wrong_ipv4_header_checksum_survives(position: int) -> None:
    frames = [p.build() for p in chain(Packet(4, TCP, b"12345678"), 2)]
    damaged = bytearray(frames[position])
    damaged[10] ^= 1
    frames[position] = bytes(damaged)
    assert merge(frames) == [(VnetHeader(), frame) for frame in frames]


@given(st.sampled_from(BOTH), st.integers(0, 2), st.integers(1, 255), st.data())
def test_damaged_byte_is_never_repaired(kind: tuple[int, int], position: int, flip: int, data: st.DataObject) -> None:
    packets = chain(Packet(*kind, b"12345678"), 3)
    frames = [p.build() for p in packets]
    damaged = bytearray(frames[position])
    damaged[data.draw(st.integers(packets[0].l4, len(damaged) - 1))] ^= flip
    frames[position] = bytes(damaged)
    assert sorted(map(normal, restore(merge(frames)))) == sorted(map(normal, frames))
