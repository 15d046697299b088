# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Frames that leave for a VTEP: TTL, MTU, cutting of superframes, fragments, tunnel headers.

Payload stays where it was read; only headers are written, a single packet's just in front of it in the arena, those of
segments and fragments in the side buffer.

Limits: IPv4 options of fragments are copied by RFC 791's rules; a superframe whose segments exceed the path MTU is
answered as if DF were set, never cut smaller.
"""

import cython
from cython.cimports.encap.bytes import load16, store16
from cython.cimports.encap.checksum import fold, header_sum
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import decrement_ttl
from cython.cimports.encap.transmit import SendQueue, add_datagram, flush, queue_for
from cython.cimports.encap.vtep import FORMAT_NONE, FORMAT_VXLAN
from cython.cimports.encap.vxlan import ENCAPSULATION, stamp
from cython.cimports.fabric.forward.batch import HEADROOM, egress_flush, side_room
from cython.cimports.fabric.forward.icmp import PACKET_TOO_BIG, TIME_EXCEEDED
from cython.cimports.fabric.forward.inject import inject_superframe
from cython.cimports.fabric.forward.lane import drop, write_frame
from cython.cimports.fabric.forward.local import answer, frame_size
from cython.cimports.fabric.forward.snapshot import POD_PORT
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.tun.checksum import complete
from cython.cimports.tun.split import Superframe, split_header, split_open
from cython.cimports.tun.vnet import VNET_HEADER_SIZE, VNET_NEEDS_CSUM, VnetHeader


def to_tunnel(e, g, position, vtep, frame, inner, vnet):
    """Encapsulate towards a VTEP; True when the frame's memory is queued."""
    s: Superframe
    too_big: cython.bint
    if vtep.format != FORMAT_VXLAN and inner.family == 6:
        drop(cython.address(e.lane), DropReason.FAMILY_UNSUPPORTED)
        return False
    if g.ports[position].kind == POD_PORT:
        if inner.ttl <= 1:
            drop(cython.address(e.lane), DropReason.TTL_EXPIRED)
            answer(e, g, position, frame, inner, TIME_EXCEEDED, 0)
            return False
        decrement_ttl(frame)
    too_big = frame_size(inner, frame, vnet) > vtep.mtu
    if too_big and inner.dont_fragment:
        drop(cython.address(e.lane), DropReason.TOO_BIG)
        answer(e, g, position, frame, inner, PACKET_TOO_BIG, vtep.mtu)
        return False
    if vnet.gso_type:
        if split_open(cython.address(s), frame, inner.length, vnet) < 0:
            drop(cython.address(e.lane), DropReason.SUPERFRAME)
            return False
        if too_big:
            # A superframe without DF whose segments do not fit: the rare case is answered as if DF were set.
            drop(cython.address(e.lane), DropReason.TOO_BIG)
            answer(e, g, position, frame, inner, PACKET_TOO_BIG, vtep.mtu)
            return False
        if e.tap >= 0 and vtep.format == FORMAT_VXLAN:
            # What is queued of this flow goes first: the TAP is another way to the wire.
            egress_flush(e)
            if inject_superframe(e, g, vtep, frame, inner, cython.address(s), vnet):
                return False
        return cut_superframe(e, vtep, inner, cython.address(s))
    if vnet.flags & VNET_NEEDS_CSUM:
        if cython.cast(uint32_t, vnet.csum_start) + vnet.csum_offset + 2 > inner.length:
            drop(cython.address(e.lane), DropReason.SUPERFRAME)
            return False
        complete(frame, inner.length, vnet.csum_start, vnet.csum_offset)
    if too_big:
        return send_fragments(e, vtep, frame, inner)
    return send_whole(e, vtep, frame, inner)


def send_whole(e, vtep, frame, inner):
    """Queue one packet with its tunnel header stamped into the bytes before it."""
    q: cython.pointer(SendQueue) = queue_for(cython.address(e.lane.transmitter), vtep.family, inner.hash)
    if q == cython.NULL:
        drop(cython.address(e.lane), DropReason.FAMILY_UNSUPPORTED)
        return False
    e.lane.packets += 1
    e.lane.bytes += inner.length
    if vtep.format == FORMAT_VXLAN:
        stamp(frame - HEADROOM, cython.address(vtep.header[0]), inner.family)
        add_datagram(
            cython.address(e.lane.transmitter), q, vtep, inner.tos & 3, frame - HEADROOM, inner.length + HEADROOM,
            cython.NULL, 0,
        )
    else:
        add_datagram(
            cython.address(e.lane.transmitter), q, vtep, inner.tos & 3, frame, inner.length, cython.NULL, 0
        )
    return True


def cut_superframe(e, vtep, inner, s):
    """Queue all segments of a superframe and send: headers from the side buffer, payload in place."""
    q: cython.pointer(SendQueue) = queue_for(cython.address(e.lane.transmitter), vtep.family, inner.hash)
    head: cython.pointer(uint8_t)
    prefix: uint32_t = HEADROOM if vtep.format == FORMAT_VXLAN else 0
    payload: uint32_t
    i: uint32_t
    if q == cython.NULL:
        drop(cython.address(e.lane), DropReason.FAMILY_UNSUPPORTED)
        return False
    for i in range(s.segments):
        head = side_room(e, prefix + s.header_length)
        if prefix:
            stamp(head, cython.address(vtep.header[0]), inner.family)
        payload = split_header(s, i, head + prefix)
        add_datagram(
            cython.address(e.lane.transmitter), q, vtep, inner.tos & 3, head, prefix + s.header_length,
            cython.cast(cython.pointer(uint8_t), s.frame) + s.header_length + i * s.gso_size, payload,
        )
        e.lane.bytes += s.header_length + payload
    e.lane.packets += s.segments
    e.lane.superframes += 1
    egress_flush(e)
    return False


def fragment_header(out, frame, header, first):
    """IPv4 header of a fragment: all options on the first, the copied ones after (RFC 791); returns its length."""
    i: uint32_t = 20
    size: uint32_t
    memcpy(out, frame, header)
    if first:
        return header
    while i < header:
        if out[i] == 0:
            break
        if out[i] == 1:
            i += 1
            continue
        size = out[i + 1] if i + 1 < header else 0
        if size < 2 or i + size > header:
            break
        if not out[i] & 0x80:
            memset(out + i, 1, size)
        i += size
    return header


def send_fragments(e, vtep, frame, inner):
    """Queue an IPv4 packet without DF as fragments that fit the path (RFC 791); all but the last multiples of 8."""
    q: cython.pointer(SendQueue) = queue_for(cython.address(e.lane.transmitter), vtep.family, inner.hash)
    header: uint32_t = cython.cast(uint32_t, frame[0] & 15) * 4
    prefix: uint32_t = HEADROOM if vtep.format == FORMAT_VXLAN else 0
    offset: uint32_t = 0
    total: uint32_t = inner.length - header
    word: uint32_t = load16(frame + 6)
    step: uint32_t
    part: uint32_t
    head: cython.pointer(uint8_t)
    if q == cython.NULL or vtep.mtu < header + 8:
        drop(cython.address(e.lane), DropReason.TOO_BIG)
        return False
    step = (vtep.mtu - header) & ~cython.cast(uint32_t, 7)
    while offset < total:
        part = total - offset
        if part > step:
            part = step
        head = side_room(e, prefix + header)
        if prefix:
            stamp(head, cython.address(vtep.header[0]), 4)
        fragment_header(head + prefix, frame, header, offset == 0)
        store16(head + prefix + 2, header + part)
        store16(
            head + prefix + 6,
            (word & 0xC000) | ((word & 0x1FFF) + offset // 8) | (0x2000 if offset + part < total else word & 0x2000),
        )
        store16(head + prefix + 10, 0)
        store16(head + prefix + 10, fold(header_sum(head + prefix, header)) ^ 0xFFFF)
        add_datagram(
            cython.address(e.lane.transmitter), q, vtep, inner.tos & 3, head, prefix + header, frame + header + offset,
            part,
        )
        offset += part
        e.lane.packets += 1
        e.lane.bytes += header + part
    return True


def send_made(lane, g, vtep, packet, length, inner):
    """At once, with what is queued before it."""
    none: VnetHeader
    q: cython.pointer(SendQueue) = queue_for(cython.address(lane.transmitter), vtep.family, inner.hash)
    prefix: uint32_t = ENCAPSULATION if vtep.format == FORMAT_VXLAN else 0
    if q == cython.NULL or length > vtep.mtu:
        return
    if vtep.format == FORMAT_NONE:
        memset(cython.address(none), 0, VNET_HEADER_SIZE)
        write_frame(
            g.ports[0].fds[lane.shared.worker], cython.cast(cython.pointer(uint8_t), cython.address(none)),
            VNET_HEADER_SIZE, packet, length, cython.NULL, 0,
        )
        return
    if prefix:
        stamp(packet - ENCAPSULATION, cython.address(vtep.header[0]), inner.family)
    add_datagram(
        cython.address(lane.transmitter), q, vtep, 0, packet - prefix, length + prefix, cython.NULL, 0
    )
    flush(cython.address(lane.transmitter))
