"""The parser of inner packets: tables, its naive twin on arbitrary and damaged bytes, scapy's view of good ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from encap.drops import DropReason
from encap.inner import parse_packet
from tests.encap import naive_inner
from tests.fuzz.seeds import inner_packets

SEEDS = inner_packets(3, 2, 6)
WHOLE, FIRST, LATER = 0, 1, 2
SIX = {"src": "2001:db8:3::a", "dst": "2001:db8:2::6"}
FOUR = {"src": "10.244.3.10", "dst": "10.244.2.6"}


def pad(size: int = 4) -> list[PadN]:
    return [PadN(optdata=b"\0" * size)]


def without_hash(packet: bytes) -> dict[str, Any]:
    return {name: value for name, value in parse_packet(packet).items() if name != "hash"}


def seal(packet: bytes) -> bytes:
    """With a right IPv4 header checksum, where there is a whole header."""
    size = (packet[0] & 15) * 4 if packet else 0
    if len(packet) < 20 or packet[0] >> 4 != 4 or not 20 <= size <= len(packet):
        return packet
    blank = packet[:10] + b"\0\0" + packet[12:]
    return packet[:10] + (naive_inner.ones_sum(blank[:size]) ^ 0xFFFF).to_bytes(2, "big") + packet[12:]


REFUSED: dict[str, tuple[str, bytes]] = {
    "empty": ("INNER_SHORT", b""),
    "one-byte": ("INNER_SHORT", b"E"),
    "19": ("INNER_SHORT", SEEDS[0][:19]),
    "ipv6-39": ("INNER_SHORT", bytes(IPv6(**SIX))[:39]),
    "version-0": ("INNER_VERSION", bytes(40)),
    "version-5": ("INNER_VERSION", b"\x55" + SEEDS[0][1:]),
    "version-15": ("INNER_VERSION", b"\xff" * 60),
    "ihl-4": ("INNER_HEADER", seal(b"\x44" + SEEDS[0][1:])),
    "ihl-0": ("INNER_HEADER", b"\x40" + SEEDS[0][1:]),
    "ihl-beyond-total": ("INNER_HEADER", b"\x4f" + b"\0\0\x28" + SEEDS[0][4:]),
    "total-19": ("INNER_HEADER", seal(SEEDS[0][:2] + b"\0\x13" + SEEDS[0][4:])),
    "total-0": ("INNER_HEADER", seal(SEEDS[0][:2] + b"\0\0" + SEEDS[0][4:])),
    "total-beyond": ("INNER_LENGTH", seal(SEEDS[0][:2] + b"\xff\xff" + SEEDS[0][4:])),
    "plen-beyond": ("INNER_LENGTH", bytes(IPv6(**SIX, plen=1))),
    "jumbogram": ("INNER_TRANSPORT", bytes(IPv6(**SIX, plen=0, nh=17))),
    "checksum": ("INNER_CHECKSUM", SEEDS[0][:10] + b"\x12\x34" + SEEDS[0][12:]),
    "routing-0": ("INNER_EXTENSION", bytes(IPv6(**SIX) / IPv6ExtHdrRouting(type=0) / UDP())),
    "routing-0-behind": (
        "INNER_EXTENSION",
        bytes(IPv6(**SIX) / IPv6ExtHdrHopByHop(options=pad()) / IPv6ExtHdrRouting(type=0, addresses=["::1"]) / UDP()),
    ),
    "hop-by-hop-not-first": (
        "INNER_EXTENSION",
        bytes(IPv6(**SIX) / IPv6ExtHdrDestOpt(options=pad()) / IPv6ExtHdrHopByHop(options=pad()) / UDP()),
    ),
    "two-routing": (
        "INNER_EXTENSION",
        bytes(IPv6(**SIX) / IPv6ExtHdrRouting(type=4) / IPv6ExtHdrRouting(type=4) / UDP()),
    ),
    "three-destination-options": (
        "INNER_EXTENSION",
        bytes(
            IPv6(**SIX)
            / IPv6ExtHdrDestOpt(options=pad())
            / IPv6ExtHdrDestOpt(options=pad())
            / IPv6ExtHdrDestOpt(options=pad())
            / UDP()
        ),
    ),
    "nested-fragments": (
        "INNER_EXTENSION",
        bytes(IPv6(**SIX) / IPv6ExtHdrFragment() / IPv6ExtHdrFragment() / UDP() / Raw(b"x" * 8)),
    ),
    "264-bytes-of-options": (
        "INNER_EXTENSION",
        bytes(IPv6(**SIX) / IPv6ExtHdrDestOpt(options=pad(254)) / IPv6ExtHdrRouting(type=4) / UDP()),
    ),
    "chain-beyond-the-end": ("INNER_EXTENSION", bytes(IPv6(**SIX, nh=60) / Raw(b"\x11\x04" + bytes(6)))),
    "extension-cut": ("INNER_EXTENSION", bytes(IPv6(**SIX, nh=0) / Raw(b"\x11\0\1"))),
    "first-fragment-with-cut-chain": (
        "INNER_EXTENSION",
        bytes(IPv6(**SIX) / IPv6ExtHdrFragment(m=1, nh=60) / Raw(b"\x06\x07" + bytes(14))),
    ),
    "tiny-first-fragment": ("INNER_FRAGMENT", bytes(IP(**FOUR, flags="MF", proto=6) / Raw(b"t" * 8))),
    "tcp-fragment-at-8": ("INNER_FRAGMENT", bytes(IP(**FOUR, frag=1, proto=6) / Raw(b"t" * 40))),
    "fragment-not-of-8s": ("INNER_FRAGMENT", bytes(IP(**FOUR, flags="MF", proto=17) / Raw(b"t" * 41))),
    "fragment-beyond-65535": ("INNER_FRAGMENT", bytes(IP(**FOUR, frag=8190, proto=17) / Raw(b"t" * 40))),
    "empty-fragment": ("INNER_FRAGMENT", bytes(IP(**FOUR, frag=100, proto=17))),
    "tiny-first-fragment-6": (
        "INNER_FRAGMENT",
        bytes(IPv6(**SIX) / IPv6ExtHdrFragment(m=1, nh=6) / Raw(b"t" * 16)),
    ),
    "fragment-beyond-65535-6": (
        "INNER_FRAGMENT",
        bytes(IPv6(**SIX) / IPv6ExtHdrFragment(offset=8190, nh=17) / Raw(b"t" * 32)),
    ),
    "udp-7-bytes": ("INNER_TRANSPORT", bytes(IP(**FOUR, proto=17) / Raw(b"u" * 7))),
    "udp-length-7": ("INNER_TRANSPORT", bytes(IP(**FOUR) / UDP(len=7) / Raw(b"u" * 20))),
    "udp-length-beyond": ("INNER_TRANSPORT", bytes(IP(**FOUR) / UDP(len=100) / Raw(b"u" * 20))),
    "tcp-19-bytes": ("INNER_TRANSPORT", bytes(IP(**FOUR, proto=6) / Raw(b"t" * 19))),
    "tcp-offset-4": ("INNER_TRANSPORT", bytes(IP(**FOUR) / TCP(dataofs=4) / Raw(b"t" * 20))),
    "tcp-offset-beyond": ("INNER_TRANSPORT", bytes(IP(**FOUR) / TCP(dataofs=15))),
    "icmp-7-bytes": ("INNER_TRANSPORT", bytes(IP(**FOUR, proto=1) / Raw(b"\x08" * 7))),
    "sctp-7-bytes": ("INNER_TRANSPORT", bytes(IP(**FOUR, proto=132) / Raw(b"s" * 7))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    reason, packet = REFUSED[name]
    assert DropReason(parse_packet(packet)["reason"]).name == reason
    assert parse_packet(packet).keys() == {"reason"}


ACCEPTED: dict[str, tuple[Scapy, dict[str, int]]] = {
    "udp": (IP(**FOUR, tos=0xB9, ttl=3) / UDP(sport=7, dport=9), {"l4": 20, "protocol": 17, "tos": 0xB9, "ttl": 3}),
    "ports": (IP(**FOUR) / TCP(sport=7, dport=9), {"sport": 7, "dport": 9, "fragment": WHOLE, "dont_fragment": 0}),
    "df": (IP(**FOUR, flags="DF") / UDP(), {"dont_fragment": 1}),
    "options": (IP(**FOUR, options=[IPOption(b"\x94\x04\0\0")]) / UDP(), {"l4": 24}),
    "40-option-bytes": (IP(**FOUR, options=[IPOption(b"\x01" * 40)]) / UDP(), {"l4": 60}),
    "first-fragment": (IP(**FOUR, flags="MF") / UDP(sport=5, len=99) / Raw(b"x" * 8), {"fragment": FIRST, "sport": 5}),
    "later-fragment": (IP(**FOUR, frag=2, proto=6) / Raw(b"x"), {"fragment": LATER, "sport": 0, "l4": 20}),
    "header-only": (IP(**FOUR, proto=59), {"l4": 20, "length": 20}),
    "esp": (IP(**FOUR, proto=50) / Raw(b"x"), {"protocol": 50, "sport": 0}),
    "udp6": (IPv6(**SIX, tc=0xB9, hlim=3) / UDP(sport=7), {"l4": 40, "tos": 0xB9, "ttl": 3, "dont_fragment": 1}),
    "hop-by-hop": (IPv6(**SIX) / IPv6ExtHdrHopByHop(options=pad()) / UDP(dport=4), {"l4": 48, "dport": 4}),
    "routing-2": (IPv6(**SIX) / IPv6ExtHdrRouting(type=2, addresses=["::1"]) / UDP(), {"l4": 64, "protocol": 17}),
    "ah": (IPv6(**SIX) / AH(nh=6, payloadlen=4, icv=b"\0" * 12) / TCP(), {"l4": 64, "protocol": 6}),
    "longest-chain": (
        IPv6(**SIX)
        / IPv6ExtHdrHopByHop(options=pad())
        / IPv6ExtHdrDestOpt(options=pad())
        / IPv6ExtHdrRouting(type=4)
        / IPv6ExtHdrFragment()
        / AH(nh=60, payloadlen=4, icv=b"\0" * 12)
        / IPv6ExtHdrDestOpt(options=pad())
        / TCP(sport=8),
        {"l4": 40 + 5 * 8 + 24, "protocol": 6, "sport": 8, "fragment": WHOLE},
    ),
    "atomic-fragment": (IPv6(**SIX) / IPv6ExtHdrFragment() / UDP(sport=3), {"fragment": WHOLE, "sport": 3, "l4": 48}),
    "later-fragment-6": (
        IPv6(**SIX) / IPv6ExtHdrFragment(offset=1, nh=60) / Raw(b"x"),
        {"fragment": LATER, "protocol": 60, "l4": 48},
    ),
    "256-bytes-of-options": (IPv6(**SIX) / IPv6ExtHdrDestOpt(options=pad(252)) / UDP(sport=6), {"l4": 296, "sport": 6}),
    "no-next-header": (IPv6(**SIX, nh=59), {"l4": 40, "protocol": 59}),
    "unknown-header": (IPv6(**SIX, nh=139) / Raw(b"x" * 16), {"l4": 40, "protocol": 139}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    packet, expected = ACCEPTED[name]
    found = parse_packet(bytes(packet))
    assert found["reason"] == 0
    assert {key: found[key] for key in expected} == expected
    family = found["family"]
    assert naive_inner.address(found["src"], family) == packet.src
    assert naive_inner.address(found["dst"], family) == packet.dst


@pytest.mark.parametrize("packet", SEEDS, ids=lambda packet: f"{packet[0]:02x}-{len(packet)}")
def test_twin_and_scapy_agree_on_good_packets(packet: bytes) -> None:
    found = without_hash(packet)
    assert found == naive_inner.parse(packet)
    if found["reason"]:
        return
    seen = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
    six = seen.version == 6
    assert found["length"] == (seen.plen + 40 if six else seen.len)
    assert (found["ttl"], found["tos"]) == ((seen.hlim, seen.tc) if six else (seen.ttl, seen.tos))
    layer: Scapy = seen
    offset = 0
    if AH in seen or IPv6ExtHdrFragment in seen:
        return  # scapy goes no further behind these
    while layer.__class__.__name__.startswith("IP"):
        offset += len(layer) - len(layer.payload)
        layer = layer.payload
    if found["fragment"] != LATER:
        assert found["l4"] == offset
    if isinstance(layer, TCP | UDP):
        assert (found["sport"], found["dport"]) == (layer.sport, layer.dport)


@pytest.mark.parametrize("packet", SEEDS, ids=lambda packet: f"{packet[0]:02x}-{len(packet)}")
def test_truncated_at_every_length(packet: bytes) -> None:
    """A packet cut anywhere is refused: its length field says more."""
    for length in range(min(len(packet), 300)):
        cut = packet[:length]
        found = without_hash(cut)
        assert found == naive_inner.parse(cut)
        assert found["reason"] != 0


@pytest.mark.parametrize("packet", SEEDS, ids=lambda packet: f"{packet[0]:02x}-{len(packet)}")
def test_trailing_bytes_change_nothing(packet: bytes) -> None:
    assert parse_packet(packet + b"trailer") == parse_packet(packet)


@given(st.binary(max_size=400))
def test_twin_on_noise(data: bytes) -> None:
    assert without_hash(data) == naive_inner.parse(data)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good packet with some bytes changed, sometimes cut or grown, mostly with its checksum made right again."""
    packet = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, min(len(packet), 120) - 1))
        packet[at] = draw(st.sampled_from([0, 1, 0x40, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    data = bytes(packet)
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    return seal(data) if draw(st.integers(0, 3)) else data


@pytest.mark.slow
@settings(max_examples=600)
@given(damaged())
def test_twin_on_damaged_packets(packet: bytes) -> None:
    assert without_hash(packet) == naive_inner.parse(packet)


@st.composite
def chains(draw: st.DrawFn) -> bytes:
    """IPv6 packets with any chain of extension headers, lengths and order at will."""
    kinds = st.sampled_from([0, 43, 44, 51, 60])
    upper = draw(st.sampled_from([6, 17, 58, 59, 50, 132, 0, 43]))
    body = draw(st.binary(min_size=0, max_size=40))
    if upper == 17 and len(body) >= 8:
        body = body[:4] + len(body).to_bytes(2, "big") + body[6:]
    chain = draw(st.lists(kinds, max_size=9))
    types = [*chain, upper]
    blocks = b""
    for kind, following in zip(chain, types[1:], strict=True):
        words = draw(st.integers(0, 3) | st.just(31))
        word = draw(st.sampled_from([0, 1, 8, 0xFFF8]) | st.integers(0, 0xFFFF))
        filler = word.to_bytes(2, "big")
        size = {44: 8, 51: (words + 2) * 4}.get(kind, (words + 1) * 8)
        blocks += (bytes([following, words]) + filler + bytes(300))[:size]
    data = blocks + body
    head = bytes([0x60, 0, 0, 0]) + len(data).to_bytes(2, "big") + bytes([types[0], 64])
    return head + bytes.fromhex("20010db8000300000000000000000001") * 2 + data


@pytest.mark.slow
@settings(max_examples=300)
@given(chains())
def test_twin_on_extension_chains(packet: bytes) -> None:
    assert without_hash(packet) == naive_inner.parse(packet)


@given(st.sampled_from(SEEDS), st.binary(min_size=1, max_size=8))
def test_hash_is_of_the_flow_alone(packet: bytes, tail: bytes) -> None:
    """TTL, TOS, identification and payload do not matter; addresses and, outside fragments, ports do."""
    found = parse_packet(packet)
    if found["reason"] or found["family"] == 6:
        return
    other = seal(packet[:1] + tail[:1] + packet[2:4] + b"\x55\xaa" + packet[6:8] + b"\x09" + packet[9:])
    assert parse_packet(other)["hash"] == found["hash"]
    moved = seal(packet[:15] + bytes([packet[15] ^ tail[0] or 1]) + packet[16:])
    assert moved == packet or parse_packet(moved)["hash"] != found["hash"]


def test_fragments_of_one_datagram_share_a_hash() -> None:
    first = bytes(IP(**FOUR, flags="MF", id=3) / UDP(sport=5, len=99) / Raw(b"x" * 8))
    later = bytes(IP(**FOUR, frag=2, id=3, proto=17) / Raw(b"x" * 8))
    assert parse_packet(first)["hash"] == parse_packet(later)["hash"]


def test_hashes_spread() -> None:
    """Eight source ports must not be chosen by one bit: 4,096 flows fill 64 bins evenly."""
    bins = [0] * 64
    for sport in range(4096):
        packet = bytes.fromhex("45000030000000004011000000000000000000000000000000080000")
        packet = packet[:12] + b"\x0a\xf4\x03\x0a\x0a\xf4\x02\x06" + sport.to_bytes(2, "big") + b"\0\x35\0\x08\0\0"
        bins[parse_packet(seal(packet[:2] + b"\0\x1c" + packet[4:]))["hash"] >> 26] += 1
    assert max(bins) < 2 * 64
    assert min(bins) > 64 // 2
