# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The VXLAN header (RFC 7348 section 5) with the inner Ethernet header behind it, as flannel and Linux use them.

    0x08 | 3 reserved bytes | VNI, 3 bytes | 1 reserved byte | destination MAC | source MAC | ethertype

Linux drops a frame with any reserved bit set although RFC 7348 says to ignore them (drivers/net/vxlan/vxlan_core.c,
`vxlan_rcv`); that is the default here too, `strict=False` gives the RFC's rule. The inner header is constant per
peer, so it is built once and copied.
"""

import cython
from cython.cimports.encap.bytes import load16, load32, store16, store32
from cython.cimports.encap.drops import DropReason
from cython.cimports.libc.stdint import uint16_t, uint32_t
from cython.cimports.libc.string import memcmp, memcpy


def check_header(data, length, vni, strict):
    """PASS, or which rule the 8 bytes break; `length` counts the whole UDP payload."""
    if length < VXLAN_HEADER + ETHERNET_HEADER:
        return DropReason.VXLAN_SHORT
    if not data[0] & 0x08:
        return DropReason.VXLAN_FLAGS
    word: uint32_t = load32(data + 4)
    if strict and (load32(data) != 0x08000000 or word & 0xFF):
        return DropReason.VXLAN_RESERVED
    if word >> 8 != vni:
        return DropReason.VXLAN_VNI
    return DropReason.PASS


def check_ethernet(data, own, peer):
    """PASS, INNER_MAC or INNER_ETHERTYPE for the 14 bytes at `data`.

    A peer whose lease names no MAC is held to what Linux asks of a sender (`vxlan_set_mac`): a valid unicast source
    that is not the receiver's own.
    """
    kind: uint16_t = load16(data + 12)
    if kind != ETHERTYPE_IPV4 and kind != ETHERTYPE_IPV6:
        return DropReason.INNER_ETHERTYPE
    if memcmp(data, own, 6) != 0:
        return DropReason.INNER_MAC
    if peer != cython.NULL:
        return DropReason.INNER_MAC if memcmp(data + 6, peer, 6) != 0 else DropReason.PASS
    if data[6] & 1 or memcmp(data + 6, own, 6) == 0 or (load32(data + 6) == 0 and load16(data + 10) == 0):
        return DropReason.INNER_MAC
    return DropReason.PASS


def build_header(out, vni, destination, source):
    """Write the 22 bytes for one peer."""
    store32(out, 0x08000000)
    store32(out + 4, vni << 8)
    memcpy(out + 8, destination, 6)
    memcpy(out + 14, source, 6)
    store16(out + 20, ETHERTYPE_IPV4)


def stamp(out, header, family):
    """Copy a peer's header in front of a packet, with the ethertype of its family."""
    memcpy(out, header, ENCAPSULATION)
    if family == 6:
        out[20] = 0x86
        out[21] = 0xDD


def encapsulate(packet: bytes, *, vni: int, destination: bytes, source: bytes) -> bytes:
    """UDP payload that carries the IP packet to the VTEP `destination` (MACs are 6 bytes each).

    Raises ValueError for a VNI outside 0..2**24-1, a MAC that is not 6 bytes, or an empty packet.
    """
    out = cython.declare(cython.uchar[22])
    if not 0 <= vni < 1 << 24 or len(destination) != 6 or len(source) != 6 or not packet:
        raise ValueError("a VNI has 24 bits, a MAC 6 bytes, a packet at least one byte")
    build_header(out, vni, cython.cast(cython.p_uchar, destination), cython.cast(cython.p_uchar, source))
    stamp(out, out, packet[0] >> 4)
    return out[:22] + packet


def decapsulate(
    payload: bytes, *, vni: int, own: bytes, peer: bytes | None, strict: bool = True
) -> tuple[int, bytes]:
    """(PASS, inner packet) or (drop reason, b"") for a UDP payload that came from the VTEP with MAC `peer`; None: any
    unicast source but `own`."""
    data: cython.p_uchar = payload
    source: cython.p_uchar = cython.NULL
    if len(own) != 6 or (peer is not None and len(peer) != 6):
        raise ValueError("a MAC has 6 bytes")
    if peer is not None:
        source = peer
    reason: cython.int = check_header(data, cython.cast(uint32_t, len(payload)), vni, strict)
    if reason == DropReason.PASS:
        reason = check_ethernet(data + 8, cython.cast(cython.p_uchar, own), source)
    if reason != DropReason.PASS:
        return reason, b""
    return 0, payload[22:]
