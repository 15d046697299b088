# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Later fragments have no ports: they go where the first one went.

A small table per thread, keyed by source, destination, identification and (IPv4) protocol. All fragments of a packet
reach the same thread: a pod port has one reader, and the queues of the node port and the receive sockets are chosen by
a hash that leaves the ports of fragments out. Sets of four, the oldest note makes room.

A later fragment that overtakes the first one follows the route alone; where policy would have to know its ports it
waits for it (`hold`).

Limits: 256 packets at a time and 30 s.
"""

import cython
from cython.cimports.encap.inner import Inner, mix
from cython.cimports.libc.stdint import uint8_t, uint32_t


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def set_of(inner: cython.pointer(cython.const[Inner])) -> uint32_t:
    """Index of the first note of the packet's set."""
    hash: uint32_t = mix(inner.src_low ^ inner.fragment_id, inner.dst_low ^ inner.src_high)
    return hash % FRAGMENT_SETS * FRAGMENT_WAYS


def is_of(note, inner):
    """Whether the fragment is of the note's packet."""
    return (
        note.id == inner.fragment_id
        and note.src_low == inner.src_low
        and note.dst_low == inner.dst_low
        and note.src_high == inner.src_high
        and note.dst_high == inner.dst_high
        and note.family == inner.family
        and (inner.family == 6 or note.protocol == inner.protocol)
    )


def fragment_note(f, inner, verdict, rules, now):
    """Remember the first fragment's verdict."""
    first: uint32_t = set_of(inner)
    i: uint32_t
    note: cython.pointer(FragmentNote) = cython.address(f.notes[first])
    for i in range(first, first + FRAGMENT_WAYS):
        if is_of(cython.address(f.notes[i]), inner):
            note = cython.address(f.notes[i])
            break
        if f.notes[i].expires < note.expires:
            note = cython.address(f.notes[i])
    note_packet(note, inner)
    note.expires = now + FRAGMENT_SECONDS
    note.rules = rules
    note.verdict = cython.cast(uint8_t, verdict)


def note_packet(note, inner):
    """Which packet it is about."""
    note.src_high = inner.src_high
    note.src_low = inner.src_low
    note.dst_high = inner.dst_high
    note.dst_low = inner.dst_low
    note.id = inner.fragment_id
    note.family = inner.family
    note.protocol = inner.protocol


def fragment_verdict(f, inner, rules, now):
    """Verdict for a later fragment."""
    first: uint32_t = set_of(inner)
    i: uint32_t
    for i in range(first, first + FRAGMENT_WAYS):
        if f.notes[i].expires > now and f.notes[i].rules == rules and is_of(cython.address(f.notes[i]), inner):
            return f.notes[i].verdict
    f.unmatched += 1
    return UNMATCHED
