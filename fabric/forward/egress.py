# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The egress thread: from the local ports towards the fabric.

Theory of operation, in the order a frame goes:

1. `egress_run` sleeps in epoll on the ports, then drains each ready port by at most BUDGET frames a turn. While traffic
   is sparse it does the ingress thread's work too (`joint`).
2. `drain_port` reads a frame into the arena just behind the previous one, with room for the tunnel header in between:
   small packets of one drain are adjacent and leave as one UDP_SEGMENT train of a single iovec.
3. `examine` parses it, checks a pod's source address and has the flow's record loaded: records are far from the cache
   between two batches. So up to WINDOW small frames are read before the first is forwarded.
4. `forward` finds the route (the last destination is remembered) and the flow (`flow_track`), which policy may refuse
   and whose replies may have to leave by the node port. A fragment may have to wait for the first one (`release`).
5. `to_tunnel` checks TTL and MTU; a superframe is cut by `cut_superframe` into headers in the side buffer and payload
   pieces in place; a single packet gets its checksum finished and its tunnel header stamped in front of it.
   `to_port` hands a frame, superframes whole, to another port of this node.
6. `egress_flush` sends what the drain has queued. A superframe is sent at once: read one, send one keeps it in cache.

Order: a flow has one queue and one queue is in order. TTL is lowered where this node is an IP hop that no kernel
counts: frames that a pod port sent, on their way to a VTEP or to another pod port (see docs/architecture.md).

Limits: frames up to 65,535 bytes; see `tunnel` for what is answered instead of cut.
"""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import IPPROTO_UDP, Inner, parse, unicast4, unicast6
from cython.cimports.encap.net import poll
from cython.cimports.encap.vtep import FORMAT_NONE, NO_VTEP, find_vtep
from cython.cimports.fabric.forward.batch import ARENA_SIZE, FRAME_ROOM, HEADROOM, WINDOW, Egress, Frame, egress_flush
from cython.cimports.fabric.forward.cut import refuse_frame
from cython.cimports.fabric.forward.drop_ring import FROM_PORT, FROM_PORT_ETHERNET, Ring, ring_record
from cython.cimports.fabric.forward.ethernet import unwrap
from cython.cimports.fabric.forward.flow_track import BY_NODE_PORT, foresee, track, track_batch
from cython.cimports.fabric.forward.icmp import HOST_UNREACHABLE, NET_UNREACHABLE
from cython.cimports.fabric.forward.ingress import ingress_turn
from cython.cimports.fabric.forward.joint import SOCKET_TOKEN, follow, patience, weigh
from cython.cimports.fabric.forward.kernel import (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLIN,
    ORDERED,
    atomic_load,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
)
from cython.cimports.fabric.forward.lane import PortCount, drop, lane_enter, lane_idle
from cython.cimports.fabric.forward.local import answer, to_port
from cython.cimports.fabric.forward.policing import route_to
from cython.cimports.fabric.forward.release import ALL_EXPIRED, lose_expired, release_frames
from cython.cimports.fabric.forward.snapshot import (
    BRIDGE_PORT,
    KIND_SHIFT,
    LINK_HEADER,
    MAX_WORKERS,
    NODE_PORT,
    POSITION_MASK,
    TO_HOST,
    TO_PORT,
    TO_VTEP,
    Generation,
    PortEntry,
)
from cython.cimports.fabric.forward.tunnel import to_tunnel
from cython.cimports.libc.errno import EAGAIN, EBADF, EBADFD, EFAULT, EINTR, ENODEV, errno
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.unistd import close, read
from cython.cimports.routes.fib import NO_ROUTE, lookup4, lookup6
from cython.cimports.tun.vnet import VNET_HEADER_SIZE, VnetHeader

WAKE = cython.declare(uint32_t, 0x7FFFFFFF)
RETRY_MS = cython.declare(cython.int, 50)


def egress_run(e):
    """Thread body: until `stop` is set. Needs no GIL.

    One turn of at most BUDGET frames per ready port between two polls: a port that is never empty delays the others by
    its turn only.
    """
    events = cython.declare(epoll_event[EVENTS])
    g: cython.pointer(Generation)
    count: cython.int
    i: cython.int
    token: uint64_t
    sockets: cython.bint
    before: uint64_t
    packets: uint64_t
    while not atomic_load(cython.address(e.lane.shared.stop), ORDERED):
        g = lane_enter(cython.address(e.lane))
        if e.lane.epoll < 0 or (g != cython.NULL and g.ports_version != e.ports_version):
            watch_ports(e, g)
        follow(e)
        lane_idle(cython.address(e.lane))
        count = epoll_wait(e.lane.epoll, cython.address(events[0]), EVENTS, patience(e))
        if count < 0:
            if e.lane.epoll < 0:
                # No descriptor is left for the new set: try again soon.
                poll(cython.NULL, 0, RETRY_MS)
            continue
        e.lane.wakeups += 1
        g = lane_enter(cython.address(e.lane))
        if g != cython.NULL:
            track_batch(cython.address(e.lane.tracker), g)
            if e.lane.tracker.hold.count:
                lose_expired(cython.address(e.lane), g, e.lane.tracker.now)
        # Nothing for a while: perhaps something of the ingress thread's expires.
        sockets = count == 0 and e.lane.shared.joint
        before = e.lane.packets
        for i in range(count):
            if events[i].data.u32 == WAKE:
                read(e.lane.wake, cython.address(token), 8)
            elif events[i].data.u32 & SOCKET_TOKEN:
                sockets = True
            elif g != cython.NULL and g.ports_version == e.ports_version:
                drain_port(e, g, events[i].data.u32)
        egress_flush(e)
        packets = e.lane.packets - before
        if sockets:
            e.joint_turns += 1
            packets += ingress_turn(e.ingress)
        weigh(e, packets)
    lose_expired(cython.address(e.lane), cython.NULL, ALL_EXPIRED)
    if e.lane.shared.joint:
        lose_expired(cython.address(e.ingress.lane), cython.NULL, ALL_EXPIRED)
    lane_idle(cython.address(e.lane))


def watch_ports(e, g):
    """A new epoll set for this generation's ports and the wake-up descriptor."""
    event: epoll_event
    i: uint32_t
    worker: uint32_t = e.lane.shared.worker
    if e.lane.epoll >= 0:
        close(e.lane.epoll)
    e.lane.epoll = epoll_create1(EPOLL_CLOEXEC)
    e.joined = 0
    event.events = EPOLLIN
    event.data.u64 = 0
    event.data.u32 = WAKE
    epoll_ctl(e.lane.epoll, EPOLL_CTL_ADD, e.lane.wake, cython.address(event))
    if g == cython.NULL:
        return
    e.ports_version = g.ports_version
    for i in range(g.port_count):
        if g.ports[i].fds[worker] >= 0 and (g.ports[i].owner == MAX_WORKERS or g.ports[i].owner == worker):
            event.data.u32 = i
            epoll_ctl(e.lane.epoll, EPOLL_CTL_ADD, g.ports[i].fds[worker], cython.address(event))


def drain_port(e, g, position):
    """Read and forward up to BUDGET frames of a port; what is dropped meanwhile is the port's."""
    count: cython.pointer(PortCount) = cython.address(e.lane.ports[g.ports[position].slot])
    before: uint64_t = e.lane.dropped
    read_port(e, g, position, count)
    count.drops += e.lane.dropped - before


def read_port(e, g, position, count):
    """Up to BUDGET frames of a port."""
    fd: cython.int = g.ports[position].fds[e.lane.shared.worker]
    frame: cython.pointer(Frame)
    base: cython.pointer(uint8_t)
    n: cython.Py_ssize_t
    _turn: uint32_t
    for _turn in range(BUDGET):
        if e.fill > ARENA_SIZE - HEADROOM:
            forward_waiting(e, g, position)
            egress_flush(e)
        base = e.arena + e.fill + HEADROOM - VNET_HEADER_SIZE
        n = read(fd, base, FRAME_ROOM - HEADROOM)
        if n <= 0:
            if n < 0 and errno == EINTR:
                continue
            if n < 0 and errno not in (EAGAIN, EBADFD, EFAULT, ENODEV, EBADF):
                # One frame is lost and the port lives: EINVAL for a GSO type that tun_put_user (drivers/net/tun.c)
                # cannot express.
                drop(cython.address(e.lane), DropReason.PORT_FAILED)
                continue
            if n == 0 or errno != EAGAIN:
                # The device was deleted (0: the far end of a memory port): stop watching it, or it would stay ready
                # for ever; the control plane makes a new one.
                drop(cython.address(e.lane), DropReason.PORT_GONE)
                epoll_ctl(e.lane.epoll, EPOLL_CTL_DEL, fd, cython.NULL)
            break
        if e.waiting == 0:
            e.window_start = e.fill
        frame = cython.address(e.window[e.waiting])
        if accept(e, g, position, base, cython.cast(uint32_t, n), count, frame):
            e.fill += cython.cast(uint32_t, n) - VNET_HEADER_SIZE + HEADROOM
            frame.end = e.fill
            e.waiting += 1
            if e.waiting == WINDOW or n > SMALL:
                forward_waiting(e, g, position)
    forward_waiting(e, g, position)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def accept(
    e: cython.pointer(Egress), g: cython.pointer(cython.const[Generation]), position: uint32_t,
    base: cython.pointer(uint8_t), n: uint32_t, count: cython.pointer(PortCount), frame: cython.pointer(Frame),
) -> cython.bint:
    """What was read, `n` bytes from the virtio-net header on: counted and checked; False when it is dropped."""
    ring: cython.pointer(Ring) = e.lane.ring
    link: uint32_t = 0
    if n <= VNET_HEADER_SIZE:
        drop(cython.address(e.lane), DropReason.INNER_SHORT)
        return False
    memcpy(cython.address(frame.vnet), base, VNET_HEADER_SIZE)
    base += VNET_HEADER_SIZE
    n -= VNET_HEADER_SIZE
    e.lane.refused = DropReason.PASS
    if g.ports[position].ethernet:
        link = LINK_HEADER
        if not unwrap(e, cython.address(g.ports[position]), base, n, cython.address(frame.vnet)):
            if ring != cython.NULL and e.lane.refused:
                ring_record(ring, FROM_PORT_ETHERNET, e.lane.refused, position, base, n)
            return False
    count.frames_from += 1
    count.bytes_from += n - link
    if examine(e, g, position, base + link, n - link, frame):
        return True
    if ring != cython.NULL and e.lane.refused:
        ring_record(ring, FROM_PORT, e.lane.refused, position, base + link, n - link)
    return False


def forward_waiting(e, g, position):
    """Frames of the window in order; the arena keeps room up to the last one that a queue still refers to."""
    ring: cython.pointer(Ring) = e.lane.ring
    frame: cython.pointer(Frame)
    i: uint32_t
    if e.waiting == 0:
        return
    e.fill = e.window_start
    for i in range(e.waiting):
        frame = cython.address(e.window[i])
        e.lane.refused = DropReason.PASS
        if forward(e, g, position, frame):
            e.fill = frame.end
        elif ring != cython.NULL and e.lane.refused:
            ring_record(ring, FROM_PORT, e.lane.refused, position, frame.data, frame.length)
    e.waiting = 0
    if e.lane.tracker.hold.due:
        release_frames(e, g, position)


def route_of(e, g, inner):
    """Route value of the destination; the last answer is remembered."""
    if (
        e.last_low == inner.dst_low
        and e.last_high == inner.dst_high
        and e.last_number == g.number
        and e.last_family == inner.family
    ):
        return e.last_route
    e.last_family = inner.family
    e.last_number = g.number
    e.last_high = inner.dst_high
    e.last_low = inner.dst_low
    if inner.family == 4:
        e.last_route = lookup4(g.fib, cython.cast(uint32_t, inner.dst_low))
    else:
        e.last_route = lookup6(g.fib, inner.dst_high, inner.dst_low)
    return e.last_route


def examine(e, g, position, data, length, frame):
    """Parse and check a frame, and look ahead for its flow."""
    port: cython.pointer(PortEntry) = cython.address(g.ports[position])
    inner: cython.pointer(Inner) = cython.address(frame.inner)
    reason: cython.int = parse(data, length, inner)
    if reason == DropReason.PASS and port.kind != NODE_PORT:
        reason = check_pod(g, position, inner)
    if reason != DropReason.PASS:
        drop(cython.address(e.lane), reason)
        return False
    frame.data = data
    frame.length = length
    frame.hash = foresee(cython.address(e.lane.tracker), g, inner, data)
    return True


def egress_frame(e, g, position, data, length, vnet):
    """Forward one frame of a port; True when the arena must keep it until the flush."""
    frame: Frame
    kept: cython.bint
    frame.vnet = vnet[0]
    kept = examine(e, g, position, data, length, cython.address(frame)) and forward(
        e, g, position, cython.address(frame)
    )
    if e.lane.tracker.hold.due:
        release_frames(e, g, position)
        return False
    return kept


def forward(e, g, position, frame):
    """The way of a frame that has been checked."""
    inner: cython.pointer(Inner) = cython.address(frame.inner)
    vnet: cython.pointer(VnetHeader) = cython.address(frame.vnet)
    port: cython.pointer(PortEntry) = cython.address(g.ports[position])
    target: uint32_t
    verdict: uint32_t
    route: uint32_t = route_of(e, g, inner)
    if route == cython.cast(uint32_t, NO_ROUTE):
        return no_route(e, g, position, frame)
    target = route & POSITION_MASK
    if g.flows != cython.NULL:
        verdict = track(cython.address(e.lane.tracker), g, inner, frame.data, port.account, frame.hash)
        if verdict > BY_NODE_PORT:
            return refuse_frame(e, g, position, route, verdict, frame)
        if verdict == BY_NODE_PORT:
            to_port(e, g, position, 0, frame.data, inner, vnet)
            return False
    if route >> KIND_SHIFT == TO_VTEP:
        return to_tunnel(e, g, position, cython.address(g.vteps.vteps[target]), frame.data, inner, vnet)
    if route >> KIND_SHIFT == TO_HOST:
        return to_host(e, g, position, cython.address(g.vteps.vteps[target]), frame)
    if target == position and port.kind != BRIDGE_PORT:
        drop(cython.address(e.lane), DropReason.NO_ROUTE)
        answer(e, g, position, frame.data, inner, HOST_UNREACHABLE, 0)
        return False
    to_port(e, g, position, target, frame.data, inner, vnet)
    return False


def no_route(e, g, position, frame):
    """A destination outside the fabric."""
    inner: cython.pointer(Inner) = cython.address(frame.inner)
    verdict: uint32_t
    if not is_unicast(inner):
        drop(cython.address(e.lane), DropReason.NOT_UNICAST)
        return False
    if g.ports[position].kind != NODE_PORT:
        # Everything outside the fabric is the host's business: its kernel routes and translates.
        if g.flows != cython.NULL:
            verdict = track(
                cython.address(e.lane.tracker), g, inner, frame.data, g.ports[position].account, frame.hash
            )
            if verdict > BY_NODE_PORT:
                return refuse_frame(e, g, position, cython.cast(uint32_t, NO_ROUTE), verdict, frame)
        to_port(e, g, position, 0, frame.data, inner, cython.address(frame.vnet))
        return False
    drop(cython.address(e.lane), DropReason.NO_ROUTE)
    answer(e, g, position, frame.data, inner, NET_UNREACHABLE, 0)
    return False


def is_unicast(inner):
    """Whether the destination is one host."""
    if inner.family == 4:
        return unicast4(cython.cast(uint32_t, inner.dst_low))
    return unicast6(inner.dst_high, inner.dst_low)


def to_host(e, g, position, vtep, frame):
    """A VTEP to which the host has a plain route; what the host gives us all the same is sent as we can."""
    inner: cython.pointer(Inner) = cython.address(frame.inner)
    vnet: cython.pointer(VnetHeader) = cython.address(frame.vnet)
    if g.ports[position].kind != NODE_PORT:
        to_port(e, g, position, 0, frame.data, inner, vnet)
        return False
    if vtep.format != FORMAT_NONE:
        return to_tunnel(e, g, position, vtep, frame.data, inner, vnet)
    drop(cython.address(e.lane), DropReason.NO_ROUTE)
    answer(e, g, position, frame.data, inner, NET_UNREACHABLE, 0)
    return False


def check_pod(g, position, inner):
    """A pod may send only from its own addresses, and never to a node's tunnel port, of whatever format.

    From the bridge port comes what the routes lead back to it.
    """
    port: cython.pointer(PortEntry) = cython.address(g.ports[position])
    if port.kind == BRIDGE_PORT:
        if route_to(g, inner.family, inner.src_high, inner.src_low) != (TO_PORT << KIND_SHIFT | position):
            # The host's kernel itself announces its multicast groups there.
            return DropReason.SOURCE_SPOOFED if is_unicast(inner) else DropReason.NOT_UNICAST
    elif inner.family == 4:
        if not port.has4 or inner.src_low != port.address4:
            return DropReason.SOURCE_SPOOFED
    elif not port.has6 or inner.src_low != port.low6 or inner.src_high != port.high6:
        return DropReason.SOURCE_SPOOFED
    if inner.protocol == IPPROTO_UDP and (inner.dport == g.tunnel_ports[0] or inner.dport == g.tunnel_ports[1]):
        if find_vtep(g.vteps, inner.family, inner.dst_high, inner.dst_low) != cython.cast(uint32_t, NO_VTEP):
            return DropReason.POD_TO_VTEP
        if inner.family == 4 and inner.dst_low == g.underlay4:
            return DropReason.POD_TO_VTEP
        if inner.family == 6 and inner.dst_low == g.underlay_low6 and inner.dst_high == g.underlay_high6:
            return DropReason.POD_TO_VTEP
    return DropReason.PASS
