# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Malformed inputs from good ones, fast enough for millions: the generator behind `fabric.forward.probe`.

All of it is a pure function of the generator's state, so a seed names a run.
"""

import cython
from cython.cimports.encap.bytes import load16, store16
from cython.cimports.encap.checksum import fold, header_sum
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy


def draw(state):
    """Next 64 bits of a xorshift* generator (Vigna 2016)."""
    x: uint64_t = state[0]
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    state[0] = x
    return x * ((cython.cast(uint64_t, 0x2545F491) << 32) | 0x4F6CDD1D)


def pick_seed(state, corpus, out, room):
    """Copy a random seed; its length."""
    i: uint32_t = cython.cast(uint32_t, (draw(state) >> 33) % corpus.count)
    length: uint32_t = corpus.start[i + 1] - corpus.start[i]
    if length > room:
        length = room
    memcpy(out, corpus.data + corpus.start[i], length)
    return length


def splice(state, corpus, out, length, room):
    """Put the tail of another seed behind the head of this one."""
    i: uint32_t = cython.cast(uint32_t, (draw(state) >> 33) % corpus.count)
    other: uint32_t = corpus.start[i + 1] - corpus.start[i]
    head: uint32_t = cython.cast(uint32_t, (draw(state) >> 33) % (length + 1))
    skip: uint32_t = cython.cast(uint32_t, (draw(state) >> 33) % (other + 1))
    tail: uint32_t = other - skip
    if head + tail > room:
        tail = room - head
    memcpy(out + head, corpus.data + corpus.start[i] + skip, tail)
    return head + tail


def mutate(state, corpus, out, length, room, skip):
    """Damage `out`; its new length. Bytes before `skip` are left alone three times out of four."""
    r: uint64_t = draw(state)
    count: uint32_t = cython.cast(uint32_t, r & 3)
    floor: uint32_t = skip if (r >> 2) & 3 and length > skip else 0
    reach: uint32_t
    at: uint32_t
    if (r >> 4) & 15 == 0:
        length = splice(state, corpus, out, length, room)
    if (r >> 8) & 15 == 0 and length:
        length = cython.cast(uint32_t, (r >> 33) % length)
    if length <= floor:
        return length
    while count:
        count -= 1
        r = draw(state)
        # Headers are where decisions are made: most damage goes to the first 80 bytes.
        reach = length - floor if (r & 7) == 0 or length - floor < 80 else 80
        at = floor + cython.cast(uint32_t, (r >> 40) % reach)
        if (r >> 3) & 3 == 0:
            out[at] ^= cython.cast(uint8_t, 1 << ((r >> 5) & 7))
        elif (r >> 3) & 3 == 1:
            out[at] = cython.cast(uint8_t, r >> 8)
        elif (r >> 3) & 3 == 2:
            out[at] = cython.cast(uint8_t, 0xFF if (r >> 5) & 1 else (0x80 if (r >> 6) & 1 else 0))
        elif at + 2 <= length:
            store16(out + at, cython.cast(uint16_t, load16(out + at) + ((r >> 8) & 15) - 8))
    return length


def repair(packet, length):
    """Make the IPv4 header checksum right, where there is a header."""
    header: uint32_t
    if length < 20 or packet[0] >> 4 != 4:
        return
    header = cython.cast(uint32_t, packet[0] & 15) * 4
    if header < 20 or header > length:
        return
    store16(packet + 10, 0)
    store16(packet + 10, fold(header_sum(packet, header)) ^ 0xFFFF)
