# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""GRO merge: join the frames of one flow to a superframe and write it to a port in one system call.

Theory of operation. Each flow (port, zone, addresses, ports, protocol) has at most one open slot. A frame either
extends the slot of its flow, or that slot is written first and the frame then opens a slot or is written alone, so the
frames of a flow leave in the order in which they came. A slot holds pointers: headers are compared in place and payload
is gathered by iovec from the caller's memory. The newest slot is tried first, then a scan over 32-bit hashes; when all
slots are busy the oldest is written.

What joins (the rules of Linux `net/ipv4/tcp_offload.c`, `udp_offload.c`, stricter where noted):

| field | rule |
| --- | --- |
| IPv4 options, IPv6 extension headers, fragments | never; they first write every slot between the same addresses |
| TOS or traffic class with ECN, TTL, DF and reserved bit, flow label | equal |
| IPv4 identification | not looked at with DF, else first + n |
| TCP acknowledgment, window, urgent pointer, options | equal, byte by byte |
| TCP flags | ACK with or without ECE, equal; PSH ends the chain and is or-ed in; any other flag: alone |
| TCP sequence number | exactly the next one; an empty segment goes alone |
| payload | as long as the first, or shorter and last; 64 segments and 65,535 bytes at most |
| UDP | a checksum must be there and the length field must agree with the packet |
| checksums | IPv4 header and transport are verified before a frame joins |

A superframe leaves with NEEDS_CSUM, so the kernel computes new checksums; a frame with a wrong checksum therefore never
joins. It is written unchanged and alone, and counted. Partial checksums (see `tun.checksum`) may join; a partial frame
alone is left for the kernel to finish, or finished here when the port cannot.

Every write starts with the 10-byte virtio-net header. A refused write loses its frames; only EINTR is retried, once.

Limits. 32 flows open at once. SCTP and ICMP pass through as they are. Partial checksums behind an IPv6 routing header
are recognised only when the fixed header holds the final destination.
"""

import cython
from cython.cimports.libc.errno import EAGAIN, EBADF, EBADFD, EINTR, EIO, ENOBUFS, ENODEV, ENOMEM, errno
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.libc.string import memcmp, memcpy, memset
from cython.cimports.posix.uio import iovec, writev
from cython.cimports.tun.checksum import (
    CHECKSUM_BAD,
    CHECKSUM_GOOD,
    CHECKSUM_PARTIAL,
    Verdict,
    complete,
    fold,
    payload_sum,
    pseudo_sum,
    verify,
)
from cython.cimports.tun.frame import KIND_FLOW, KIND_ODD, Kind, Parsed, flow_hash, parse
from cython.cimports.tun.split import (
    SPLIT_HEADER,
    TCP_ACK,
    TCP_ECE,
    TCP_PSH,
    Superframe,
    split_header,
    split_open,
)
from cython.cimports.tun.vnet import (
    FEATURE_CSUM,
    FEATURE_TSO,
    FEATURE_USO,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    VNET_HEADER_SIZE,
    VNET_NEEDS_CSUM,
    VnetHeader,
)
from cython.cimports.tun.wire import load16, load32, store16


def merge_init(m):
    """Make an empty merger; all counters 0."""
    memset(m, 0, cython.sizeof(Merger))


def same_flow(slot, fd, zone, frame, p):
    """Does the frame belong to the flow of this slot? Full comparison of the key."""
    if slot.fd != fd or slot.zone != zone or slot.family != p.family or slot.protocol != p.protocol:
        return False
    if memcmp(slot.first + slot.l4, frame + p.l4, 4) != 0:
        return False
    if p.family == 4:
        return memcmp(slot.first + 12, frame + 12, 8) == 0
    return memcmp(slot.first + 8, frame + 8, 32) == 0


def find_slot(m, hash, fd, zone, frame, p):
    """Index of the open slot of the frame's flow, or -1; the slot used last is tried first."""
    i: uint32_t = m.last
    if m.hashes[i] == hash and same_flow(cython.address(m.slots[i]), fd, zone, frame, p):
        return i
    for i in range(m.used):
        if m.hashes[i] == hash and same_flow(cython.address(m.slots[i]), fd, zone, frame, p):
            return i
    return -1


def can_open(features, frame, p):
    """May this frame be the first of a chain? Its checksum is judged by the caller."""
    flags: uint32_t = 0
    if p.payload_length == 0:
        return False
    if p.protocol == 17:
        return (features & FEATURE_CSUM) != 0 and (features & FEATURE_USO) != 0
    flags = frame[p.l4 + 13]
    return (flags & ~TCP_ECE) == TCP_ACK and (features & FEATURE_CSUM) != 0 and (features & FEATURE_TSO) != 0


def can_join(slot, frame, p):
    """May this frame of the slot's flow be appended? Its checksum is judged by the caller."""
    if p.payload_length == 0 or p.payload_length > slot.gso_size or p.header_length != slot.header_length:
        return False
    if slot.header_length + slot.payload_length + p.payload_length > 65535:
        return False
    return same_network(slot, frame) and (slot.protocol == 17 or same_transport(slot, frame, p))


def same_network(slot, frame):
    """IP header fields that have to agree beyond the addresses."""
    first = slot.first
    if slot.family == 6:
        return memcmp(first, frame, 4) == 0 and first[7] == frame[7]
    if first[1] != frame[1] or first[8] != frame[8] or (first[6] ^ frame[6]) & 0xE0:
        return False
    return frame[6] & 0x40 != 0 or load16(frame + 4) == slot.next_id


def same_transport(slot, frame, p):
    """TCP header fields that have to agree, and the sequence number that has to follow."""
    old = slot.first + slot.l4
    new = frame + p.l4
    if load32(new + 4) != slot.next_seq or (new[13] & ~TCP_PSH) != slot.tcp_flags:
        return False
    if memcmp(old + 8, new + 8, 5) != 0 or memcmp(old + 14, new + 14, 2) != 0:
        return False
    return memcmp(old + 18, new + 18, slot.header_length - slot.l4 - 18) == 0


def free_slot(m):
    """Index of a free slot; writes the oldest one when all are busy."""
    i: uint32_t = 0
    oldest: uint32_t = 0
    for i in range(m.used):
        if m.hashes[i] == 0:
            return i
    if m.used < MERGE_SLOTS:
        m.used += 1
        return m.used - 1
    for i in range(1, MERGE_SLOTS):
        if m.opened[i] < m.opened[oldest]:
            oldest = i
    flush_slot(m, oldest)
    return oldest


def open_slot(m, hash, fd, features, zone, frame, p, partial):
    """Start a chain with this frame."""
    index: uint32_t = free_slot(m)
    slot = cython.address(m.slots[index])
    m.hashes[index] = hash
    m.opened[index] = m.frames
    m.last = index
    slot.hash = hash
    slot.fd = fd
    slot.zone = zone
    slot.features = features
    slot.family = p.family
    slot.protocol = p.protocol
    slot.header_length = p.header_length
    slot.l4 = p.l4
    slot.gso_size = p.payload_length
    slot.payload_length = 0
    slot.segments = 0
    slot.partial = partial
    slot.first = frame
    slot.tcp_flags = frame[p.l4 + 13] if p.protocol == 6 else 0
    slot.next_seq = load32(frame + p.l4 + 4) if p.protocol == 6 else 0
    slot.next_id = load16(frame + 4)
    join_slot(m, index, frame, p)


def join_slot(m, index, frame, p):
    """Append this frame's payload; writes the slot when nothing more can follow."""
    slot = cython.address(m.slots[index])
    slot.segments += 1
    slot.iov[slot.segments].iov_base = frame + p.header_length
    slot.iov[slot.segments].iov_len = p.payload_length
    slot.payload_length += p.payload_length
    slot.next_seq += p.payload_length
    slot.next_id += 1
    m.last = index
    if p.protocol == 6:
        slot.tcp_flags |= frame[p.l4 + 13] & TCP_PSH
    if (
        p.payload_length < slot.gso_size
        or slot.tcp_flags & TCP_PSH
        or slot.segments == MERGE_SEGMENTS
        or slot.header_length + slot.payload_length + slot.gso_size > 65535
    ):
        flush_slot(m, index)


def flush_slot(m, index):
    """Write one slot and free it; a free slot is left alone."""
    slot = cython.address(m.slots[index])
    if m.hashes[index] == 0:
        return
    m.hashes[index] = 0
    if slot.segments > 1:
        emit(m, slot)
        return
    write_frame(
        m,
        slot.fd,
        slot.features,
        slot.first,
        slot.header_length + slot.payload_length,
        slot.l4,
        slot.protocol,
        CHECKSUM_PARTIAL if slot.partial else CHECKSUM_GOOD,
    )


def flush_addresses(m, fd, frame, p):
    """Write all slots of this port between the frame's addresses, whatever their ports: its own may not be known."""
    i: uint32_t = 0
    start: uint32_t = 12 if p.family == 4 else 8
    size: uint32_t = 8 if p.family == 4 else 32
    for i in range(m.used):
        slot = cython.address(m.slots[i])
        if m.hashes[i] == 0 or slot.fd != fd or slot.family != p.family:
            continue
        if memcmp(slot.first + start, frame + start, size) == 0:
            flush_slot(m, i)


def merge_flush(m):
    """Write all open slots; after it no frame given before is referred to."""
    i: uint32_t = 0
    for i in range(m.used):
        flush_slot(m, i)
    m.used = 0


def emit(m, slot):
    """Write a slot of two or more frames as one superframe."""
    header = cython.cast(cython.p_uchar, slot.header)
    l4 = header + slot.l4
    length: uint32_t = slot.header_length + slot.payload_length
    check: uint32_t = 16 if slot.protocol == 6 else 6
    memcpy(header, slot.first, slot.header_length)
    if slot.family == 4:
        store16(header + 2, length)
        store16(header + 10, 0)
        store16(header + 10, fold(payload_sum(header, 20)) ^ 0xFFFF)
    else:
        store16(header + 4, length - 40)
    if slot.protocol == 6:
        l4[13] = slot.tcp_flags
        slot.vnet.gso_type = GSO_TCPV4 if slot.family == 4 else GSO_TCPV6
    else:
        store16(l4 + 4, length - slot.l4)
        slot.vnet.gso_type = GSO_UDP_L4
    store16(l4 + check, fold(pseudo_sum(header, slot.protocol, length - slot.l4)))
    slot.vnet.flags = VNET_NEEDS_CSUM
    slot.vnet.hdr_len = slot.header_length
    slot.vnet.gso_size = slot.gso_size
    slot.vnet.csum_start = slot.l4
    slot.vnet.csum_offset = check
    slot.iov[0].iov_base = cython.address(slot.vnet)
    slot.iov[0].iov_len = VNET_HEADER_SIZE + slot.header_length
    if write_vector(m, slot.fd, slot.iov, slot.segments + 1, length, slot.segments):
        m.merged += slot.segments


def write_frame(m, fd, features, frame, length, l4, protocol, verdict):
    """Write one frame as it is; a partial checksum is left to the kernel or, without FEATURE_CSUM, finished here."""
    vnet: VnetHeader
    iov = cython.declare(iovec[2])
    check: uint32_t = 16 if protocol == 6 else 6
    memset(cython.address(vnet), 0, VNET_HEADER_SIZE)
    if verdict == CHECKSUM_PARTIAL:
        if features & FEATURE_CSUM:
            vnet.flags = VNET_NEEDS_CSUM
            vnet.csum_start = l4
            vnet.csum_offset = check
            vnet.hdr_len = l4 + ((frame[l4 + 12] >> 4) * 4 if protocol == 6 else 8)
        else:
            complete(frame, length, l4, check)
    iov[0].iov_base = cython.address(vnet)
    iov[0].iov_len = VNET_HEADER_SIZE
    iov[1].iov_base = frame
    iov[1].iov_len = length
    write_vector(m, fd, iov, 2, length, 1)


def write_vector(m, fd, iov, count, length, frames):
    """One writev of `length` IP bytes; counts what became of it and says if it was taken."""
    done: cython.Py_ssize_t = writev(fd, iov, count)
    if done < 0 and errno == EINTR:
        done = writev(fd, iov, count)
    if done >= 0:
        m.writes += 1
        m.bytes += length
        return True
    if errno in (EAGAIN, ENOBUFS, ENOMEM):
        m.errors_again += frames
    elif errno == EIO:
        m.errors_down += frames
    elif errno in (EBADFD, ENODEV, EBADF):
        m.errors_gone += frames
    else:
        m.errors_other += frames
    return False


def merge_add(m, fd, features, zone, frame, length):
    """Take one frame; see the .pxd for the contract and the module text for the rules."""
    p: Parsed
    verdict: Verdict = CHECKSUM_GOOD
    kind: Kind = parse(frame, length, cython.address(p))
    hash: uint32_t = 0
    index: cython.int = -1
    m.frames += 1
    if p.l4:
        verdict = verify(frame, length, p.l4, p.protocol)
    if verdict == CHECKSUM_BAD or p.damaged:
        m.bad_checksum += 1
    if kind == KIND_ODD:
        flush_addresses(m, fd, frame, cython.address(p))
    elif kind == KIND_FLOW:
        hash = flow_hash(fd, zone, frame, cython.address(p))
        index = find_slot(m, hash, fd, zone, frame, cython.address(p))
        if verdict in (CHECKSUM_GOOD, CHECKSUM_PARTIAL):
            if index >= 0 and can_join(cython.address(m.slots[index]), frame, cython.address(p)):
                join_slot(m, index, frame, cython.address(p))
                return
            if index >= 0:
                flush_slot(m, index)
            if can_open(features, frame, cython.address(p)):
                open_slot(m, hash, fd, features, zone, frame, cython.address(p), verdict == CHECKSUM_PARTIAL)
                return
        elif index >= 0:
            flush_slot(m, index)
    write_frame(m, fd, features, frame, length, p.l4, p.protocol, verdict)


def merge_superframe(m, fd, features, zone, frame, length, l4, protocol, gso_size):
    """Take one frame that already is a superframe; it leaves at once, after the slot of its flow.

    A complete and right checksum is replaced by the partial one the kernel expects; a wrong one is passed on as it is.
    Without the offload, or with more UDP segments than old kernels take, it is cut here.
    """
    p: Parsed
    s: Superframe
    vnet: VnetHeader
    iov = cython.declare(iovec[2])
    check: uint32_t = 16 if protocol == 6 else 6
    verdict: Verdict = verify(frame, length, l4, protocol)
    kind: Kind = parse(frame, length, cython.address(p))
    index: cython.int = -1
    m.frames += 1
    if kind == KIND_FLOW:
        index = find_slot(m, flow_hash(fd, zone, frame, cython.address(p)), fd, zone, frame, cython.address(p))
        if index >= 0:
            flush_slot(m, index)
    elif kind == KIND_ODD:
        flush_addresses(m, fd, frame, cython.address(p))
    vnet.flags = VNET_NEEDS_CSUM
    vnet.gso_type = GSO_UDP_L4 if protocol == 17 else (GSO_TCPV4 if p.family == 4 else GSO_TCPV6)
    vnet.gso_size = gso_size
    vnet.csum_start = l4
    vnet.csum_offset = check
    if verdict == CHECKSUM_BAD or p.damaged:
        m.bad_checksum += 1
        verdict = CHECKSUM_BAD
    if (
        verdict not in (CHECKSUM_GOOD, CHECKSUM_PARTIAL)
        or gso_size > 65534
        or split_open(cython.address(s), frame, length, cython.address(vnet)) < 0
        or s.segments == 1
    ):
        write_frame(m, fd, features, frame, length, l4, protocol, verdict)
        return
    offload: uint32_t = FEATURE_TSO if protocol == 6 else FEATURE_USO
    if not features & offload or (protocol == 17 and s.segments > MERGE_SEGMENTS):
        cut(m, fd, cython.address(s))
        return
    store16(frame + l4 + check, fold(pseudo_sum(frame, protocol, length - l4)))
    vnet.hdr_len = s.header_length
    iov[0].iov_base = cython.address(vnet)
    iov[0].iov_len = VNET_HEADER_SIZE
    iov[1].iov_base = frame
    iov[1].iov_len = length
    write_vector(m, fd, iov, 2, length, 1)


def cut(m, fd, s):
    """Write a superframe packet by packet, for a port that takes none. It is lost once, however many writes fail."""
    vnet: VnetHeader
    header = cython.declare(cython.uchar[SPLIT_HEADER])
    iov = cython.declare(iovec[3])
    index: uint32_t = 0
    lost: cython.bint = False
    memset(cython.address(vnet), 0, VNET_HEADER_SIZE)
    iov[0].iov_base = cython.address(vnet)
    iov[0].iov_len = VNET_HEADER_SIZE
    iov[1].iov_base = header
    iov[1].iov_len = s.header_length
    for index in range(s.segments):
        iov[2].iov_len = split_header(s, index, header)
        iov[2].iov_base = cython.cast(cython.p_uchar, s.frame) + s.header_length + index * s.gso_size
        if not write_vector(m, fd, iov, 3, s.header_length + iov[2].iov_len, 0 if lost else 1):
            lost = True
