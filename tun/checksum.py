# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Transport checksums over payload-sized data (RFC 1071), and what a TCP or UDP checksum field says about its packet.

A field is in one of four states: complete and right, complete and wrong, absent (UDP over IPv4, RFC 768), or partial:
it holds the folded, non-inverted pseudo-header sum, as Linux leaves it for a device or a peer on the same machine to
finish (CHECKSUM_PARTIAL, `include/linux/skbuff.h`). A right checksum looks partial once in 65,536 packets; finishing it
again gives the same value, so this does no harm.

Sums run in native byte order over 8-byte loads, with the halves in two 64-bit lanes that cannot overflow below 16 GB;
one swap after the fold gives the big-endian sum (RFC 1071 section 2(B)). The loop is written so that the compiler
vectorises it for any x86-64. IPv6 packets with a routing header are summed with the destination of the fixed header.
"""

import cython
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy


def fold(total):
    """Fold a 64-bit one's-complement accumulator to 16 bits; 0 only if every summed word was 0."""
    total = cython.cast(uint64_t, cython.cast(uint32_t, total)) + (total >> 32)
    total = cython.cast(uint64_t, cython.cast(uint32_t, total)) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return cython.cast(uint16_t, total)


def native_sum(data, length):
    """Unfolded sum of `length` bytes as 16-bit words in native order; an odd last byte is padded with zero."""
    low: uint64_t = 0
    high: uint64_t = 0
    word: uint64_t = 0
    word32: uint32_t = 0
    word16: uint16_t = 0
    tail: uint16_t = 0
    count: uint64_t = length >> 3
    i: uint64_t = 0
    for i in range(count):
        memcpy(cython.address(word), data + 8 * i, 8)
        low += cython.cast(uint32_t, word)
        high += word >> 32
    data = data + 8 * count
    low += high
    if length & 4:
        memcpy(cython.address(word32), data, 4)
        low += word32
        data = data + 4
    if length & 2:
        memcpy(cython.address(word16), data, 2)
        low += word16
        data = data + 2
    if length & 1:
        memcpy(cython.address(tail), data, 1)
        low += tail
    return low


def payload_sum(data, length):
    """Sum of `length` bytes as big-endian 16-bit words, already folded (0 to 0xFFFF); odd lengths are zero-padded.

    Partial sums may be added in any order as long as every part but the last has an even length.
    """
    return ntohs(fold(native_sum(data, length)))


def native_pseudo(packet, protocol, l4_length):
    """Pseudo-header sum in native order, not folded."""
    total: uint64_t = htons(protocol)
    total += htons(cython.cast(uint16_t, l4_length & 0xFFFF))
    total += htons(cython.cast(uint16_t, l4_length >> 16))
    if packet[0] >> 4 == 4:
        return total + native_sum(packet + 12, 8)
    return total + native_sum(packet + 8, 32)


def pseudo_sum(packet, protocol, l4_length):
    """Folded pseudo-header sum (RFC 9293 section 3.1, RFC 8200 section 8.1) of the IP packet at `packet`."""
    return ntohs(fold(native_pseudo(packet, protocol, l4_length)))


def complete(packet, length, csum_start, csum_offset):
    """Finish a partial checksum in place; a frame too short to hold the field is left alone.

    A UDP result of 0 is stored as 0xFFFF, because 0 would mean "no checksum" (RFC 768).
    """
    field: uint64_t = cython.cast(uint64_t, csum_start) + csum_offset
    check: uint16_t = 0
    if field + 2 > length:
        return
    check = fold(native_sum(packet + csum_start, length - csum_start)) ^ 0xFFFF
    if check == 0 and csum_offset == 6:
        check = 0xFFFF
    memcpy(packet + field, cython.address(check), 2)


def verify(packet, length, l4, protocol):
    """State of the checksum of an unfragmented TCP or UDP packet of `length` bytes with its transport header at `l4`.

    The cheap partial test comes first; only a complete checksum costs a pass over the payload. For UDP the length of
    the UDP header counts (RFC 768) and must fit the packet. Anything that is too short is CHECKSUM_BAD.
    """
    l4_length: uint32_t = length - l4
    pseudo: uint64_t = 0
    check: uint16_t = 0
    field: uint32_t = 16 if protocol == 6 else 6
    if length < l4 or l4 < 20 or l4_length < (20 if protocol == 6 else 8) or (protocol != 6 and protocol != 17):
        return CHECKSUM_BAD
    if packet[0] >> 4 != 4 and l4 < 40:
        return CHECKSUM_BAD
    memcpy(cython.address(check), packet + l4 + field, 2)
    if protocol == 17:
        l4_length = (cython.cast(uint32_t, packet[l4 + 4]) << 8) | packet[l4 + 5]
        if l4_length < 8 or l4_length > length - l4:
            return CHECKSUM_BAD
        if check == 0:
            return CHECKSUM_NONE if packet[0] >> 4 == 4 else CHECKSUM_BAD
    pseudo = native_pseudo(packet, protocol, l4_length)
    if check == fold(pseudo):
        return CHECKSUM_PARTIAL
    if fold(pseudo + native_sum(packet + l4, l4_length)) == 0xFFFF:
        return CHECKSUM_GOOD
    return CHECKSUM_BAD


def checksum(data: cython.const[cython.uchar][::1]) -> int:
    """Internet checksum of `data` (any contiguous buffer) as a host integer, RFC 1071."""
    if data.shape[0] == 0:
        return 0xFFFF
    return cython.cast(uint16_t, payload_sum(cython.address(data[0]), cython.cast(uint32_t, data.shape[0])) ^ 0xFFFF)


def state(packet: bytes, l4: int) -> str:
    """Checksum state of one unfragmented IP packet (bytes from the IP header on): good, bad, partial or none.

    `l4` is the offset of the TCP or UDP header. Raises ValueError when the packet is not IPv4/IPv6 carrying TCP or UDP
    there as far as the fixed IP header and the offset tell.
    """
    length: uint32_t = len(packet)
    start: uint32_t = l4
    if length < 20 or packet[0] >> 4 not in (4, 6) or start > length:
        raise ValueError(f"not an IP packet with a transport header at {l4}: {length} bytes")
    if packet[0] >> 4 == 6 and length < 40:
        raise ValueError(f"IPv6 packet of {length} bytes is shorter than its fixed header")
    protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
    if protocol not in (6, 17):
        raise ValueError(f"protocol {protocol} is neither TCP (6) nor UDP (17)")
    verdict = verify(cython.cast(cython.p_uchar, cython.cast(cython.p_char, packet)), length, start, protocol)
    return ("bad", "good", "partial", "none")[verdict]


def finish(packet: bytes, csum_start: int, csum_offset: int) -> bytes:
    """Copy of `packet` with its partial checksum completed, as `complete` does; offsets in bytes from the IP header."""
    out = bytearray(packet)
    view: cython.uchar[::1] = out
    if len(out) == 0 or csum_start < 0 or csum_offset < 0:
        return packet
    complete(cython.address(view[0]), len(out), csum_start, csum_offset)
    return bytes(out)
