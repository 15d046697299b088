# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Memory of the egress thread: an arena for the frames of one drain and a side buffer for headers made here."""

import cython
from cython.cimports.encap.transmit import flush, transmitter_close, transmitter_open
from cython.cimports.fabric.forward.hold import hold_close
from cython.cimports.libc.stdint import uint8_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.posix.unistd import close


def egress_open(e):
    """Allocate buffers; 0 or -1."""
    e.arena = cython.cast(cython.pointer(uint8_t), malloc(ARENA_SIZE + FRAME_ROOM))
    e.side = cython.cast(cython.pointer(uint8_t), malloc(SIDE_SIZE))
    e.lane.epoll = -1
    e.tap = -1
    if e.arena == cython.NULL or e.side == cython.NULL:
        return -1
    return transmitter_open(cython.address(e.lane.transmitter), cython.address(e.lane.drops[0]))


def egress_close(e):
    """Free buffers and the epoll set."""
    free(e.arena)
    free(e.side)
    hold_close(cython.address(e.lane.tracker.hold))
    transmitter_close(cython.address(e.lane.transmitter))
    if e.lane.epoll >= 0:
        close(e.lane.epoll)


def egress_flush(e):
    """Send everything queued; the arena and the side buffer are free again."""
    if e.lane.transmitter.dirty:
        flush(cython.address(e.lane.transmitter))
    e.fill = 0
    e.side_fill = 0


def side_room(e, size):
    """Space in the side buffer; flushes when it is used up. The frame being cut stays valid: it is read, not moved."""
    if e.side_fill + size > SIDE_SIZE:
        flush(cython.address(e.lane.transmitter))
        e.side_fill = 0
    e.side_fill += size
    return e.side + e.side_fill - size
