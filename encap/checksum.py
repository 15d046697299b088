# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Header checksums: the Internet checksum (RFC 1071) over short headers and its incremental update (RFC 1624).

Payload-sized sums belong to `tun.checksum`; here at most an IPv4 header (60 bytes) is summed.
All 16-bit values are host integers read big-endian from the wire.
"""

import cython
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t


def fold(total):
    """Fold a 64-bit one's-complement accumulator to 16 bits (RFC 1071 section 2)."""
    total = cython.cast(uint64_t, cython.cast(uint32_t, total)) + (total >> 32)
    total = cython.cast(uint64_t, cython.cast(uint32_t, total)) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return cython.cast(uint16_t, total)


def header_sum(data, length):
    """Unfolded sum of `length` bytes as big-endian 16-bit words; an odd last byte is padded with zero."""
    total: uint64_t = 0
    i: uint32_t = 0
    while i + 1 < length:
        total += (cython.cast(uint32_t, data[i]) << 8) | data[i + 1]
        i += 2
    if i < length:
        total += cython.cast(uint32_t, data[i]) << 8
    return total


def update16(check, old, new):
    """Checksum field after one 16-bit word of the covered data changed from `old` to `new` (RFC 1624 eqn. 3)."""
    total: uint64_t = (
        cython.cast(uint64_t, check ^ 0xFFFF) + cython.cast(uint64_t, old ^ 0xFFFF) + cython.cast(uint64_t, new)
    )
    return fold(total) ^ 0xFFFF


def checksum(data: cython.const[cython.uchar][::1]) -> int:
    """Internet checksum of `data` (any contiguous buffer) as a host integer, RFC 1071."""
    if data.shape[0] == 0:
        return 0xFFFF
    return fold(header_sum(cython.address(data[0]), cython.cast(uint32_t, data.shape[0]))) ^ 0xFFFF
