# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What tells flows apart: family, protocol, both addresses and ports, in an order that both directions share.

The hash is keyed with random words of the process, so that nobody outside can choose flows that fall into one bucket:
a multilinear hash over 32-bit words (Lemire and Kaser 2012) with a finalizer that spreads it over 64 bits.

Limits: of ICMP only echo has an identifier in the key, all other queries between two addresses are one flow; the
quote of an ICMP error is read without IPv6 extension headers.
"""

import cython
from cython.cimports.encap.bytes import load16, load32, load64
from cython.cimports.encap.inner import (
    IPPROTO_DCCP,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
)
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t


def flow_key(inner, packet, key):
    """Key of a packet and the side that sent it."""
    sport: uint32_t = inner.sport
    dport: uint32_t = inner.dport
    if inner.protocol == IPPROTO_ICMP or inner.protocol == IPPROTO_ICMPV6:
        echo_ports(inner.family, inner.protocol, packet + inner.l4, cython.address(sport), cython.address(dport))
    key.family = inner.family
    key.protocol = inner.protocol
    return order_ends(key, inner.src_high, inner.src_low, sport, inner.dst_high, inner.dst_low, dport)


def order_ends(key, src_high, src_low, sport, dst_high, dst_low, dport):
    """Put the lower end first; the side of the source."""
    side: uint32_t = 0
    if src_high != dst_high:
        side = src_high > dst_high
    elif src_low != dst_low:
        side = src_low > dst_low
    else:
        side = sport > dport
    key.high[side] = src_high
    key.low[side] = src_low
    key.port[side] = sport
    key.high[1 - side] = dst_high
    key.low[1 - side] = dst_low
    key.port[1 - side] = dport
    return side


def is_echo(family, protocol, kind):
    """Whether this is an echo request or reply, by its ICMP type."""
    if family == 4:
        return protocol == IPPROTO_ICMP and (kind == 8 or kind == 0)
    return protocol == IPPROTO_ICMPV6 and (kind == 128 or kind == 129)


def is_echo_reply(family, protocol, kind):
    """Whether this is an echo reply, by its ICMP type."""
    return kind == 0 and protocol == IPPROTO_ICMP if family == 4 else kind == 129 and protocol == IPPROTO_ICMPV6


def echo_ports(family, protocol, l4, sport, dport):
    """Which end asks is part of the key: the answer of one ping must not pass for the question of another.

    The answering end has the identifier plus one. Two pings in opposite directions would have one key if each
    identifier were the other one plus one, which cannot be.
    """
    identifier: uint32_t = load16(l4 + 4)
    sport[0] = 0
    dport[0] = 0
    if is_echo_reply(family, protocol, l4[0]):
        sport[0] = (identifier + 1) & 0xFFFF
        dport[0] = identifier
    elif is_echo(family, protocol, l4[0]):
        sport[0] = identifier
        dport[0] = (identifier + 1) & 0xFFFF


def is_error(inner, packet):
    """Whether the packet is an ICMP or ICMPv6 error that quotes another one (RFC 792, RFC 4443 section 2.1)."""
    kind: uint8_t = packet[inner.l4]
    if inner.family == 4:
        return inner.protocol == IPPROTO_ICMP and (kind == 3 or kind == 11 or kind == 12 or kind == 4)
    return inner.protocol == IPPROTO_ICMPV6 and kind < 128


def quoted_key(inner, packet, key):
    """Key of the quoted packet, of which the IP header and 8 bytes must be there; NO_QUOTE when they are not."""
    quote: cython.pointer(cython.const[uint8_t]) = packet + inner.l4 + 8
    room: uint32_t = inner.length - inner.l4
    header: uint32_t = 40
    sport: uint32_t = 0
    dport: uint32_t = 0
    if room < 36 or quote[0] >> 4 != inner.family:
        return NO_QUOTE
    room -= 8
    if inner.family == 4:
        header = cython.cast(uint32_t, quote[0] & 15) * 4
        if header < 20 or load16(quote + 6) & 0x1FFF:
            return NO_QUOTE
    if room < header + 8:
        return NO_QUOTE
    key.family = inner.family
    key.protocol = quote[9] if inner.family == 4 else quote[6]
    if key.protocol in (IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP, IPPROTO_UDPLITE, IPPROTO_DCCP):
        sport = load16(quote + header)
        dport = load16(quote + header + 2)
    elif key.protocol == IPPROTO_ICMP or key.protocol == IPPROTO_ICMPV6:
        echo_ports(inner.family, key.protocol, quote + header, cython.address(sport), cython.address(dport))
    if inner.family == 4:
        return order_ends(key, 0, load32(quote + 12), sport, 0, load32(quote + 16), dport)
    return order_ends(
        key, load64(quote + 8), load64(quote + 16), sport, load64(quote + 24), load64(quote + 32), dport
    )


def flow_hash(key, secret):
    """64 bits; `secret` has SECRET_WORDS random words."""
    ports: uint64_t = (cython.cast(uint64_t, key.port[0]) << 16) | key.port[1]
    h: uint64_t = secret[0]
    h += (secret[1] + ports) * (secret[2] + key.protocol)
    h += (secret[3] + cython.cast(uint32_t, key.low[0])) * (secret[4] + cython.cast(uint32_t, key.low[1]))
    if key.family == 6:
        h += (secret[5] + (key.low[0] >> 32)) * (secret[6] + (key.low[1] >> 32))
        h += (secret[7] + (key.high[0] >> 32)) * (secret[8] + (key.high[1] >> 32))
        h += (secret[9] + cython.cast(uint32_t, key.high[0])) * (secret[10] + cython.cast(uint32_t, key.high[1]))
    # Finalizer in the shape of MurmurHash3's, with the multipliers of `encap.inner.mix` and of xorshift*.
    h ^= h >> 33
    h *= (cython.cast(uint64_t, 0x1E3779B9) << 32) | 0x7F4A7C15
    h ^= h >> 29
    h *= (cython.cast(uint64_t, 0x2545F491) << 32) | 0x4F6CDD1D
    h ^= h >> 32
    return h
