# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Later fragments that wait for their first one (`hold`), as both threads put them there and take them out again.

Theory of operation. A later fragment that would be dropped for want of a verdict is copied instead. When the first one
of its datagram has been judged, `track_flow` marks what waits for it; the thread looks for such marks once per window
of frames or datagrams, behind which it gives them to its own `forward` again, from where they lie, as if they had come
just now. They get the first one's verdict: forwarded, or dropped and counted by the reason of the first. What expires,
or has to make room, is dropped as `policy_fragment`, which is what would have become of it at once. Packets that are no
fragments meet none of this.

Where the tables have changed meanwhile the new ones decide: nothing that is kept is of a generation. Of an arrival the
VTEP is looked for again by its outer source.

Limits: a thread that ends drops what it holds; so does a restart.
"""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.receive import Message
from cython.cimports.encap.vtep import NO_VTEP, find_vtep
from cython.cimports.fabric.forward.batch import egress_flush
from cython.cimports.fabric.forward.drop_ring import FROM_PORT, ring_record, ring_record_from
from cython.cimports.fabric.forward.egress import forward
from cython.cimports.fabric.forward.flow_table import UNDERLAY_ENTRY
from cython.cimports.fabric.forward.flow_track import deny
from cython.cimports.fabric.forward.fragments import fragment_note
from cython.cimports.fabric.forward.hold import (
    HOLD_DUE,
    Hold,
    hold_admits,
    hold_clear,
    hold_expired,
    hold_free,
    hold_oldest,
    hold_packet,
    hold_sent,
    hold_take,
    hold_victim,
)
from cython.cimports.fabric.forward.ingress import settle_one
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.libc.string import memcpy, memset


def make_room(lane, g, inner, entry, owner):
    """A place, also at others' expense; NULL when there is none."""
    h: cython.pointer(Hold) = cython.address(lane.tracker.hold)
    held: cython.pointer(Held) = cython.NULL
    victim: cython.pointer(Held)
    if hold_admits(h, inner, entry):
        held = hold_take(h, inner, entry, owner, lane.tracker.now)
        while held == cython.NULL:
            victim = hold_victim(h, inner, owner)
            if victim == cython.NULL:
                break
            lose(lane, g, victim)
            held = hold_take(h, inner, entry, owner, lane.tracker.now)
    if held == cython.NULL:
        deny(cython.address(lane.tracker), inner, DropReason.POLICY_FRAGMENT)
    return held


def hold_frame(e, g, position, frame):
    """Copy a port's frame."""
    port = cython.address(g.ports[position])
    held: cython.pointer(Held) = make_room(
        cython.address(e.lane), g, cython.address(frame.inner), port.account, port.account
    )
    if held == cython.NULL:
        return False
    held.vnet = frame.vnet
    held.slot = port.slot
    memcpy(hold_packet(cython.address(e.lane.tracker.hold), held), frame.data, frame.inner.length)
    return True


def hold_datagram(s, g, a):
    """Copy a datagram with its tunnel header."""
    packet: cython.pointer(uint8_t)
    held: cython.pointer(Held) = make_room(
        cython.address(s.lane), g, cython.address(a.inner), UNDERLAY_ENTRY, a.position
    )
    if held == cython.NULL:
        return False
    held.slot = g.ports[s.target].slot
    held.outer = a.message.family
    held.high = a.message.high
    held.low = a.message.low
    held.form = a.form
    held.gso_size = a.gso_size
    held.prefix = cython.cast(uint32_t, a.packet - a.datagram)
    packet = hold_packet(cython.address(s.lane.tracker.hold), held)
    memcpy(packet - held.prefix, a.datagram, held.prefix + a.inner.length)
    return True


def release_frames(e, g, position):
    """The oldest first, then what they have queued: their memory is needed until then."""
    h: cython.pointer(Hold) = cython.address(e.lane.tracker.hold)
    held: cython.pointer(Held)
    frame: Frame
    while h.due:
        held = hold_oldest(h, HOLD_DUE)
        # Several first fragments in one window may have pushed each other out of the notes.
        fragment_note(
            cython.address(e.lane.tracker.fragments), cython.address(held.inner), held.note.verdict, g.rules_number,
            e.lane.tracker.now,
        )
        frame.inner = held.inner
        frame.vnet = held.vnet
        frame.data = hold_packet(h, held)
        frame.length = held.inner.length
        frame.hash = 0
        e.lane.refused = DropReason.PASS
        if not forward(e, g, position, cython.address(frame)) and e.lane.ring != cython.NULL and e.lane.refused:
            ring_record(e.lane.ring, FROM_PORT, e.lane.refused, position, frame.data, frame.length)
        hold_sent(h, held)
    egress_flush(e)
    hold_clear(h)


def release_datagrams(s, g):
    """The oldest first; ports have them when this returns."""
    h: cython.pointer(Hold) = cython.address(s.lane.tracker.hold)
    held: cython.pointer(Held)
    message: Message
    arrival: Arrival
    memset(cython.address(message), 0, cython.sizeof(Message))
    while h.due:
        held = hold_oldest(h, HOLD_DUE)
        arrival.position = find_vtep(g.vteps, held.outer, held.high, held.low)
        if arrival.position == cython.cast(uint32_t, NO_VTEP):
            lose(cython.address(s.lane), g, held)
            continue
        fragment_note(
            cython.address(s.lane.tracker.fragments), cython.address(held.inner), held.note.verdict, g.rules_number,
            s.lane.tracker.now,
        )
        message.family = held.outer
        message.high = held.high
        message.low = held.low
        arrival.inner = held.inner
        arrival.message = cython.address(message)
        arrival.form = held.form
        arrival.gso_size = held.gso_size
        arrival.hash = 0
        arrival.packet = hold_packet(h, held)
        arrival.datagram = arrival.packet - held.prefix
        arrival.length = held.prefix + held.inner.length
        settle_one(s, g, cython.address(arrival))
        hold_free(h, held)


def lose_expired(lane, g, now):
    """One by one, the oldest first."""
    held: cython.pointer(Held) = hold_expired(cython.address(lane.tracker.hold), now)
    while held != cython.NULL:
        lose(lane, g, held)
        held = hold_expired(cython.address(lane.tracker.hold), now)


def lose(lane, g, held):
    """Its first fragment did not come in time, or somebody else needs the room."""
    packet: cython.pointer(uint8_t) = hold_packet(cython.address(lane.tracker.hold), held)
    position: uint32_t = 0
    reason: cython.int = DropReason.POLICY_FRAGMENT
    lane.drops[reason] += 1
    lane.ports[held.slot].drops += 1
    deny(cython.address(lane.tracker), cython.address(held.inner), reason)
    if lane.ring != cython.NULL and g != cython.NULL:
        if held.outer:
            ring_record_from(
                lane.ring, reason, held.outer, held.high, held.low, held.form, packet - held.prefix,
                held.prefix + held.inner.length,
            )
        else:
            while position < g.port_count and g.ports[position].account != held.entry:
                position += 1
            # A port that is gone meanwhile has no name to be shown by.
            if position < g.port_count:
                ring_record(lane.ring, FROM_PORT, reason, position, packet, held.inner.length)
    hold_free(cython.address(lane.tracker.hold), held)
