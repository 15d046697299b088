# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""ICMP and ICMPv6 errors that a router owes its neighbours (RFC 792, 1191, 1812 section 4.3.2, 4443).

Never in answer to an ICMP error, to a later fragment, or about a packet whose source or destination is not unicast;
rate-limited per port. The quote is as much of the packet as fits 576 bytes (IPv4) or 1280 bytes (IPv6).
"""

import cython
from cython.cimports.encap.bytes import store16, store32, store64
from cython.cimports.encap.checksum import fold, header_sum
from cython.cimports.encap.inner import IPPROTO_ICMP, IPPROTO_ICMPV6, LATER_FRAGMENT, unicast4, unicast6
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset


def allow(limiter, port, now):
    """Take a token of the port's bucket; False when it is empty."""
    i: uint32_t = port % ICMP_BUCKETS
    period: uint64_t = 10_000_000
    earned: uint64_t = (now - limiter.stamp[i]) / period
    if earned:
        limiter.stamp[i] = now
        earned += limiter.tokens[i]
        limiter.tokens[i] = cython.cast(uint32_t, earned if earned < ICMP_RATE else ICMP_RATE)
    if limiter.tokens[i] == 0:
        limiter.limited += 1
        return False
    limiter.tokens[i] -= 1
    limiter.sent += 1
    return True


def answerable(packet, inner):
    """Whether RFC 1812 section 4.3.2.7 and RFC 4443 section 2.4 allow an error about this packet."""
    kind: uint8_t
    if inner.fragment == LATER_FRAGMENT:
        return False
    if inner.protocol == IPPROTO_ICMP and inner.family == 4:
        kind = packet[inner.l4]
        # Echo, timestamp and the other queries and replies are fine; errors and redirects are not.
        if kind == 3 or kind == 4 or kind == 5 or kind == 11 or kind == 12:
            return False
    if inner.protocol == IPPROTO_ICMPV6 and inner.family == 6 and (packet[inner.l4] < 128 or packet[inner.l4] == 137):
        return False
    if inner.family == 4:
        return (
            unicast4(cython.cast(uint32_t, inner.src_low)) and unicast4(cython.cast(uint32_t, inner.dst_low))
        )
    return unicast6(inner.src_high, inner.src_low) and unicast6(inner.dst_high, inner.dst_low)


def build_error(out, packet, inner, kind, mtu, source4, source_high6, source_low6):
    """Write the error of this kind; `mtu` counts for PACKET_TOO_BIG only."""
    if not answerable(packet, inner):
        return 0
    if inner.family == 4:
        return build4(out, packet, inner, kind, mtu, source4) if source4 else 0
    return build6(out, packet, inner, kind, mtu, source_high6, source_low6) if source_high6 else 0


def build4(out, packet, inner, kind, mtu, source):
    """IPv4: type 3 code 0, 1, 13 (RFC 1812) or 4 with the next-hop MTU (RFC 1191), type 11 code 0."""
    quote: uint32_t = inner.length if inner.length < 548 else 548
    memset(out, 0, 28)
    out[0] = 0x45
    out[1] = 0xC0
    store16(out + 2, 28 + quote)
    out[8] = 64
    out[9] = IPPROTO_ICMP
    store32(out + 12, source)
    memcpy(out + 16, packet + 12, 4)
    store16(out + 10, fold(header_sum(out, 20)) ^ 0xFFFF)
    if kind == TIME_EXCEEDED:
        out[20] = 11
    else:
        out[20] = 3
        if kind == HOST_UNREACHABLE:
            out[21] = 1
        elif kind == PROHIBITED:
            out[21] = 13
        elif kind == PACKET_TOO_BIG:
            out[21] = 4
            store16(out + 26, mtu)
    memcpy(out + 28, packet, quote)
    store16(out + 22, fold(header_sum(out + 20, 8 + quote)) ^ 0xFFFF)
    return 28 + quote


def build6(out, packet, inner, kind, mtu, high, low):
    """IPv6: type 1 code 0, 1 or 3, type 2 with the MTU, type 3 code 0."""
    quote: uint32_t = inner.length if inner.length < ICMP_BUFFER - 48 else ICMP_BUFFER - 48
    total: uint64_t
    memset(out, 0, 48)
    out[0] = 0x60
    store16(out + 4, 8 + quote)
    out[6] = IPPROTO_ICMPV6
    out[7] = 64
    store64(out + 8, high)
    store64(out + 16, low)
    memcpy(out + 24, packet + 8, 16)
    if kind == TIME_EXCEEDED:
        out[40] = 3
    elif kind == PACKET_TOO_BIG:
        out[40] = 2
        store32(out + 44, mtu)
    else:
        out[40] = 1
        if kind == HOST_UNREACHABLE:
            out[41] = 3
        elif kind == PROHIBITED:
            out[41] = 1
    memcpy(out + 48, packet, quote)
    total = header_sum(out + 8, 32) + 8 + quote + IPPROTO_ICMPV6 + header_sum(out + 40, 8 + quote)
    store16(out + 42, fold(total) ^ 0xFFFF)
    return 48 + quote
