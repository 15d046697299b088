# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The one parser of inner packets: strict, bounded, no allocation, for every path a packet can take.

Theory of operation. `parse` reads an IPv4 (RFC 791) or IPv6 (RFC 8200) packet of which `captured` bytes are present
and either fills an `Inner` or names the drop reason. Lengths come from the IP header and are never trusted beyond the
captured bytes; trailing bytes are cut. The IPv4 header checksum is verified because neither a TUN write nor the
underlay does it for us. IPv6 extension headers are walked at most 8 deep and 256 bytes far, each kind once except
destination options (RFC 8200 section 4.1); a type 0 routing header is refused (RFC 5095). A first fragment must hold
its whole transport header (RFC 1858, RFC 7112), so later code may rely on ports wherever `fragment` is not
LATER_FRAGMENT.

Limits: transport checksums are not verified here (`tun.checksum` does it where frames merge); ESP and unknown
protocols are opaque; jumbograms (RFC 2675) are refused.
"""

import cython
from cython.cimports.encap.bytes import load16, load32, load64
from cython.cimports.encap.checksum import fold, header_sum, update16
from cython.cimports.encap.drops import DropReason
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t


def mix(a, b):
    """32 well-mixed bits of two 64-bit words (multiply-xorshift)."""
    k: uint64_t = (cython.cast(uint64_t, 0x1E3779B9) << 32) | 0x7F4A7C15
    h: uint64_t = (a ^ (b * k)) * k
    h ^= h >> 29
    h *= k
    return cython.cast(uint32_t, h >> 32)


def parse(packet, captured, inner):
    """Decode the packet into `inner`; PASS or a drop reason."""
    if captured < 20:
        return DropReason.INNER_SHORT
    version: uint8_t = packet[0] >> 4
    if version == 4:
        return parse4(packet, captured, inner)
    if version == 6:
        return parse6(packet, captured, inner)
    return DropReason.INNER_VERSION


def parse4(packet, captured, inner):
    """IPv4 half of `parse`."""
    header: uint32_t = cython.cast(uint32_t, packet[0] & 15) * 4
    total: uint32_t = load16(packet + 2)
    if header < 20 or header > captured or header > total:
        return DropReason.INNER_HEADER
    if total > captured:
        return DropReason.INNER_LENGTH
    if fold(header_sum(packet, header)) != 0xFFFF:
        return DropReason.INNER_CHECKSUM
    inner.family = 4
    inner.length = total
    inner.l4 = cython.cast(uint16_t, header)
    inner.tos = packet[1]
    inner.ttl = packet[8]
    inner.protocol = packet[9]
    inner.src_high = 0
    inner.dst_high = 0
    inner.src_low = load32(packet + 12)
    inner.dst_low = load32(packet + 16)
    word: uint32_t = load16(packet + 6)
    inner.dont_fragment = (word >> 14) & 1
    offset: uint32_t = (word & 0x1FFF) * 8
    more: cython.bint = (word & 0x2000) != 0
    inner.fragment = Fragment.WHOLE
    if more or offset:
        if (more and (total - header) % 8) or offset + total - header > 65535 or total == header:
            return DropReason.INNER_FRAGMENT
        inner.fragment = Fragment.LATER_FRAGMENT if offset else Fragment.FIRST_FRAGMENT
        inner.fragment_id = load16(packet + 4)
        if offset == 8 and inner.protocol == IPPROTO_TCP:
            return DropReason.INNER_FRAGMENT
    return parse_transport(packet, inner)


def parse6(packet, captured, inner):
    """IPv6 half of `parse`."""
    if captured < 40:
        return DropReason.INNER_SHORT
    total: uint32_t = cython.cast(uint32_t, load16(packet + 4)) + 40
    if total > captured:
        return DropReason.INNER_LENGTH
    inner.family = 6
    inner.length = total
    inner.tos = cython.cast(uint8_t, load16(packet) >> 4)
    inner.ttl = packet[7]
    inner.src_high = load64(packet + 8)
    inner.src_low = load64(packet + 16)
    inner.dst_high = load64(packet + 24)
    inner.dst_low = load64(packet + 32)
    inner.dont_fragment = 1
    inner.fragment = Fragment.WHOLE
    reason: cython.int = walk_extensions(packet, inner, packet[6])
    if reason != DropReason.PASS:
        return reason
    return parse_transport(packet, inner)


def walk_extensions(packet, inner, next_header):
    """Set `l4`, `protocol` and `fragment` of an IPv6 packet; PASS or a drop reason."""
    offset: uint32_t = 40
    size: uint32_t
    seen: uint32_t = 0
    kind: uint32_t
    word: uint32_t
    count: uint32_t
    for count in range(MAX_EXTENSION_HEADERS + 1):
        if next_header == 0:
            kind = 1
        elif next_header == 43:
            kind = 2
        elif next_header == 44:
            kind = 4
        elif next_header == 51:
            kind = 8
        elif next_header == 60:
            # Destination options may stand before a routing header and again last (RFC 8200 section 4.1).
            kind = 32 if seen & 16 else 16
        else:
            inner.l4 = cython.cast(uint16_t, offset)
            inner.protocol = next_header
            return DropReason.PASS
        if count == MAX_EXTENSION_HEADERS or seen & kind or (kind == 1 and count != 0):
            return DropReason.INNER_EXTENSION
        seen |= kind
        if offset + 8 > inner.length:
            return DropReason.INNER_EXTENSION
        if kind == 8:
            size = (cython.cast(uint32_t, packet[offset + 1]) + 2) * 4
        elif kind == 4:
            size = 8
        else:
            size = (cython.cast(uint32_t, packet[offset + 1]) + 1) * 8
        if offset + size > inner.length or offset + size > 40 + MAX_EXTENSION_BYTES:
            return DropReason.INNER_EXTENSION
        if kind == 2 and packet[offset + 2] == 0:
            return DropReason.INNER_EXTENSION
        if kind == 4:
            word = load16(packet + offset + 2)
            size = inner.length - offset - 8
            if size == 0 or (word & 1 and size % 8) or (word & 0xFFF8) + size > 65535:
                return DropReason.INNER_FRAGMENT
            size = 8
            inner.fragment_id = load32(packet + offset + 4)
            if word & 0xFFF8:
                inner.fragment = Fragment.LATER_FRAGMENT
                inner.l4 = cython.cast(uint16_t, offset + 8)
                inner.protocol = packet[offset]
                return DropReason.PASS
            if word & 1:
                inner.fragment = Fragment.FIRST_FRAGMENT
        next_header = packet[offset]
        offset += size
    return DropReason.INNER_EXTENSION


def parse_transport(packet, inner):
    """Check the transport header, read ports, hash the flow."""
    size: uint32_t = inner.length - inner.l4
    need: uint32_t = 0
    l4: cython.pointer(cython.const[uint8_t]) = packet + inner.l4
    inner.sport = 0
    inner.dport = 0
    ports: uint64_t = 0
    if inner.fragment != Fragment.LATER_FRAGMENT:
        if inner.protocol == IPPROTO_TCP:
            need = 20
            if size >= 20:
                need = cython.cast(uint32_t, l4[12] >> 4) * 4
                if need < 20:
                    return DropReason.INNER_TRANSPORT
        elif inner.protocol == IPPROTO_UDP:
            need = 8
            if size >= 8 and inner.fragment == Fragment.WHOLE:
                need = load16(l4 + 4)
                if need < 8:
                    return DropReason.INNER_TRANSPORT
        elif inner.protocol in (IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_UDPLITE, IPPROTO_DCCP):
            need = 8
        if size < need:
            return DropReason.INNER_FRAGMENT if inner.fragment else DropReason.INNER_TRANSPORT
        if need and inner.protocol != IPPROTO_ICMP and inner.protocol != IPPROTO_ICMPV6:
            inner.sport = load16(l4)
            inner.dport = load16(l4 + 2)
            if inner.fragment == Fragment.WHOLE:
                ports = (cython.cast(uint64_t, inner.sport) << 24) | (cython.cast(uint64_t, inner.dport) << 8)
    if inner.family == 4:
        inner.hash = mix((inner.src_low << 32) | inner.dst_low, ports | inner.protocol)
    else:
        inner.hash = mix(
            inner.src_high ^ (inner.dst_low << 1), inner.src_low ^ (inner.dst_high << 1) ^ (ports << 8) ^ inner.protocol
        )
    return DropReason.PASS


def unicast4(address):
    """Whether an IPv4 address may be source or destination of routed traffic (not 0/8, 127/8, 224/3)."""
    top: uint32_t = address >> 24
    return top != 0 and top != 127 and top < 224


def unicast6(high, low):
    """Whether an IPv6 address may be routed: not ::/64 (unspecified, loopback, mapped), link-local or multicast.

    64:ff9b::/96, which NAT64 uses (RFC 6052), is unicast like any other.
    """
    return high != 0 and high >> 56 != 0xFF and (high >> 54) != 0x3FA


def decrement_ttl(packet):
    """One hop less, in place."""
    old: uint16_t
    if packet[0] >> 4 == 6:
        packet[7] -= 1
        return
    old = load16(packet + 8)
    packet[8] -= 1
    check: uint16_t = update16(load16(packet + 10), old, cython.cast(uint16_t, old - 0x100))
    packet[10] = cython.cast(uint8_t, check >> 8)
    packet[11] = cython.cast(uint8_t, check & 0xFF)


def parse_packet(packet: cython.const[cython.uchar][::1]) -> dict:
    """Decoded headers of `packet` as a dict; `{"reason": DropReason}` alone when it is refused.

    Keys as in `Inner`; addresses are integers of the family's width.
    """
    inner: Inner
    if packet.shape[0] == 0:
        return {"reason": DropReason.INNER_SHORT}
    reason: cython.int = parse(cython.address(packet[0]), cython.cast(uint32_t, packet.shape[0]), cython.address(inner))
    if reason != DropReason.PASS:
        return {"reason": reason}
    src: object = (cython.cast(object, inner.src_high) << 64) | inner.src_low
    dst: object = (cython.cast(object, inner.dst_high) << 64) | inner.dst_low
    return {
        "reason": 0,
        "family": inner.family,
        "length": inner.length,
        "l4": inner.l4,
        "protocol": inner.protocol,
        "tos": inner.tos,
        "ttl": inner.ttl,
        "fragment": inner.fragment,
        "dont_fragment": inner.dont_fragment,
        "sport": inner.sport,
        "dport": inner.dport,
        "hash": inner.hash,
        "src": src,
        "dst": dst,
    }
