"""VXLAN header: bytes out, bytes in, and the rule for reserved bits in both modes. Scapy is the second opinion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from encap.drops import DropReason
from encap.vxlan import decapsulate, encapsulate

OWN, PEER = bytes.fromhex("020000000002"), bytes.fromhex("020000000003")
PACKET = bytes(IP(src="10.244.3.1", dst="10.244.2.1") / UDP())
PACKET6 = bytes(IPv6(src="2001:db8:3::1", dst="2001:db8:2::1") / UDP())
GOOD = encapsulate(PACKET, vni=1, destination=OWN, source=PEER)
macs = st.binary(min_size=6, max_size=6)
vnis = st.integers(0, 2**24 - 1)


def open_it(
    payload: bytes, *, strict: bool = True, vni: int = 1, peer: bytes | None = PEER
) -> tuple[DropReason, bytes]:
    reason, packet = decapsulate(payload, vni=vni, own=OWN, peer=peer, strict=strict)
    return DropReason(reason), packet


def test_layout() -> None:
    """RFC 7348 figure 1, byte by byte."""
    payload = encapsulate(PACKET, vni=0x123456, destination=OWN, source=PEER)
    assert payload.hex() == "0800000012345600" + OWN.hex() + PEER.hex() + "0800" + PACKET.hex()
    assert encapsulate(PACKET6, vni=1, destination=OWN, source=PEER)[20:22] == b"\x86\xdd"


@given(vnis, macs, macs, st.sampled_from([PACKET, PACKET6]))
def test_scapy_reads_what_we_write(vni: int, destination: bytes, source: bytes, packet: bytes) -> None:
    frame = VXLAN(encapsulate(packet, vni=vni, destination=destination, source=source))
    assert (int(frame.flags), frame.vni, frame.reserved1, frame.reserved2) == (8, vni, 0, 0)
    assert (frame[Ether].dst, frame[Ether].src) == (destination.hex(":"), source.hex(":"))
    assert bytes(frame[Ether].payload) == packet


@given(vnis, st.sampled_from([PACKET, PACKET6]))
def test_we_read_what_scapy_writes(vni: int, packet: bytes) -> None:
    inside = Ether(dst=OWN.hex(":"), src=PEER.hex(":"), type=0x0800 if packet is PACKET else 0x86DD)
    payload = bytes(VXLAN(vni=vni, flags="Instance") / inside) + packet
    assert open_it(payload, vni=vni) == (DropReason.PASS, packet)


@pytest.mark.parametrize("length", range(22))
def test_short(length: int) -> None:
    assert open_it(GOOD[:length]) == (DropReason.VXLAN_SHORT, b"")


def test_header_without_packet_is_the_parsers_business() -> None:
    assert open_it(GOOD[:22]) == (DropReason.PASS, b"")


@pytest.mark.parametrize("bit", [bit for bit in range(64) if not 32 <= bit < 56])
@pytest.mark.parametrize("strict", [True, False])
def test_reserved_bits(bit: int, strict: bool) -> None:
    """Linux drops every reserved bit (vxlan_rcv); RFC 7348 section 5 ignores them on receipt."""
    header = int.from_bytes(GOOD[:8], "big") ^ (1 << (63 - bit))
    reason, _ = open_it(header.to_bytes(8, "big") + GOOD[8:], strict=strict)
    if bit == 4:
        assert reason == DropReason.VXLAN_FLAGS
    else:
        assert reason == (DropReason.VXLAN_RESERVED if strict else DropReason.PASS)


@pytest.mark.parametrize("bit", range(24))
def test_any_other_vni(bit: int) -> None:
    assert open_it(GOOD, vni=1 ^ (1 << bit))[0] == DropReason.VXLAN_VNI


@pytest.mark.parametrize("byte", range(12))
def test_any_other_mac(byte: int) -> None:
    payload = bytearray(GOOD)
    payload[8 + byte] ^= 0x10
    assert open_it(bytes(payload))[0] == DropReason.INNER_MAC


@given(macs | st.sampled_from([OWN, bytes(6)]), macs | st.just(OWN))
def test_a_sender_without_a_known_mac_is_held_to_linux_rule(source: bytes, destination: bytes) -> None:
    payload = encapsulate(PACKET, vni=1, destination=destination, source=source)
    fine = destination == OWN and source != OWN and any(source) and not source[0] & 1
    assert open_it(payload, peer=None) == ((DropReason.PASS, PACKET) if fine else (DropReason.INNER_MAC, b""))


@pytest.mark.parametrize("kind", [0x0806, 0x8100, 0x88A8, 0x0000, 0xFFFF, 0x0801, 0x86DC])
def test_any_other_ethertype(kind: int) -> None:
    assert open_it(GOOD[:20] + kind.to_bytes(2, "big") + PACKET)[0] == DropReason.INNER_ETHERTYPE


@given(st.binary(max_size=64), st.booleans())
def test_twin_on_noise(payload: bytes, strict: bool) -> None:
    assert open_it(payload, strict=strict)[0] == naive(payload, strict)


@given(st.lists(st.tuples(st.integers(0, 21), st.integers(0, 255)), max_size=4), st.booleans())
def test_twin_on_damaged_headers(changes: list[tuple[int, int]], strict: bool) -> None:
    payload = bytearray(GOOD)
    for at, value in changes:
        payload[at] = value
    assert open_it(bytes(payload), strict=strict)[0] == naive(bytes(payload), strict)


def naive(payload: bytes, strict: bool) -> DropReason:
    if len(payload) < 22:
        return DropReason.VXLAN_SHORT
    bits = f"{int.from_bytes(payload[:8], 'big'):064b}"
    if bits[4] == "0":
        return DropReason.VXLAN_FLAGS
    if strict and "1" in bits[:4] + bits[5:32] + bits[56:]:
        return DropReason.VXLAN_RESERVED
    if int(bits[32:56], 2) != 1:
        return DropReason.VXLAN_VNI
    if payload[20:22] not in (b"\x08\0", b"\x86\xdd"):
        return DropReason.INNER_ETHERTYPE
    return DropReason.PASS if payload[8:20] == OWN + PEER else DropReason.INNER_MAC


@pytest.mark.parametrize(
    "wrong",
    [{"vni": -1}, {"vni": 1 << 24}, {"destination": b"\0" * 5}, {"source": b"\0" * 7}, {"packet": b""}],
    ids=str,
)
def test_encapsulate_refuses(wrong: dict[str, object]) -> None:
    fields: dict[str, object] = {"packet": PACKET, "vni": 1, "destination": OWN, "source": PEER} | wrong
    packet = fields.pop("packet")
    with pytest.raises(ValueError, match="24 bits"):
        encapsulate(packet, **fields)  # type: ignore[arg-type]


def test_decapsulate_refuses_a_short_mac() -> None:
    with pytest.raises(ValueError, match="6 bytes"):
        decapsulate(GOOD, vni=1, own=OWN[:5], peer=PEER)
