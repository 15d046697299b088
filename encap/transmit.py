# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Sending to the underlay: UDP_SEGMENT trains and sendmmsg over a spread of source ports.

Theory of operation. There is one socket per source port (RFC 7348 section 5: entropy for ECMP and receive steering); a
flow hash picks the socket, so a flow keeps its port and its order. `add_datagram` appends to the socket's queue: equal
sizes to the same VTEP with the same ECN field join the open train, a shorter one closes it, anything else opens the
next. Pieces that are adjacent in memory share an iovec, so a train read into one arena is a single piece. `flush` is
one sendmmsg per dirty socket. Payload is never copied here.

When the kernel refuses a train (EIO: no checksum offload below Linux 6.11; EINVAL or EMSGSIZE: the path MTU shrank)
its datagrams are sent one by one, where the kernel may fragment them since DF is not set (as Linux VXLAN and flannel
leave it). A full send buffer is waited for one millisecond at most, then counted.

Limits: at most 64 segments and 65,487 bytes per train; at most 16 source ports per family.
"""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.net import (
    IP_TOS,
    IPV6_TCLASS,
    MSG_DONTWAIT,
    POLLOUT,
    SOL_IP,
    SOL_IPV6,
    SOL_UDP,
    UDP_SEGMENT,
    cmsghdr,
    msghdr,
    poll,
    pollfd,
    sendmmsg,
    sendmsg,
)
from cython.cimports.encap.vtep import FORMAT_VXLAN, PEER_SLOTS, Carried
from cython.cimports.encap.vxlan import ENCAPSULATION
from cython.cimports.libc.errno import (
    EAGAIN,
    EHOSTUNREACH,
    EINTR,
    EINVAL,
    EIO,
    EMSGSIZE,
    ENETDOWN,
    ENETUNREACH,
    ENOBUFS,
    ENOMEM,
    EPERM,
    errno,
)
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.uio import iovec


def transmitter_open(t, drops):
    """Allocate the queues; 0 or -1. The owner then sets fds and counts."""
    i: cython.int
    t.queues = cython.cast(cython.pointer(SendQueue), calloc(2 * MAX_QUEUES, cython.sizeof(SendQueue)))
    t.carried = cython.cast(cython.pointer(Carried), calloc(PEER_SLOTS, cython.sizeof(Carried)))
    if t.queues == cython.NULL or t.carried == cython.NULL:
        return -1
    t.drops = drops
    t.dirty = 0
    t.segmentation = 1
    t.batch = QUEUE_MESSAGES
    for i in range(2 * MAX_QUEUES):
        t.queues[i].family = 4 if i < MAX_QUEUES else 6
    return 0


def transmitter_close(t):
    """Free the queues; sockets belong to the owner."""
    free(t.queues)
    free(t.carried)
    t.queues = cython.NULL
    t.carried = cython.NULL


def queue_for(t, family, hash):
    """The queue of this flow's source port."""
    if family == 4:
        if t.sockets4 == 0:
            return cython.NULL
        return cython.address(t.queues[(cython.cast(uint64_t, hash) * t.sockets4) >> 32])
    if t.sockets6 == 0:
        return cython.NULL
    return cython.address(t.queues[MAX_QUEUES + ((cython.cast(uint64_t, hash) * t.sockets6) >> 32)])


def add_datagram(t, q, vtep, ecn, head, head_length, body, body_length):
    """Append to the open train or start one; flushes the queue first when it is full."""
    size: uint32_t = head_length + body_length
    m: uint32_t
    if q.iovecs + 2 > QUEUE_IOVECS:
        flush_queue(t, q)
    if q.count:
        m = q.count - 1
        if (
            not q.closed[m]
            and q.vtep[m] == vtep
            and q.ecn[m] == ecn
            and size <= q.segment_size[m]
            and q.bytes[m] + size <= MAX_PAYLOAD
            and q.segments[m] < MAX_SEGMENTS
            and t.segmentation
        ):
            q.segments[m] += 1
            q.bytes[m] += size
            if size < q.segment_size[m]:
                q.closed[m] = 1
            append_iovec(q, m, head, head_length)
            if body_length:
                append_iovec(q, m, body, body_length)
            return
    if q.count >= t.batch:
        flush_queue(t, q)
    start_message(t, q, vtep, ecn, size)
    m = q.count - 1
    append_iovec(q, m, head, head_length)
    if body_length:
        append_iovec(q, m, body, body_length)


def start_message(t, q, vtep, ecn, size):
    """Open the next train with a datagram of `size` bytes; its pieces are appended by the caller."""
    m: uint32_t = q.count
    q.count += 1
    q.vtep[m] = vtep
    q.ecn[m] = ecn
    q.closed[m] = 0
    q.segments[m] = 1
    q.segment_size[m] = size
    q.bytes[m] = size
    q.messages[m].msg_hdr.msg_iov = cython.address(q.iov[q.iovecs])
    q.messages[m].msg_hdr.msg_iovlen = 0
    t.dirty |= cython.cast(uint64_t, 1) << (q - t.queues)


def append_iovec(q, m, data, length):
    """Add a piece to message `m` (the last), joining it to the previous piece where they touch."""
    piece: cython.pointer(iovec)
    if q.messages[m].msg_hdr.msg_iovlen:
        piece = cython.address(q.iov[q.iovecs - 1])
        if cython.cast(cython.pointer(uint8_t), piece.iov_base) + piece.iov_len == data:
            piece.iov_len += length
            return
    piece = cython.address(q.iov[q.iovecs])
    piece.iov_base = data
    piece.iov_len = length
    q.iovecs += 1
    q.messages[m].msg_hdr.msg_iovlen += 1


def finish_message(t, q, m):
    """Address and control data of message `m`: UDP_SEGMENT for a train, TOS for a non-zero ECN field."""
    header: cython.pointer(cmsghdr)
    control: cython.pointer(uint8_t) = cython.address(q.control[m][0])
    length: cython.size_t = 0
    message: cython.pointer(msghdr) = cython.address(q.messages[m].msg_hdr)
    message.msg_name = cython.cast(cython.p_void, cython.address(q.vtep[m].address[0]))
    message.msg_namelen = q.vtep[m].address_length
    if q.segments[m] > 1:
        header = cython.cast(cython.pointer(cmsghdr), control)
        header.cmsg_len = cython.sizeof(cmsghdr) + 2
        header.cmsg_level = SOL_UDP
        header.cmsg_type = UDP_SEGMENT
        cython.cast(cython.pointer(uint16_t), control + cython.sizeof(cmsghdr))[0] = cython.cast(
            uint16_t, q.segment_size[m]
        )
        length = 24
    if q.ecn[m]:
        header = cython.cast(cython.pointer(cmsghdr), control + length)
        header.cmsg_len = cython.sizeof(cmsghdr) + 4
        header.cmsg_level = SOL_IP if q.family == 4 else SOL_IPV6
        header.cmsg_type = IP_TOS if q.family == 4 else IPV6_TCLASS
        cython.cast(cython.pointer(uint32_t), control + length + cython.sizeof(cmsghdr))[0] = q.ecn[m]
        length += 24
    message.msg_control = control if length else cython.NULL
    message.msg_controllen = length
    message.msg_flags = 0


def reason_of(error):
    """Drop reason for a send error."""
    if error in (EAGAIN, ENOBUFS, ENOMEM):
        return DropReason.SEND_QUEUE_FULL
    if error in (ENETUNREACH, EHOSTUNREACH, ENETDOWN):
        return DropReason.SEND_UNREACHABLE
    if error == EPERM:
        return DropReason.SEND_REFUSED
    return DropReason.SEND_FAILED


def flush_queue(t, q):
    """Send everything in the queue, in order; what cannot be sent is counted."""
    m: uint32_t
    sent: uint32_t = 0
    n: cython.int
    error: cython.int
    waited: cython.bint = False
    waiter: pollfd
    for m in range(q.count):
        finish_message(t, q, m)
    while sent < q.count:
        n = sendmmsg(q.fd, cython.address(q.messages[sent]), q.count - sent, MSG_DONTWAIT)
        t.calls += 1
        if n > 0:
            for m in range(sent, sent + n):
                count_sent(t, q.vtep[m], q.segments[m], q.bytes[m])
            t.sends += n
            sent += n
            waited = False
            continue
        error = errno
        if error == EINTR:
            continue
        if error == EAGAIN and not waited:
            waited = True
            waiter.fd = q.fd
            waiter.events = POLLOUT
            poll(cython.address(waiter), 1, 1)
            continue
        if q.segments[sent] > 1 and (error in (EINVAL, EIO, EMSGSIZE)):
            if error == EIO:
                t.segmentation = 0
            send_singly(t, q, sent)
        else:
            t.drops[reason_of(error)] += q.segments[sent]
        sent += 1
    q.count = 0
    q.iovecs = 0
    t.dirty &= ~(cython.cast(uint64_t, 1) << (q - t.queues))


def count_sent(t, vtep, segments, size):
    """So many datagrams of `size` bytes together have left for a VTEP, whose record the send has just read."""
    carried: cython.pointer(Carried) = cython.address(t.carried[vtep.slot])
    t.datagrams += segments
    t.bytes += size
    carried.packets += segments
    carried.bytes += size - (segments * ENCAPSULATION if vtep.format == FORMAT_VXLAN else 0)


def send_singly(t, q, m):
    """The train `m` again, one datagram per send: slices of its pieces, no copy."""
    pieces = cython.declare(iovec[8])
    message: msghdr = q.messages[m].msg_hdr
    piece: cython.pointer(iovec) = q.messages[m].msg_hdr.msg_iov
    offset: cython.size_t = 0
    left: uint32_t = q.bytes[m]
    need: cython.size_t
    take: cython.size_t
    size: uint32_t
    count: cython.int
    t.resent += 1
    message.msg_iov = cython.address(pieces[0])
    # A train's control data begins with UDP_SEGMENT (24 bytes); the ECN field behind it still counts.
    message.msg_control = cython.address(q.control[m][24]) if q.ecn[m] else cython.NULL
    message.msg_controllen = 24 if q.ecn[m] else 0
    while left:
        size = q.segment_size[m] if left > q.segment_size[m] else left
        need = size
        count = 0
        while need and count < 8:
            take = piece.iov_len - offset
            if take > need:
                take = need
            pieces[count].iov_base = cython.cast(cython.pointer(uint8_t), piece.iov_base) + offset
            pieces[count].iov_len = take
            count += 1
            need -= take
            offset += take
            if offset == piece.iov_len:
                piece += 1
                offset = 0
        message.msg_iovlen = count
        t.calls += 1
        if sendmsg(q.fd, cython.address(message), MSG_DONTWAIT) < 0:
            t.drops[reason_of(errno)] += 1
        else:
            count_sent(t, q.vtep[m], 1, size)
            t.sends += 1
        left -= size


def flush(t):
    """Flush every queue that holds something."""
    i: cython.int
    for i in range(2 * MAX_QUEUES):
        if t.dirty >> i == 0:
            break
        if (t.dirty >> i) & 1:
            flush_queue(t, cython.address(t.queues[i]))
