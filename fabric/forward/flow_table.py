# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The table of flows that all threads share, and how it is read: fixed memory, lookups without a lock.

Theory of operation. Flows live in buckets of eight; a key has two buckets, given by two parts of its hash, and a new
flow goes where more is free, so the table fills evenly without chains. A bucket is one cache line with a tag of the
hash, the expiry and the class of each flow; the flow itself is another, and what only judging needs a third array.

A bucket's `sequence` is odd while it is written. A reader loads it (acquire), copies the flow with relaxed loads, puts
an acquire fence and loads it again: equal and even means that no writer was between. Writers (`flow_write`) take the
bucket by exchanging an even sequence for the next odd one, put a release fence, store with relaxed stores, and store
the next even number (release). The fence keeps the stores behind the odd number, the final store keeps them before
the even one, so a reader that has seen any of them sees the sequence changed (Boehm 2012, "Can seqlocks get along with
programming language memory models?"). A writer that changed nothing puts the old number back.

A lookup returns expired flows too: the tracker replaces them.

Limits: 2^26 flows; times in whole seconds.
"""

import cython
from cython.cimports.fabric.forward.flow_key import FlowKey
from cython.cimports.fabric.forward.kernel import (
    ACQUIRE,
    RELAXED,
    atomic_load,
    atomic_load32,
    fence,
    sched_yield,
    trailing_zeros,
)
from cython.cimports.libc.stdint import uint32_t, uint64_t

SPINS = cython.declare(uint32_t, 64)


def pause(turn):
    """The writer may have lost its core in the middle: then it needs ours."""
    if turn % SPINS == SPINS - 1:
        sched_yield()


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def copy_out(to: cython.p_void, source: cython.pointer(cython.const[cython.void]), words: cython.int) -> cython.void:
    """Words that others may be writing."""
    out: cython.pointer(uint64_t) = cython.cast(cython.pointer(uint64_t), to)
    i: cython.int
    for i in range(words):
        out[i] = atomic_load(cython.cast(cython.pointer(cython.const[uint64_t]), source) + i, RELAXED)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def find_in(
    t: cython.pointer(cython.const[Table]), at: uint32_t, tag: uint64_t, key: cython.pointer(cython.const[FlowKey]),
    found: cython.pointer(Found),
) -> cython.bint:
    """Look into one bucket."""
    bucket: cython.pointer(Bucket) = t.buckets + at
    turn: uint32_t = 0
    half: uint32_t
    lanes: uint64_t
    sequence: uint64_t
    hit: cython.bint = False
    while True:
        sequence = atomic_load(cython.address(bucket.sequence), ACQUIRE)
        if not sequence & 1:
            hit = False
            for half in range(2):
                lanes = lanes_with(atomic_load(cython.address(bucket.tags[half]), RELAXED), tag)
                while lanes and not hit:
                    found.index = at * WAYS + half * 4 + trailing_zeros(lanes) // 16
                    lanes &= lanes - 1
                    copy_out(cython.address(found.flow), t.flows + found.index, cython.sizeof(Flow) // 8)
                    hit = same_key(cython.address(found.flow.key), key)
                if hit:
                    break
            if hit:
                found.expires = atomic_load32(cython.address(bucket.expires[found.index % WAYS]), RELAXED)
            fence(ACQUIRE)
            if atomic_load(cython.address(bucket.sequence), RELAXED) == sequence:
                found.bucket = bucket
                found.sequence = sequence
                return hit
        pause(turn)
        turn += 1


def flow_lookup(t, key, hash, found):
    """The flow with this key, expired or not."""
    first: uint32_t = cython.cast(uint32_t, hash) & t.mask
    if find_in(t, first, tag_of(hash), key, found):
        return True
    return find_in(t, second_of(t, hash), tag_of(hash), key, found)


def flow_read(t, index, flow, rest, expires):
    """For showing: what is in this place now."""
    bucket: cython.pointer(Bucket) = t.buckets + index // WAYS
    way: uint32_t = index % WAYS
    turn: uint32_t = 0
    sequence: uint64_t
    used: cython.bint
    while True:
        sequence = atomic_load(cython.address(bucket.sequence), ACQUIRE)
        if not sequence & 1:
            used = atomic_load(cython.address(bucket.tags[way // 4]), RELAXED) >> (way % 4 * 16) & 0xFFFF
            copy_out(flow, t.flows + index, cython.sizeof(Flow) // 8)
            copy_out(rest, t.rests + index, cython.sizeof(FlowRest) // 8)
            expires[0] = atomic_load32(cython.address(bucket.expires[way]), RELAXED)
            fence(ACQUIRE)
            if atomic_load(cython.address(bucket.sequence), RELAXED) == sequence:
                return used
        pause(turn)
        turn += 1
