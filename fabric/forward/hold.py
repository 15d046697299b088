# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Where later fragments wait that have overtaken the first one of their datagram, which alone has the ports.

Theory of operation. One thread's `Hold` is a room of 256 slots of 2 KiB, made when something is first held and never
again; a fragment has as many slots in a row as it needs. It waits under the same key as `fragments` has its notes by,
and the entry it came in by. `hold_decide` marks all those of a datagram as due when the first one is noted; the thread
then forwards them (`release`). What is not due within HOLD_SECONDS is lost.

Who may have how much: a datagram 64 slots, a source address 96. When the room is full a fragment takes the place of the
oldest one of the owner (a port or a VTEP) that has most, if that is more than its own owner has; else there is no place
for it. So a flood, also of many sources behind one port or VTEP, takes what nobody else wants and no more. Looking for
room costs the same however full it is: three passes over 256 numbers. Duplicates and overlaps are held like others, the
receiver decides about them.

Why so short: Linux waits 30 s (IPv4) or 60 s (IPv6) for the rest of a datagram, of which it has one part. Here a
fragment is held that overtook another one on the same way, which is a matter of milliseconds; the second is for senders
that lose their turn in between. Every second more is room for orphans.

Limits: datagrams and sources are counted by hashes of 32 bits with a salt of the room's, so two may share a quota by
chance; owners 256 apart share a count.
"""

import cython
from cython.cimports.encap.inner import Inner, mix
from cython.cimports.fabric.forward.fragments import is_of, note_packet
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, timespec


def hold_close(h):
    """Free the room."""
    free(h.room)
    h.room = cython.NULL


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def source_of(
    room: cython.pointer(cython.const[HoldRoom]), inner: cython.pointer(cython.const[Inner])
) -> uint32_t:
    return mix(inner.src_high, inner.src_low ^ room.salt) | 1


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def tag_of(
    room: cython.pointer(cython.const[HoldRoom]), inner: cython.pointer(cython.const[Inner]), entry: uint32_t
) -> uint32_t:
    """Of the datagram, never 0."""
    ends: uint64_t = cython.cast(uint64_t, mix(inner.dst_high ^ entry, inner.dst_low ^ room.salt)) << 32
    return mix(ends | source_of(room, inner), room.salt ^ inner.fragment_id) | 1


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def slots_of(inner: cython.pointer(cython.const[Inner])) -> uint32_t:
    return (HOLD_HEADROOM + inner.length + HOLD_SLOT - 1) // HOLD_SLOT


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def count_of(numbers: cython.pointer(cython.const[uint32_t]), number: uint32_t) -> uint32_t:
    found: uint32_t = 0
    i: uint32_t
    for i in range(HOLD_SLOTS):
        found += numbers[i] == number
    return found


def hold_admits(h, inner, entry):
    """Within the datagram's and the source's share."""
    need: uint32_t = slots_of(inner)
    made: timespec
    if h.closed:
        return False
    if h.room == cython.NULL:
        h.room = cython.cast(cython.pointer(HoldRoom), calloc(1, cython.sizeof(HoldRoom)))
        if h.room == cython.NULL:
            return False
        clock_gettime(CLOCK_MONOTONIC, cython.address(made))
        h.room.salt = cython.cast(uint64_t, made.tv_nsec) << 32 ^ cython.cast(uint64_t, h.room)
    return (
        count_of(cython.address(h.room.tags[0]), tag_of(h.room, inner, entry)) + need <= HOLD_OF_DATAGRAM
        and count_of(cython.address(h.room.sources[0]), source_of(h.room, inner)) + need <= HOLD_OF_SOURCE
    )


def hold_take(h, inner, entry, owner, now):
    """So many slots in a row."""
    room: cython.pointer(HoldRoom) = h.room
    held: cython.pointer(Held)
    need: uint32_t = slots_of(inner)
    run: uint32_t = 0
    i: uint32_t
    for i in range(HOLD_SLOTS):
        run = run + 1 if room.states[i] == HOLD_FREE else 0
        if run == need:
            break
    if run != need:
        return cython.NULL
    i = i + 1 - need
    held = cython.address(room.held[i])
    held.inner = inner[0]
    held.entry = entry
    held.owner = cython.cast(uint8_t, owner % HOLD_OWNERS)
    note_packet(cython.address(held.note), inner)
    held.note.expires = now + HOLD_SECONDS
    held.age = h.age
    held.first = cython.cast(uint8_t, i)
    held.count = cython.cast(uint8_t, need)
    held.prefix = 0
    held.gso_size = 0
    held.outer = 0
    for run in range(need):
        room.states[i + run] = HOLD_MORE
        room.tags[i + run] = tag_of(room, inner, entry)
        room.sources[i + run] = source_of(room, inner)
    room.states[i] = HOLD_WAITING
    room.owned[held.owner] += need
    if h.count == 0:
        h.soonest = held.note.expires
    h.age += 1
    h.count += 1
    h.taken += 1
    return held


def hold_victim(h, inner, owner):
    """The oldest of the owner that has most."""
    room: cython.pointer(HoldRoom) = h.room
    found: cython.pointer(Held) = cython.NULL
    most: uint32_t = 0
    i: uint32_t
    for i in range(HOLD_OWNERS):
        if room.owned[i] > room.owned[most]:
            most = i
    if room.owned[most] <= room.owned[owner % HOLD_OWNERS] + slots_of(inner):
        return cython.NULL
    for i in range(HOLD_SLOTS):
        if room.states[i] == HOLD_WAITING and room.held[i].owner == most and (
            found == cython.NULL or is_older(cython.address(room.held[i]), found)
        ):
            found = cython.address(room.held[i])
    return found


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def is_older(one: cython.pointer(cython.const[Held]), other: cython.pointer(cython.const[Held])) -> cython.bint:
    """Ages come round."""
    return one.age - other.age > cython.cast(uint32_t, 0x7FFFFFFF)


def hold_decide(h, inner, entry, verdict):
    """All of the datagram that wait, and those that a first fragment before this one has made due."""
    room: cython.pointer(HoldRoom) = h.room
    tag: uint32_t = tag_of(room, inner, entry)
    i: uint32_t
    for i in range(HOLD_SLOTS):
        if room.tags[i] != tag or (room.states[i] != HOLD_WAITING and room.states[i] != HOLD_DUE):
            continue
        if room.held[i].entry == entry and is_of(cython.address(room.held[i].note), inner):
            h.due += room.states[i] == HOLD_WAITING
            room.states[i] = HOLD_DUE
            room.held[i].note.verdict = cython.cast(uint8_t, verdict)


def hold_oldest(h, state):
    """In the order in which they came."""
    room: cython.pointer(HoldRoom) = h.room
    found: cython.pointer(Held) = cython.NULL
    i: uint32_t
    for i in range(HOLD_SLOTS):
        if room.states[i] == state and (
            found == cython.NULL or is_older(cython.address(room.held[i]), found)
        ):
            found = cython.address(room.held[i])
    return found


def hold_expired(h, now):
    """All live equally long, so the oldest is the first."""
    held: cython.pointer(Held)
    if h.count == 0 or now < h.soonest:
        return cython.NULL
    held = hold_oldest(h, HOLD_WAITING)
    if held != cython.NULL and held.note.expires > now:
        h.soonest = held.note.expires
        return cython.NULL
    return held


def hold_sent(h, held):
    """It is due no more; its bytes stay until `hold_clear`."""
    h.room.states[held.first] = HOLD_SENT
    h.due -= 1


def hold_free(h, held):
    """The slots are free at once."""
    room: cython.pointer(HoldRoom) = h.room
    i: uint32_t
    h.due -= room.states[held.first] == HOLD_DUE
    for i in range(held.first, cython.cast(uint32_t, held.first) + held.count):
        room.states[i] = HOLD_FREE
        room.tags[i] = 0
        room.sources[i] = 0
    room.owned[held.owner] -= held.count
    h.count -= 1


def hold_clear(h):
    """What was sent has left."""
    i: uint32_t
    for i in range(HOLD_SLOTS):
        if h.room.states[i] == HOLD_SENT:
            hold_free(h, cython.address(h.room.held[i]))


def hold_packet(h, held):
    """Its first byte."""
    return cython.address(h.room.bytes[cython.cast(uint32_t, held.first) * HOLD_SLOT + HOLD_HEADROOM])
