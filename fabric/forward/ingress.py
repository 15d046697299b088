# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The ingress thread: from the underlay to the local ports.

Theory of operation, in the order a datagram goes:

1. `ingress_run` sleeps in epoll on the receive sockets, then receives until they are empty or all buffers are used.
2. `take_message` finds the sender's VTEP by the outer source address (nothing is accepted from anyone else, nor in a
   format that is neither ours nor the sender's) and cuts a UDP_GRO message into its datagrams.
3. `examine` checks the VXLAN and the inner Ethernet header, parses the packet and has its flow's record loaded: records
   are far from the cache between two batches. So ARRIVALS datagrams are examined before the first is forwarded.
4. `forward` applies the outer ECN field. `admit` holds the packet to what this VTEP may send (the inner source must
   route back to it) and to what lives here (the inner destination must be a local port): nothing is ever sent back to
   the underlay. Policy may refuse its flow; a reply of a flow that entered by the node port goes there instead
   (`flow_track`). A fragment may have to wait for the first one (`release`).
5. `hand_over` lowers the TTL in front of a pod port and gives the packet to the merger, which joins segments of a
   flow into superframes across everything one drain has received, and writes.

A kernel VXLAN peer on the same machine sends inner superframes of up to 64 KB with partial checksums: they reach us as
one datagram. TCP is recognised by its length, and gets the segment size of the port's MTU; UDP by the kernel's control
message, which then carries the inner segment size.

Limits: a packet larger than a port's MTU is handed to the node port as it is (the host's kernel answers it) and
answered by us in front of a pod port.
"""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.ecn import decapsulated_ecn, set_ecn
from cython.cimports.encap.inner import IPPROTO_TCP, IPPROTO_UDP, WHOLE, Inner, decrement_ttl
from cython.cimports.encap.receive import (
    RECEIVE_BUFFERS,
    Message,
    read_message,
    receive_batch,
    receiver_close,
    receiver_open,
)
from cython.cimports.encap.transmit import flush, transmitter_close, transmitter_open
from cython.cimports.encap.vtep import NO_VTEP, Vtep, find_vtep
from cython.cimports.encap.vxlan import ENCAPSULATION
from cython.cimports.fabric.forward.arrival import admit, examine, inner_superframe
from cython.cimports.fabric.forward.cut import answer_cut
from cython.cimports.fabric.forward.drop_ring import ring_record_from
from cython.cimports.fabric.forward.ethernet import deliver
from cython.cimports.fabric.forward.flow_table import UNDERLAY_ENTRY
from cython.cimports.fabric.forward.flow_track import ANSWER, BY_NODE_PORT, REFUSED_SHIFT, track, track_batch
from cython.cimports.fabric.forward.hold import HOLD_MS, hold_close
from cython.cimports.fabric.forward.icmp import PACKET_TOO_BIG, TIME_EXCEEDED, allow, build_error
from cython.cimports.fabric.forward.joint import offer, park
from cython.cimports.fabric.forward.kernel import (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLLIN,
    ORDERED,
    atomic_load,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
)
from cython.cimports.fabric.forward.lane import PortCount, lane_enter, lane_idle, monotonic
from cython.cimports.fabric.forward.release import ALL_EXPIRED, hold_datagram, lose_expired, release_datagrams
from cython.cimports.fabric.forward.snapshot import POD_PORT, Generation, PortEntry
from cython.cimports.fabric.forward.tunnel import MADE_BUFFER, send_made
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.posix.unistd import close, read
from cython.cimports.tun.merge import merge_add, merge_flush, merge_init, merge_superframe

WAKE = cython.declare(uint32_t, 0x7FFFFFFF)


def ingress_open(s):
    """Allocate buffers and make the epoll set; 0 or -1."""
    merge_init(cython.address(s.merger))
    s.lane.epoll = epoll_create1(EPOLL_CLOEXEC)
    if s.lane.epoll < 0 or receiver_open(cython.address(s.receiver)) < 0:
        return -1
    return transmitter_open(cython.address(s.lane.transmitter), cython.address(s.lane.drops[0]))


def ingress_close(s):
    """Free buffers and the epoll set."""
    receiver_close(cython.address(s.receiver))
    transmitter_close(cython.address(s.lane.transmitter))
    hold_close(cython.address(s.lane.tracker.hold))
    if s.lane.epoll >= 0:
        close(s.lane.epoll)


def watch_wake(s):
    """Put the wake-up descriptor into the epoll set."""
    event: epoll_event
    event.events = EPOLLIN
    event.data.u64 = 0
    event.data.u32 = WAKE
    epoll_ctl(s.lane.epoll, EPOLL_CTL_ADD, s.lane.wake, cython.address(event))


def watch_sockets(s):
    """Put the receive sockets that are not yet in the epoll set into it; none ever leaves."""
    event: epoll_event
    count: uint64_t = atomic_load(cython.address(s.lane.shared.socket_count), ORDERED)
    event.events = EPOLLIN
    event.data.u64 = 0
    while s.watched < count:
        event.data.u32 = s.watched
        epoll_ctl(s.lane.epoll, EPOLL_CTL_ADD, s.lane.shared.sockets[s.watched], cython.address(event))
        s.watched += 1


def ingress_run(s):
    """Thread body: until `stop` is set. Needs no GIL.

    Only a turn announces a generation, and ends idle: once the sockets are given away the lane is the egress thread's
    to announce with, and an "idle" of ours would let the generation that it uses be freed.
    """
    events = cython.declare(epoll_event[8])
    count: cython.int
    i: cython.int
    token: uint64_t
    watch_wake(s)
    while not atomic_load(cython.address(s.lane.shared.stop), ORDERED):
        if atomic_load(cython.address(s.lane.shared.joint), ORDERED):
            park(s)
            continue
        watch_sockets(s)
        count = epoll_wait(s.lane.epoll, cython.address(events[0]), 8, HOLD_MS if s.lane.tracker.hold.count else -1)
        if count < 0:
            continue
        for i in range(count):
            if events[i].data.u32 == WAKE:
                read(s.lane.wake, cython.address(token), 8)
        offer(s, ingress_turn(s))
    if not s.lane.shared.joint:
        lose_expired(cython.address(s.lane), cython.NULL, ALL_EXPIRED)


def ingress_turn(s):
    """Receive until the sockets are empty or a good while has passed; how many datagrams."""
    before: uint64_t = s.datagrams
    g: cython.pointer(Generation) = lane_enter(cython.address(s.lane))
    s.lane.wakeups += 1
    watch_sockets(s)
    if g == cython.NULL:
        refuse_all(s)
    else:
        while drain_sockets(s, g):
            g = lane_enter(cython.address(s.lane))
            if s.lane.shared.joint or atomic_load(cython.address(s.lane.shared.stop), ORDERED):
                break
    lane_idle(cython.address(s.lane))
    return s.datagrams - before


def drain_sockets(s, g):
    """Receive until empty or out of buffers, then flush; True when buffers ran out and there may be more."""
    message: cython.pointer(Message)
    first: uint32_t = 0
    n: cython.int
    i: uint32_t
    k: uint32_t
    turn: uint32_t
    track_batch(cython.address(s.lane.tracker), g)
    if s.lane.tracker.hold.count:
        lose_expired(cython.address(s.lane), g, s.lane.tracker.now)
    for turn in range(s.watched):
        k = (s.turn + turn) % s.watched
        while first < RECEIVE_BUFFERS:
            n = receive_batch(cython.address(s.receiver), s.lane.shared.sockets[k], first)
            if n <= 0:
                break
            for i in range(first, first + n):
                message = cython.address(s.messages_at[i])
                read_message(cython.address(s.receiver), i, message, cython.address(s.drops_seen[k]))
                take_message(s, g, message, s.lane.shared.formats[k])
            first += n
            if n == 1 and message.gso_size == 0:
                break  # a packet that came alone is rarely followed at once; if so, epoll says so
    settle(s, g)
    s.turn += 1
    merge_flush(cython.address(s.merger))
    if s.lane.transmitter.dirty:
        flush(cython.address(s.lane.transmitter))
    return first == RECEIVE_BUFFERS


def refuse_all(s):
    """No peers are known yet: nothing can be accepted. The queues are read so that they do not stay ready."""
    message: Message
    n: cython.int
    i: cython.int
    k: uint32_t
    for k in range(s.watched):
        n = receive_batch(cython.address(s.receiver), s.lane.shared.sockets[k], 0)
        for i in range(n):
            read_message(cython.address(s.receiver), i, cython.address(message), cython.address(s.drops_seen[k]))
            s.messages += 1
            refuse_message(s, cython.address(message), s.lane.shared.formats[k], DropReason.UNKNOWN_VTEP)


def refuse_message(s, m, form, reason):
    """Count all datagrams of a message, at least one, under one reason."""
    size: uint32_t = 1
    if m.gso_size and m.length and not inner_superframe(m, form):
        size = (m.length + m.gso_size - 1) // m.gso_size
    s.datagrams += size
    s.lane.drops[reason] += size
    if s.lane.ring != cython.NULL:
        ring_record_from(
            s.lane.ring, reason, m.family, m.high, m.low, form, m.data, m.gso_size if size > 1 else m.length
        )


def take_message(s, g, m, form):
    """Cut a message into datagrams; each waits to be forwarded (`settle`), or is counted as dropped."""
    arrival: cython.pointer(Arrival)
    position: uint32_t
    offset: uint32_t = 0
    size: uint32_t
    hint: uint32_t = inner_superframe(m, form)
    reason: cython.int = DropReason.PASS
    step: uint32_t = m.gso_size if m.gso_size and not hint else m.length
    s.messages += 1
    position = find_vtep(g.vteps, m.family, m.high, m.low)
    if m.truncated:
        reason = DropReason.OUTER_TRUNCATED
    elif position == cython.cast(uint32_t, NO_VTEP):
        reason = DropReason.UNKNOWN_VTEP
    elif not g.vteps.vteps[position].accepts >> form & 1:
        reason = DropReason.FORMAT_REFUSED
    elif m.length == 0:
        reason = DropReason.VXLAN_SHORT
    if reason != DropReason.PASS:
        refuse_message(s, m, form, reason)
        return
    while offset < m.length:
        size = m.length - offset
        if size > step:
            size = step
        s.datagrams += 1
        if s.waiting == ARRIVALS:
            settle(s, g)
        arrival = cython.address(s.arrivals[s.waiting])
        arrival.message = m
        arrival.form = form
        arrival.position = position
        arrival.datagram = m.data + offset
        arrival.length = size
        arrival.gso_size = hint
        reason = examine(s, g, arrival)
        if reason == DropReason.PASS:
            s.waiting += 1
        else:
            refuse(s, arrival, reason)
        offset += size


def refuse(s, a, reason):
    """Count and record one datagram."""
    s.lane.drops[reason] += 1
    if s.lane.ring != cython.NULL:
        ring_record_from(
            s.lane.ring, reason, a.message.family, a.message.high, a.message.low, a.form, a.datagram, a.length
        )


def settle(s, g):
    """What waits is forwarded, in order, or counted as dropped."""
    i: uint32_t
    for i in range(s.waiting):
        settle_one(s, g, cython.address(s.arrivals[i]))
    s.waiting = 0
    if s.lane.tracker.hold.due:
        release_datagrams(s, g)


def settle_one(s, g, a):
    """One of them."""
    s.target = NO_TARGET
    reason: cython.int = forward(s, g, a)
    if reason != DropReason.PASS:
        refuse(s, a, reason)
        if s.target != NO_TARGET:
            s.lane.ports[g.ports[s.target].slot].drops += 1


def forward(s, g, a):
    """One datagram that has been checked: PASS when handed over or held, else the drop reason."""
    inner: cython.pointer(Inner) = cython.address(a.inner)
    verdict: uint32_t
    ecn: cython.int
    reason: cython.int = admit(s, g, a.position, inner)
    if reason != DropReason.PASS:
        return reason
    if a.message.tos & 3:
        ecn = decapsulated_ecn(a.message.tos, inner.tos)
        if ecn < 0:
            return DropReason.ECN_CE_NOT_ECT
        if ecn != inner.tos & 3:
            set_ecn(a.packet, cython.cast(uint8_t, ecn))
    s.target = s.last_target
    if g.flows != cython.NULL:
        verdict = track(cython.address(s.lane.tracker), g, inner, a.packet, UNDERLAY_ENTRY, a.hash)
        if verdict > BY_NODE_PORT:
            if verdict >> REFUSED_SHIFT == DropReason.POLICY_FRAGMENT and hold_datagram(s, g, a):
                return DropReason.PASS
            if verdict & ANSWER:
                answer_cut(s, g, cython.address(g.vteps.vteps[a.position]), verdict, a.packet, inner)
            return verdict >> REFUSED_SHIFT
        if verdict == BY_NODE_PORT:
            s.target = 0
    return hand_over(s, g, a.position, a.packet, inner, a.gso_size)


def jumbo_gso_size(port, packet, inner):
    """TCP payload per segment when a whole packet exceeds the port's MTU, else 0."""
    header: uint32_t
    if inner.length <= port.mtu or inner.protocol != IPPROTO_TCP or inner.fragment != WHOLE:
        return 0
    header = inner.l4 + cython.cast(uint32_t, packet[inner.l4 + 12] >> 4) * 4
    if header + 8 > port.mtu:
        return 0
    return port.mtu - header


def hand_over(s, g, position, packet, inner, gso_size):
    """Give the packet to the merger for its port; PASS or the drop reason."""
    port: cython.pointer(PortEntry) = cython.address(g.ports[s.target])
    vtep: cython.pointer(Vtep) = cython.address(g.vteps.vteps[position])
    count: cython.pointer(PortCount) = cython.address(s.lane.ports[port.slot])
    fd: cython.int = port.fds[s.lane.shared.worker]
    if fd < 0:
        return DropReason.PORT_GONE
    if port.kind == POD_PORT:
        if inner.ttl <= 1:
            answer_peer(s, g, vtep, packet, inner, TIME_EXCEEDED, 0)
            return DropReason.TTL_EXPIRED
        decrement_ttl(packet)
    if gso_size and inner.protocol != IPPROTO_UDP:
        gso_size = 0
    if gso_size == 0:
        gso_size = jumbo_gso_size(port, packet, inner)
    if gso_size == 0 and port.kind == POD_PORT and inner.length > port.mtu and inner.dont_fragment:
        answer_peer(s, g, vtep, packet, inner, PACKET_TOO_BIG, port.mtu)
        return DropReason.TOO_BIG
    if port.ethernet:
        if deliver(cython.address(s.lane), port, packet, inner, gso_size):
            count_taken(s, vtep.slot, count, inner.length)
        else:
            count.drops += 1
        return DropReason.PASS
    count_taken(s, vtep.slot, count, inner.length)
    if gso_size:
        s.lane.superframes += 1
        merge_superframe(
            cython.address(s.merger), fd, port.features, position, packet, inner.length, inner.l4, inner.protocol,
            gso_size,
        )
    else:
        merge_add(cython.address(s.merger), fd, port.features, position, packet, inner.length)
    return DropReason.PASS


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def count_taken(
    s: cython.pointer(Ingress), slot: uint32_t, count: cython.pointer(PortCount), size: uint32_t
) -> cython.void:
    """A packet for a port, from the VTEP that is counted in this slot."""
    s.lane.packets += 1
    s.lane.bytes += size
    s.carried[slot].packets += 1
    s.carried[slot].bytes += size
    count.frames_to += 1
    count.bytes_to += size


def answer_peer(s, g, vtep, packet, inner, kind, mtu):
    """An ICMP error back to the VTEP the packet came from; besides `cut`'s, all that this thread sends there."""
    out = cython.declare(uint8_t[MADE_BUFFER])
    length: uint32_t = build_error(
        cython.address(out[ENCAPSULATION]), packet, inner, kind, mtu, g.address4, g.high6, g.low6
    )
    if length and length <= vtep.mtu and allow(cython.address(s.lane.limiter), s.target, monotonic()):
        send_made(cython.address(s.lane), g, vtep, cython.address(out[ENCAPSULATION]), length, inner)
