# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""How the table of flows is written: changes of one flow, new flows, what makes room for them, expiry.

`flow_store` changes a flow that the same thread has just read: it takes the bucket only at the sequence that was read,
so it cannot hit another flow that has come into the place meanwhile. `flow_insert` takes both buckets, the lower
address first, and looks for the key once more: two threads that meet one flow at the same time make one record.

What makes room is `flow_room`'s. `flow_sweep` is called with a few buckets per batch and takes out what has expired;
`flow_forget` takes out what a pod that is gone has left.
"""

import cython
from cython.cimports.fabric.forward.flow_key import FlowKey
from cython.cimports.fabric.forward.flow_room import NOWHERE, at_quota, clear, give_back, make_room, take
from cython.cimports.fabric.forward.flow_state import FREE, SYN_SENT, class_of, gives_way, timeout_of
from cython.cimports.fabric.forward.flow_table import (
    EXPIRED,
    FORGOTTEN,
    INSERTED,
    REFUSED_QUOTA,
    REPLACED,
    WAYS,
    Bucket,
    Flow,
    FlowRest,
    Found,
    Table,
    lanes_with,
    same_key,
    second_of,
    tag_of,
    way_for,
)
from cython.cimports.fabric.forward.kernel import (
    ACQUIRE,
    RELAXED,
    RELEASE,
    atomic_add,
    atomic_add32,
    atomic_store,
    atomic_swap_if,
    fence,
    trailing_zeros,
)
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t

OVER_QUOTA = cython.declare(uint32_t, 3)  # beside the Insertions


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def copy_in(to: cython.p_void, source: cython.pointer(cython.const[cython.void]), words: cython.int) -> cython.void:
    """Words that others may be reading."""
    i: cython.int
    for i in range(words):
        atomic_store(
            cython.cast(cython.pointer(uint64_t), to) + i,
            cython.cast(cython.pointer(cython.const[uint64_t]), source)[i],
            RELAXED,
        )


def flow_store(t, found, rest, now):
    """Publish a change of a flow that was just read; False when it has to be read again."""
    sequence: uint64_t = found.sequence
    way: uint32_t = found.index % WAYS
    if not atomic_swap_if(
        cython.address(found.bucket.sequence), cython.address(sequence), sequence + 1, False, ACQUIRE, RELAXED
    ):
        return False
    fence(RELEASE)
    copy_in(t.flows + found.index, cython.address(found.flow), cython.sizeof(Flow) // 8)
    if rest != cython.NULL:
        copy_in(t.rests + found.index, rest, cython.sizeof(FlowRest) // 8)
    found.expires = now + timeout_of(found.flow.state, found.flow.key.protocol)
    found.bucket.expires[way] = found.expires
    found.bucket.classes[way] = class_of(found.flow.state)
    found.sequence = sequence + 2
    atomic_store(cython.address(found.bucket.sequence), found.sequence, RELEASE)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def present(
    t: cython.pointer(Table), at: uint32_t, tag: uint64_t, key: cython.pointer(cython.const[FlowKey])
) -> uint32_t:
    """Place of a key in a taken bucket, or NOWHERE."""
    half: uint32_t
    index: uint32_t
    lanes: uint64_t
    for half in range(2):
        lanes = lanes_with(t.buckets[at].tags[half], tag)
        while lanes:
            index = at * WAYS + half * 4 + trailing_zeros(lanes) // 16
            if same_key(cython.address(t.flows[index].key), key):
                return index
            lanes &= lanes - 1
    return NOWHERE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def place(
    t: cython.pointer(Table), index: uint32_t, tag: uint64_t, flow: cython.pointer(cython.const[Flow]), now: uint32_t
) -> cython.void:
    """Write a flow into its place; the bucket is taken."""
    bucket: cython.pointer(Bucket) = t.buckets + index // WAYS
    way: uint32_t = index % WAYS
    shift: uint32_t = way % 4 * 16
    word: uint64_t = bucket.tags[way // 4]
    lane: uint64_t = cython.cast(uint64_t, 0xFFFF) << shift
    copy_in(t.flows + index, flow, cython.sizeof(Flow) // 8)
    atomic_store(cython.address(bucket.tags[way // 4]), (word & ~lane) | (tag << shift), RELAXED)
    bucket.expires[way] = now + timeout_of(flow.state, flow.key.protocol)
    bucket.classes[way] = class_of(flow.state)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def insert_taken(
    t: cython.pointer(Table), fresh: cython.pointer(cython.const[Flow]), rest: cython.pointer(cython.const[FlowRest]),
    hash: uint64_t, now: uint32_t, found: cython.pointer(Found),
) -> uint32_t:
    """`flow_insert` with both buckets taken: an Insertion, or OVER_QUOTA."""
    first: uint32_t = cython.cast(uint32_t, hash) & t.mask
    second: uint32_t = second_of(t, hash)
    index: uint32_t = present(t, first, tag_of(hash), cython.address(fresh.key))
    if index == NOWHERE:
        index = present(t, second, tag_of(hash), cython.address(fresh.key))
    if index != NOWHERE:
        found.expires = t.buckets[index // WAYS].expires[index % WAYS]
        found.index = index
        found.bucket = t.buckets + index // WAYS
        found.flow = t.flows[index]
        if found.expires > now and not (fresh.state == SYN_SENT and gives_way(found.flow.state)):
            return PRESENT
        clear(t, index, EXPIRED if found.expires <= now else REPLACED)
    if at_quota(t, fresh.account):
        return OVER_QUOTA
    index = make_room(t, first, second, way_for(hash), now)
    if index == NOWHERE:
        return REFUSED
    copy_in(t.rests + index, rest, cython.sizeof(FlowRest) // 8)
    place(t, index, tag_of(hash), fresh, now)
    atomic_add32(cython.address(t.charged[fresh.account]), 1, RELAXED)
    atomic_add(cython.address(t.counts[INSERTED]), 1, RELAXED)
    found.flow = fresh[0]
    found.index = index
    found.bucket = t.buckets + index // WAYS
    found.expires = found.bucket.expires[index % WAYS]
    return PLACED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def take_and_insert(
    t: cython.pointer(Table), fresh: cython.pointer(cython.const[Flow]), rest: cython.pointer(cython.const[FlowRest]),
    hash: uint64_t, now: uint32_t, found: cython.pointer(Found),
) -> uint32_t:
    """`insert_taken` between taking both buckets, the lower one first, and giving them free."""
    first: uint32_t = cython.cast(uint32_t, hash) & t.mask
    second: uint32_t = second_of(t, hash)
    low: uint32_t = first if first < second else second
    high: uint32_t = second if first < second else first
    sequence: uint64_t = take(t.buckets + low)
    other: uint64_t = take(t.buckets + high) if high != low else 0
    result: uint32_t = insert_taken(t, fresh, rest, hash, now, found)
    if result != PRESENT:
        sequence += 2
        other += 2
    found.sequence = sequence if found.bucket == t.buckets + low else other
    if high != low:
        atomic_store(cython.address(t.buckets[high].sequence), other, RELEASE)
    atomic_store(cython.address(t.buckets[low].sequence), sequence, RELEASE)
    return result


def flow_insert(t, fresh, rest, hash, now, found):
    """Put a new flow in, unless it is there, or nothing makes room; `found` has what is there then."""
    result: uint32_t = take_and_insert(t, fresh, rest, hash, now, found)
    if result == OVER_QUOTA and give_back(t, fresh.account, hash, now):
        result = take_and_insert(t, fresh, rest, hash, now, found)
    if result == OVER_QUOTA:
        atomic_add(cython.address(t.counts[REFUSED_QUOTA]), 1, RELAXED)
        result = REFUSED
    return cython.cast(Insertion, result)


def flow_sweep(t, count, now):
    """Take expired flows out of the next `count` buckets; the threads share the work by a common cursor."""
    at: uint64_t = atomic_add(cython.address(t.cursor), count, RELAXED)
    bucket: cython.pointer(Bucket)
    sequence: uint64_t
    way: uint32_t
    i: uint32_t
    dead: cython.bint
    for i in range(count):
        bucket = t.buckets + (cython.cast(uint32_t, at + i) & t.mask)
        dead = False
        for way in range(WAYS):
            # Read without taking the bucket: what is missed now is found in the next round.
            if bucket.classes[way] != FREE and bucket.expires[way] <= now:
                dead = True
        if not dead:
            continue
        sequence = take(bucket)
        for way in range(WAYS):
            if bucket.classes[way] != FREE and bucket.expires[way] <= now:
                clear(t, cython.cast(uint32_t, bucket - t.buckets) * WAYS + way, EXPIRED)
        atomic_store(cython.address(bucket.sequence), sequence + 2, RELEASE)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def belongs(
    flow: cython.pointer(cython.const[Flow]), account: uint32_t, family: uint8_t, high: uint64_t, low: uint64_t
) -> cython.bint:
    """Whether the flow is charged to the account, or is one of the address."""
    if account and flow.account == account:
        return True
    if flow.key.family != family:
        return False
    return (flow.key.low[0] == low and flow.key.high[0] == high) or (
        flow.key.low[1] == low and flow.key.high[1] == high
    )


def flow_forget(t, account, family, high, low):
    """All of the table at once: a pod goes seldom, and its address may be another's in a moment."""
    bucket: cython.pointer(Bucket)
    sequence: uint64_t
    at: uint32_t
    way: uint32_t
    used: cython.bint
    count: uint32_t = 0
    before: uint32_t
    for at in range(t.mask + 1):
        bucket = t.buckets + at
        used = False
        for way in range(WAYS):
            used = used or bucket.classes[way] != FREE
        if not used:
            continue
        sequence = take(bucket)
        before = count
        for way in range(WAYS):
            if bucket.classes[way] != FREE and belongs(t.flows + at * WAYS + way, account, family, high, low):
                clear(t, at * WAYS + way, FORGOTTEN)
                count += 1
        atomic_store(cython.address(bucket.sequence), sequence + 2 if count > before else sequence, RELEASE)
    return count
