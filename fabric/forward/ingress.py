# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The ingress thread: from the underlay to the local ports.

Theory of operation, in the order a datagram goes:

1. `ingress_run` sleeps in epoll on the receive sockets, then receives until they are empty or all buffers are used.
2. `take_message` finds the sender's VTEP by the outer source address (nothing is accepted from anyone else, nor in a
   format that is neither ours nor the sender's) and cuts a UDP_GRO message into its datagrams.
3. `take_datagram` checks the VXLAN and the inner Ethernet header, parses the packet, applies the outer ECN field.
4. `admit` holds the packet to what this VTEP may send (the inner source must route back to it) and to what lives here
   (the inner destination must be a local port): nothing is ever sent back to the underlay.
   Policy may refuse its flow; a reply of a flow that entered by the node port goes there instead (`flow_track`).
5. `hand_over` lowers the TTL in front of a pod port and gives the packet to the merger, which joins segments of a
   flow into superframes across everything one drain has received, and writes.

A kernel VXLAN peer on the same machine sends inner superframes of up to 64 KB with partial checksums: they reach us as
one datagram. TCP is recognised by its length, and gets the segment size of the port's MTU; UDP by the kernel's control
message, which then carries the inner segment size.

Limits: a packet larger than a port's MTU is handed to the node port as it is (the host's kernel answers it) and
answered by us in front of a pod port.
"""

import cython
from cython.cimports.encap.bytes import load16
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.ecn import decapsulated_ecn, set_ecn
from cython.cimports.encap.inner import IPPROTO_TCP, IPPROTO_UDP, WHOLE, Inner, decrement_ttl, parse
from cython.cimports.encap.receive import (
    RECEIVE_BUFFERS,
    Message,
    read_message,
    receive_batch,
    receiver_close,
    receiver_open,
)
from cython.cimports.encap.transmit import flush, transmitter_close, transmitter_open
from cython.cimports.encap.vtep import FORMAT_VXLAN, NO_VTEP, Vtep, find_vtep
from cython.cimports.encap.vxlan import ENCAPSULATION, ETHERTYPE_IPV6, check_ethernet, check_header
from cython.cimports.fabric.forward.cut import answer_cut
from cython.cimports.fabric.forward.drop_ring import ring_record_from
from cython.cimports.fabric.forward.ethernet import deliver
from cython.cimports.fabric.forward.flow_table import UNDERLAY_ENTRY
from cython.cimports.fabric.forward.flow_track import ANSWER, BY_NODE_PORT, REFUSED_SHIFT, track, track_batch
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
from cython.cimports.fabric.forward.snapshot import (
    KIND_SHIFT,
    POD_PORT,
    POSITION_MASK,
    TO_HOST,
    TO_PORT,
    TO_VTEP,
    Generation,
    PortEntry,
)
from cython.cimports.fabric.forward.tunnel import MADE_BUFFER, send_made
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.posix.unistd import close, read
from cython.cimports.routes.fib import lookup4, lookup6
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
        count = epoll_wait(s.lane.epoll, cython.address(events[0]), 8, -1)
        if count <= 0:
            continue
        for i in range(count):
            if events[i].data.u32 == WAKE:
                read(s.lane.wake, cython.address(token), 8)
        offer(s, ingress_turn(s))


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
    message: Message
    first: uint32_t = 0
    n: cython.int
    i: uint32_t
    k: uint32_t
    turn: uint32_t
    track_batch(cython.address(s.lane.tracker), g)
    for turn in range(s.watched):
        k = (s.turn + turn) % s.watched
        while first < RECEIVE_BUFFERS:
            n = receive_batch(cython.address(s.receiver), s.lane.shared.sockets[k], first)
            if n <= 0:
                break
            for i in range(first, first + n):
                read_message(cython.address(s.receiver), i, cython.address(message), cython.address(s.drops_seen[k]))
                take_message(s, g, cython.address(message), s.lane.shared.formats[k])
            first += n
            if n == 1 and message.gso_size == 0:
                break  # a packet that came alone is rarely followed at once; if so, epoll says so
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


def inner_superframe(m, form):
    """Inner segment size when the whole message is one datagram holding a UDP superframe, else 0.

    The kernel reports gso_size both for merged datagrams and for a tunnelled UDP superframe. The first inner IP
    length tells them apart: it fills the message in the second case, one datagram in the first.
    """
    offset: uint32_t = ENCAPSULATION if form == FORMAT_VXLAN else 0
    if m.gso_size == 0 or m.length < offset + 40:
        return 0
    total: uint32_t = load16(m.data + offset + 2)
    if m.data[offset] >> 4 == 6:
        total = cython.cast(uint32_t, load16(m.data + offset + 4)) + 40
    return m.gso_size if total + offset == m.length else 0


def take_message(s, g, m, form):
    """Cut a message into datagrams; each is forwarded or counted as dropped."""
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
        s.target = NO_TARGET
        reason = take_datagram(s, g, m, form, position, m.data + offset, size, hint)
        if reason != DropReason.PASS:
            s.lane.drops[reason] += 1
            if s.lane.ring != cython.NULL:
                ring_record_from(s.lane.ring, reason, m.family, m.high, m.low, form, m.data + offset, size)
            if s.target != NO_TARGET:
                s.lane.ports[g.ports[s.target].slot].drops += 1
        offset += size


def take_datagram(s, g, m, form, position, data, length, gso_size):
    """One datagram: PASS when handed over, else the drop reason."""
    inner: Inner
    vtep: cython.pointer(Vtep) = cython.address(g.vteps.vteps[position])
    reason: cython.int
    verdict: uint32_t
    ecn: cython.int
    if form == FORMAT_VXLAN:
        reason = check_header(data, length, g.vni, g.strict)
        if reason != DropReason.PASS:
            return reason
        reason = check_ethernet(
            data + 8, cython.address(vtep.own_mac[0]), cython.NULL if vtep.any_mac else cython.address(vtep.mac[0])
        )
        if reason != DropReason.PASS:
            return reason
        data += ENCAPSULATION
        length -= ENCAPSULATION
    reason = parse(data, length, cython.address(inner))
    if reason != DropReason.PASS:
        return reason
    if form == FORMAT_VXLAN and ((data - 2)[0] == ETHERTYPE_IPV6 >> 8) != (inner.family == 6):
        return DropReason.INNER_VERSION
    reason = admit(s, g, position, cython.address(inner))
    if reason != DropReason.PASS:
        return reason
    if m.tos & 3:
        ecn = decapsulated_ecn(m.tos, inner.tos)
        if ecn < 0:
            return DropReason.ECN_CE_NOT_ECT
        if ecn != inner.tos & 3:
            set_ecn(data, cython.cast(uint8_t, ecn))
    s.target = s.last_target
    if g.flows != cython.NULL:
        verdict = track(cython.address(s.lane.tracker), g, cython.address(inner), data, UNDERLAY_ENTRY)
        if verdict > BY_NODE_PORT:
            if verdict & ANSWER:
                answer_cut(s, g, vtep, verdict, data, cython.address(inner))
            return verdict >> REFUSED_SHIFT
        if verdict == BY_NODE_PORT:
            s.target = 0
    return hand_over(s, g, position, data, cython.address(inner), gso_size)


def admit(s, g, position, inner):
    """PASS when source and destination are allowed; `last_target` is then the port position."""
    route: uint32_t
    if (
        s.last_src_low == inner.src_low
        and s.last_dst_low == inner.dst_low
        and s.last_vtep == position
        and s.last_number == g.number
        and s.last_src_high == inner.src_high
        and s.last_dst_high == inner.dst_high
        and s.last_family == inner.family
    ):
        return DropReason.PASS
    if inner.family == 4:
        route = lookup4(g.fib, cython.cast(uint32_t, inner.src_low))
    else:
        route = lookup6(g.fib, inner.src_high, inner.src_low)
    if route != (TO_VTEP << KIND_SHIFT | position) and route != (TO_HOST << KIND_SHIFT | position):
        return DropReason.SOURCE_NOT_LEASED
    if inner.family == 4:
        route = lookup4(g.fib, cython.cast(uint32_t, inner.dst_low))
    else:
        route = lookup6(g.fib, inner.dst_high, inner.dst_low)
    if route >> KIND_SHIFT != TO_PORT:
        return DropReason.DESTINATION_NOT_LOCAL
    s.last_number = g.number
    s.last_vtep = position
    s.last_family = inner.family
    s.last_src_high = inner.src_high
    s.last_src_low = inner.src_low
    s.last_dst_high = inner.dst_high
    s.last_dst_low = inner.dst_low
    s.last_target = route & POSITION_MASK
    return DropReason.PASS


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
            s.lane.packets += 1
            s.lane.bytes += inner.length
            count.frames_to += 1
            count.bytes_to += inner.length
        else:
            count.drops += 1
        return DropReason.PASS
    s.lane.packets += 1
    s.lane.bytes += inner.length
    count.frames_to += 1
    count.bytes_to += inner.length
    if gso_size:
        s.lane.superframes += 1
        merge_superframe(
            cython.address(s.merger), fd, port.features, position, packet, inner.length, inner.l4, inner.protocol,
            gso_size,
        )
    else:
        merge_add(cython.address(s.merger), fd, port.features, position, packet, inner.length)
    return DropReason.PASS


def answer_peer(s, g, vtep, packet, inner, kind, mtu):
    """An ICMP error back to the VTEP the packet came from; besides `cut`'s, all that this thread sends there."""
    out = cython.declare(uint8_t[MADE_BUFFER])
    length: uint32_t = build_error(
        cython.address(out[ENCAPSULATION]), packet, inner, kind, mtu, g.address4, g.high6, g.low6
    )
    if length and length <= vtep.mtu and allow(cython.address(s.lane.limiter), s.target, monotonic()):
        send_made(cython.address(s.lane), g, vtep, cython.address(out[ENCAPSULATION]), length, inner)
