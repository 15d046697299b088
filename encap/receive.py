# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Receiving from the underlay: recvmmsg into 64 buffers of 64 KB, with UDP_GRO.

With UDP_GRO one message may hold many datagrams of equal size (the control message says which); without the control
message it is a single datagram, which may still be an inner superframe of up to 64 KB when the peer is a kernel VXLAN
device on the same machine (a veth does not segment it). Source, TOS and queue overflows come along. The buffers are
one anonymous mapping: only pages that were used count as resident.
"""

import cython
from cython.cimports.encap.bytes import load32, load64
from cython.cimports.encap.net import (
    IP_TOS,
    IPV6_TCLASS,
    MSG_DONTWAIT,
    MSG_TRUNC,
    SO_RXQ_OVFL,
    SOL_IP,
    SOL_IPV6,
    SOL_SOCKET,
    SOL_UDP,
    UDP_GRO,
    cmsghdr,
    recvmmsg,
)
from cython.cimports.libc.errno import EAGAIN, EINTR, errno
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.posix.mman import MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap


def receiver_open(r):
    """Map the buffers; 0 or -1."""
    i: cython.int
    size: cython.size_t = cython.cast(cython.size_t, RECEIVE_BUFFERS) * RECEIVE_BUFFER_SIZE
    mapping: cython.p_void = mmap(cython.NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if mapping == MAP_FAILED:
        return -1
    r.buffers = cython.cast(cython.pointer(uint8_t), mapping)
    r.overflows = 0
    r.batch = RECEIVE_BUFFERS
    r.dirty = RECEIVE_BUFFERS
    for i in range(RECEIVE_BUFFERS):
        r.iov[i].iov_base = r.buffers + cython.cast(cython.size_t, i) * RECEIVE_BUFFER_SIZE
        r.iov[i].iov_len = RECEIVE_BUFFER_SIZE
        r.messages[i].msg_hdr.msg_iov = cython.address(r.iov[i])
        r.messages[i].msg_hdr.msg_iovlen = 1
        r.messages[i].msg_hdr.msg_name = cython.address(r.names[i][0])
        r.messages[i].msg_hdr.msg_control = cython.address(r.control[i][0])
    return 0


def receiver_close(r):
    """Unmap the buffers."""
    if r.buffers != cython.NULL:
        munmap(r.buffers, cython.cast(cython.size_t, RECEIVE_BUFFERS) * RECEIVE_BUFFER_SIZE)
        r.buffers = cython.NULL


def receive_batch(r, fd, first):
    """One recvmmsg; lengths of names and control that the kernel overwrote are reset."""
    i: uint32_t
    n: cython.int
    room: uint32_t = min(r.batch, RECEIVE_BUFFERS - first)
    for i in range(first, min(first + room, r.dirty)):
        r.messages[i].msg_hdr.msg_namelen = 32
        r.messages[i].msg_hdr.msg_controllen = RECEIVE_CONTROL
        r.messages[i].msg_hdr.msg_flags = 0
    if r.dirty <= first + room:
        r.dirty = first
    while True:
        n = recvmmsg(fd, cython.address(r.messages[first]), room, MSG_DONTWAIT, cython.NULL)
        if n >= 0:
            r.dirty = max(r.dirty, first + cython.cast(uint32_t, n))
            return n
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            return -1


def read_message(r, i, message, drops):
    """Fill `message` from the headers and control data of message `i`."""
    name: cython.pointer(uint8_t) = cython.address(r.names[i][0])
    control: cython.pointer(uint8_t) = cython.address(r.control[i][0])
    left: cython.size_t = r.messages[i].msg_hdr.msg_controllen
    header: cython.pointer(cmsghdr)
    data: cython.pointer(uint8_t)
    count: uint32_t
    step: cython.size_t
    message.data = r.buffers + cython.cast(cython.size_t, i) * RECEIVE_BUFFER_SIZE
    message.length = r.messages[i].msg_len
    message.truncated = (r.messages[i].msg_hdr.msg_flags & MSG_TRUNC) != 0
    message.gso_size = 0
    message.tos = 0
    if name[0] == 2:
        message.family = 4
        message.high = 0
        message.low = load32(name + 4)
    else:
        message.family = 6
        message.high = load64(name + 8)
        message.low = load64(name + 16)
        if message.high == 0 and message.low >> 32 == 0xFFFF:
            message.family = 4
            message.low = cython.cast(uint32_t, message.low)
    while left >= cython.sizeof(cmsghdr):
        header = cython.cast(cython.pointer(cmsghdr), control)
        data = control + cython.sizeof(cmsghdr)
        if header.cmsg_level == SOL_UDP and header.cmsg_type == UDP_GRO:
            message.gso_size = cython.cast(cython.pointer(uint32_t), data)[0]
        elif header.cmsg_level == SOL_IP and header.cmsg_type == IP_TOS:
            message.tos = data[0]
        elif header.cmsg_level == SOL_IPV6 and header.cmsg_type == IPV6_TCLASS:
            message.tos = cython.cast(uint8_t, cython.cast(cython.pointer(uint32_t), data)[0])
        elif header.cmsg_level == SOL_SOCKET and header.cmsg_type == SO_RXQ_OVFL:
            count = cython.cast(cython.pointer(uint32_t), data)[0]
            r.overflows += cython.cast(uint32_t, count - drops[0])
            drops[0] = count
        step = (header.cmsg_len + 7) & ~cython.cast(cython.size_t, 7)
        if step < cython.sizeof(cmsghdr) or step > left:
            break
        control += step
        left -= step
