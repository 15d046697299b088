# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Where the headers of an IP frame are, as far as merging needs to know, and the hash of its flow.

Strict and bounded: lengths in the IP, TCP and UDP headers have to agree with the length of the frame. `Kind` in the
.pxd says what a frame can take part in. Not a policy parser: a frame that is refused here is still carried.
"""

import cython
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.tun.checksum import fold, payload_sum
from cython.cimports.tun.wire import load16, load32


def parse(frame, length, p):
    """Where the headers of a frame are, and whether it can take part in merging (see Kind in the .pxd)."""
    memset(p, 0, cython.sizeof(Parsed))
    if length < 20:
        return KIND_OTHER
    p.family = frame[0] >> 4
    if p.family == 4:
        return parse_ipv4(frame, length, p)
    if p.family == 6 and length >= 40:
        return parse_ipv6(frame, length, p)
    return KIND_OTHER


def parse_ipv4(frame, length, p):
    """IPv4 part of parse."""
    ihl: uint32_t = (frame[0] & 0x0F) * 4
    if ihl < 20 or ihl > length:
        return KIND_OTHER
    p.protocol = frame[9]
    if fold(payload_sum(frame, ihl)) != 0xFFFF:
        p.damaged = 1
        return KIND_ODD
    if load16(frame + 6) & 0x3FFF:
        return KIND_ODD
    if p.protocol != 6 and p.protocol != 17:
        return KIND_OTHER
    if load16(frame + 2) != length:
        return KIND_ODD
    p.l4 = ihl
    return KIND_ODD if parse_l4(frame, length, p) == KIND_ODD or ihl > 20 else KIND_FLOW


def parse_ipv6(frame, length, p):
    """IPv6 part of parse; walks hop-by-hop, routing and destination headers to find TCP or UDP."""
    offset: uint32_t = 40
    p.protocol = frame[6]
    if load16(frame + 4) + 40 != length:
        return KIND_ODD
    while p.protocol == 0 or p.protocol == 43 or p.protocol == 60:
        if offset + 8 > length:
            return KIND_ODD
        p.protocol = frame[offset]
        offset += (cython.cast(uint32_t, frame[offset + 1]) + 1) * 8
    if p.protocol == 44:
        return KIND_ODD
    if p.protocol != 6 and p.protocol != 17:
        return KIND_OTHER
    if offset > length:
        return KIND_ODD
    p.l4 = offset
    return KIND_ODD if parse_l4(frame, length, p) == KIND_ODD or offset > 40 else KIND_FLOW


def parse_l4(frame, length, p):
    """Transport part of parse; an unusable transport header makes `l4` 0 again."""
    l4 = frame + p.l4
    size: uint32_t = length - p.l4
    header: uint32_t = 8
    if p.protocol == 6:
        header = (l4[12] >> 4) * 4 if size >= 20 else 0
    if header < (20 if p.protocol == 6 else 8) or header > size or (p.protocol == 17 and load16(l4 + 4) != size):
        p.l4 = 0
        return KIND_ODD
    p.header_length = p.l4 + header
    p.payload_length = size - header
    return KIND_FLOW


def flow_hash(fd, zone, frame, p):
    """Non-zero 32-bit hash of what same_flow compares."""
    odd: uint64_t = (cython.cast(uint64_t, 0x5BD1E995) << 32) + 0x1B873593
    word: uint64_t = 0
    mixed: uint64_t = (cython.cast(uint64_t, zone) << 32) ^ cython.cast(uint32_t, fd) ^ (p.protocol << 24)
    i: cython.int = 0
    if p.family == 4:
        memcpy(cython.address(word), frame + 12, 8)
        mixed = (mixed ^ word) * odd
    else:
        for i in range(4):
            memcpy(cython.address(word), frame + 8 + 8 * i, 8)
            mixed = (mixed ^ word) * odd
            mixed ^= mixed >> 29
    mixed = ((mixed ^ (mixed >> 32)) + load32(frame + p.l4)) * odd
    return cython.cast(uint32_t, mixed >> 32) | 1
