# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Frames that stay on this node: from one port to another, and the errors a port is answered with."""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import decrement_ttl
from cython.cimports.fabric.forward.icmp import ICMP_BUFFER, PACKET_TOO_BIG, TIME_EXCEEDED, allow, build_error
from cython.cimports.fabric.forward.lane import drop, monotonic, write_packet, write_port
from cython.cimports.fabric.forward.snapshot import POD_PORT, PortEntry
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.libc.string import memset
from cython.cimports.tun.checksum import complete
from cython.cimports.tun.split import Superframe, split_header, split_open
from cython.cimports.tun.vnet import (
    FEATURE_CSUM,
    FEATURE_TSO,
    FEATURE_USO,
    GSO_ECN,
    GSO_UDP_L4,
    VNET_HEADER_SIZE,
    VNET_NEEDS_CSUM,
    VnetHeader,
)


def frame_size(inner, frame, vnet):
    """Bytes of the largest IP packet this frame becomes: itself, or one segment of a superframe."""
    header: uint32_t
    if vnet.gso_type == 0:
        return inner.length
    header = inner.l4
    if vnet.gso_type == GSO_UDP_L4:
        header += 8
    elif inner.length >= header + 20:
        header += cython.cast(uint32_t, frame[header + 12] >> 4) * 4
    header += vnet.gso_size
    return header if header < inner.length else inner.length


def to_port(e, g, position, target, frame, inner, vnet):
    """Hand a frame to another port of this node, superframes whole where the port takes them."""
    source: cython.pointer(PortEntry) = cython.address(g.ports[position])
    port: cython.pointer(PortEntry) = cython.address(g.ports[target])
    out: VnetHeader = vnet[0]
    s: Superframe
    need: uint32_t = 0
    if port.fds[e.lane.shared.worker] < 0:
        drop(cython.address(e.lane), DropReason.PORT_GONE)
        return
    if source.kind == POD_PORT and port.kind == POD_PORT:
        if inner.ttl <= 1:
            drop(cython.address(e.lane), DropReason.TTL_EXPIRED)
            answer(e, g, position, frame, inner, TIME_EXCEEDED, 0)
            return
        decrement_ttl(frame)
    # Without DF it goes in whole, as from the tunnel: a TUN takes more than its MTU.
    if port.kind == POD_PORT and inner.dont_fragment and frame_size(inner, frame, vnet) > port.mtu:
        drop(cython.address(e.lane), DropReason.TOO_BIG)
        answer(e, g, position, frame, inner, PACKET_TOO_BIG, port.mtu)
        return
    if vnet.gso_type:
        need = FEATURE_USO if (vnet.gso_type & ~cython.cast(uint32_t, GSO_ECN)) == GSO_UDP_L4 else FEATURE_TSO
    if split_open(cython.address(s), frame, inner.length, vnet) < 0 if need else False:
        drop(cython.address(e.lane), DropReason.SUPERFRAME)
        return
    e.lane.local += 1
    if need and not port.features & need:
        write_segments(e, port, frame, cython.address(s))
        return
    if need:
        out.hdr_len = s.header_length
    elif vnet.flags & VNET_NEEDS_CSUM:
        if cython.cast(uint32_t, vnet.csum_start) + vnet.csum_offset + 2 > inner.length:
            drop(cython.address(e.lane), DropReason.SUPERFRAME)
            return
        out.hdr_len = vnet.csum_start
        if not port.features & FEATURE_CSUM:
            complete(frame, inner.length, vnet.csum_start, vnet.csum_offset)
            memset(cython.address(out), 0, VNET_HEADER_SIZE)
    else:
        memset(cython.address(out), 0, VNET_HEADER_SIZE)
    if write_port(cython.address(e.lane), port, cython.address(out), frame, inner.length, cython.NULL, 0):
        e.lane.packets += s.segments if need else 1
        e.lane.bytes += inner.length
        e.lane.ports[port.slot].frames_to += 1
        e.lane.ports[port.slot].bytes_to += inner.length


def write_segments(e, port, frame, s):
    """A superframe to a port that does not take it whole."""
    none: VnetHeader
    head = cython.declare(uint8_t[512])
    payload: uint32_t
    i: uint32_t
    memset(cython.address(none), 0, VNET_HEADER_SIZE)
    if s.header_length > 512:
        drop(cython.address(e.lane), DropReason.SUPERFRAME)
        return
    for i in range(s.segments):
        payload = split_header(s, i, cython.address(head[0]))
        if write_port(
            cython.address(e.lane), port, cython.address(none), cython.address(head[0]), s.header_length,
            frame + s.header_length + i * s.gso_size, payload,
        ):
            e.lane.packets += 1
            e.lane.bytes += s.header_length + payload
            e.lane.ports[port.slot].frames_to += 1
            e.lane.ports[port.slot].bytes_to += s.header_length + payload


def answer(e, g, position, frame, inner, kind, mtu):
    """An ICMP error back through the port the frame came from."""
    out = cython.declare(uint8_t[ICMP_BUFFER])
    none: VnetHeader
    length: uint32_t = build_error(
        cython.address(out[0]), frame, inner, kind, mtu, g.address4, g.high6, g.low6
    )
    if length == 0 or not allow(cython.address(e.lane.limiter), position, monotonic()):
        return
    memset(cython.address(none), 0, VNET_HEADER_SIZE)
    # Not counted when the port refuses it: nobody gave us this packet.
    write_packet(
        cython.address(g.ports[position]), e.lane.shared.worker, cython.address(none), cython.address(out[0]), length,
        cython.NULL, 0,
    )
