# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The rule by which threads and control plane share generations without a lock, and the port write both threads use.

A thread announces "about to load" (seen = 0), loads the pointer, then announces the number; asleep it announces IDLE.
The control plane swaps the pointer and may free an old generation once every lane is IDLE or has seen a newer one. All
accesses are sequentially consistent, so a thread that the control plane found IDLE can only load the new pointer.
"""

import cython
from cython.cimports.encap.bytes import store16
from cython.cimports.encap.drops import DropReason
from cython.cimports.fabric.forward.kernel import ORDERED, atomic_load, atomic_store
from cython.cimports.fabric.forward.snapshot import LINK_HEADER, Generation
from cython.cimports.libc.errno import EAGAIN, EINTR, EIO, ENOBUFS, ENODEV, ENOMEM, errno
from cython.cimports.libc.stdint import uint8_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, timespec
from cython.cimports.posix.uio import iovec, writev
from cython.cimports.tun.vnet import VNET_HEADER_SIZE, VNET_NEEDS_CSUM, VnetHeader


def monotonic():
    """CLOCK_MONOTONIC in nanoseconds."""
    now: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(now))
    return cython.cast(uint64_t, now.tv_sec) * 1_000_000_000 + cython.cast(uint64_t, now.tv_nsec)


def lane_enter(lane):
    """Generation to use now."""
    atomic_store(cython.address(lane.seen), 0, ORDERED)
    generation: cython.pointer(Generation) = cython.cast(
        cython.pointer(Generation), atomic_load(cython.address(lane.shared.current), ORDERED)
    )
    if generation != cython.NULL:
        atomic_store(cython.address(lane.seen), generation.number, ORDERED)
    return generation


def lane_idle(lane):
    """Nothing of the generation is used from here on."""
    atomic_store(cython.address(lane.seen), cython.cast(uint64_t, -1), ORDERED)


def write_frame(fd, vnet, vnet_length, head, head_length, body, body_length):
    """One gathered write."""
    pieces = cython.declare(iovec[3])
    pieces[0].iov_base = cython.cast(cython.p_void, vnet)
    pieces[0].iov_len = vnet_length
    pieces[1].iov_base = cython.cast(cython.p_void, head)
    pieces[1].iov_len = head_length
    pieces[2].iov_base = cython.cast(cython.p_void, body)
    pieces[2].iov_len = body_length
    while writev(fd, cython.address(pieces[0]), 3 if body_length else 2) < 0:
        if errno != EINTR:
            return False
    return True


def write_packet(port, worker, vnet, head, head_length, body, body_length):
    """An IP packet with its virtio-net header to a port."""
    prefix = cython.declare(uint8_t[24])
    shifted: VnetHeader
    if not port.ethernet:
        return write_frame(
            port.fds[worker], cython.cast(cython.pointer(cython.const[uint8_t]), vnet), VNET_HEADER_SIZE, head,
            head_length, body, body_length,
        )
    shifted = vnet[0]
    if vnet.flags & VNET_NEEDS_CSUM:
        shifted.csum_start += LINK_HEADER
        shifted.hdr_len += LINK_HEADER
    memcpy(cython.address(prefix[0]), cython.address(shifted), VNET_HEADER_SIZE)
    memcpy(cython.address(prefix[10]), cython.address(port.link[0]), 12)
    store16(cython.address(prefix[22]), 0x86DD if head[0] >> 4 == 6 else 0x0800)
    return write_frame(port.fds[worker], cython.address(prefix[0]), 24, head, head_length, body, body_length)


def write_port(lane, port, vnet, head, head_length, body, body_length):
    """The same, with a refusal counted."""
    if write_packet(port, lane.shared.worker, vnet, head, head_length, body, body_length):
        return True
    if errno in (EAGAIN, ENOBUFS, ENOMEM):
        drop(lane, DropReason.PORT_QUEUE_FULL)
    elif errno == EIO:
        drop(lane, DropReason.PORT_DOWN)
    elif errno == 77 or errno == ENODEV:  # EBADFD: what a deleted TUN answers
        drop(lane, DropReason.PORT_GONE)
    else:
        drop(lane, DropReason.PORT_FAILED)
    return False
