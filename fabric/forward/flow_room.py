# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Who makes room in the table of flows for a new one.

When both of its buckets are full: what has expired goes, then closing flows, then half-open ones, earliest expiry
first; what is answered or established never makes room.

An account (a pod) at its quota gives back one of its own flows for a new one, by the same order and wherever it lies:
in the two buckets, else in those behind the first, SEARCHED with that. So the connections that it has closed in the
last minutes do not keep it from new ones, and neither does who opens many and leaves them half open. If all are
answered or established the answered one that has been silent for longest goes: a pod that others ask by datagrams, each
from a new port, can still be asked. What was established as a TCP connection stays.

Limits: an account whose flows are nearly all established may find none of the others within SEARCHED buckets.
"""

import cython
from cython.cimports.fabric.forward.flow_state import ANSWERED, CLOSING, EMBRYONIC, ESTABLISHED, FREE
from cython.cimports.fabric.forward.flow_table import (
    EVICTED_ANSWERED,
    EVICTED_CLOSING,
    EVICTED_EMBRYONIC,
    EXPIRED,
    REFUSED_FULL,
    WAYS,
    Bucket,
    Table,
    pause,
    second_of,
)
from cython.cimports.fabric.forward.kernel import (
    ACQUIRE,
    RELAXED,
    RELEASE,
    atomic_add,
    atomic_add32,
    atomic_load,
    atomic_load32,
    atomic_store,
    atomic_swap_if,
    fence,
)
from cython.cimports.libc.stdint import uint32_t, uint64_t


def take(bucket):
    """Lock a bucket; the even sequence it had."""
    turn: uint32_t = 0
    sequence: uint64_t
    while True:
        sequence = atomic_load(cython.address(bucket.sequence), RELAXED)
        if not sequence & 1 and atomic_swap_if(
            cython.address(bucket.sequence), cython.address(sequence), sequence + 1, False, ACQUIRE, RELAXED
        ):
            fence(RELEASE)
            return sequence
        pause(turn)
        turn += 1


def clear(t, index, reason):
    """Take a flow out; the bucket is taken."""
    bucket: cython.pointer(Bucket) = t.buckets + index // WAYS
    way: uint32_t = index % WAYS
    word: uint64_t = bucket.tags[way // 4]
    atomic_store(
        cython.address(bucket.tags[way // 4]), word & ~(cython.cast(uint64_t, 0xFFFF) << (way % 4 * 16)), RELAXED
    )
    bucket.classes[way] = FREE
    atomic_add32(cython.address(t.charged[t.flows[index].account]), cython.cast(uint32_t, -1), RELAXED)
    atomic_add(cython.address(t.counts[reason]), 1, RELAXED)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def free_way(t: cython.pointer(Table), first: uint32_t, second: uint32_t, wanted: uint32_t) -> uint32_t:
    """A free place in the emptier bucket, the `wanted` one where it can be had, or NOWHERE."""
    way: uint32_t
    i: uint32_t
    at: uint32_t
    count: uint32_t
    most: uint32_t = 0
    best: uint32_t = NOWHERE
    here: uint32_t
    for i in range(2):
        at = second if i else first
        count = 0
        here = 0
        for way in range(WAYS):
            if t.buckets[at].classes[way] == FREE:
                count += 1
                if count == 1 or way == wanted:
                    here = at * WAYS + way
        if count > most:
            most = count
            best = here
    return best


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def weigh(
    t: cython.pointer(Table), at: uint32_t, account: uint32_t, now: uint32_t, least: cython.pointer(Least)
) -> cython.void:
    """Whether a bucket has a flow, of this account only unless that is 0, that is worth less than `least`."""
    bucket: cython.pointer(Bucket) = t.buckets + at
    way: uint32_t
    value: uint32_t
    for way in range(WAYS):
        value = bucket.classes[way]
        if value == FREE:
            continue
        if bucket.expires[way] <= now:
            value = 0
        if value > least.rank or (value == least.rank and bucket.expires[way] >= least.expires):
            continue
        if account and t.flows[at * WAYS + way].account != account:
            continue
        least.index = at * WAYS + way
        least.rank = value
        least.expires = bucket.expires[way]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def evict(t: cython.pointer(Table), least: cython.pointer(cython.const[Least])) -> cython.void:
    """Take that flow out; its bucket is taken."""
    if least.rank == 0:
        clear(t, least.index, EXPIRED)
    elif least.rank == CLOSING:
        clear(t, least.index, EVICTED_CLOSING)
    else:
        clear(t, least.index, EVICTED_EMBRYONIC if least.rank == EMBRYONIC else EVICTED_ANSWERED)


def at_quota(t, account):
    """Whether an account may have no more."""
    return account != 0 and atomic_load32(cython.address(t.charged[account]), RELAXED) >= t.quota


def give_back(t, account, hash, now):
    """Take out a flow of an account: of the two buckets of a new one, else of those behind them. Whether there was one.

    Buckets are looked into without being taken, so the one that is worth least is looked at once more.
    """
    first: uint32_t = cython.cast(uint32_t, hash) & t.mask
    least: Least
    again: Least
    sequence: uint64_t
    i: uint32_t
    least.index = NOWHERE
    least.rank = ESTABLISHED
    least.expires = 0
    weigh(t, first, account, now, cython.address(least))
    weigh(t, second_of(t, hash), account, now, cython.address(least))
    for i in range(1, SEARCHED):
        if least.rank < ANSWERED:
            break
        weigh(t, (first + i) & t.mask, account, now, cython.address(least))
    if least.index == NOWHERE:
        return False
    again.index = NOWHERE
    again.rank = ESTABLISHED
    again.expires = 0
    sequence = take(t.buckets + least.index // WAYS)
    weigh(t, least.index // WAYS, account, now, cython.address(again))
    if again.index != NOWHERE:
        evict(t, cython.address(again))
        sequence += 2
    atomic_store(cython.address(t.buckets[least.index // WAYS].sequence), sequence, RELEASE)
    return again.index != NOWHERE


def make_room(t, first, second, wanted, now):
    """A free place for a new flow in its taken buckets, or NOWHERE, counted as refused."""
    least: Least
    least.index = free_way(t, first, second, wanted)
    if least.index != NOWHERE:
        return least.index
    least.rank = ANSWERED
    least.expires = 0
    weigh(t, first, 0, now, cython.address(least))
    weigh(t, second, 0, now, cython.address(least))
    if least.index == NOWHERE:
        atomic_add(cython.address(t.counts[REFUSED_FULL]), 1, RELAXED)
    else:
        evict(t, cython.address(least))
    return least.index
