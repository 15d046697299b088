# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The whole path of a packet through one direction of a worker, without threads and devices.

`EgressLoop` gives frames of the node port to the egress window; what it queues is discarded, or sent when a socket is
given. `IngressLoop` gives UDP payloads to `take_message` and flushes the merger into a file descriptor. Both work
on a real `Snapshot`, so the cost of a packet can be seen to depend, or not, on what the tables hold.
"""

import cython
from cython.cimports.encap.bytes import store16
from cython.cimports.encap.receive import Message
from cython.cimports.encap.transmit import MAX_QUEUES
from cython.cimports.encap.vtep import FORMAT_VXLAN
from cython.cimports.fabric.forward.batch import (
    ARENA_SIZE,
    HEADROOM,
    WINDOW,
    Egress,
    Frame,
    egress_close,
    egress_flush,
    egress_open,
)
from cython.cimports.fabric.forward.egress import examine, forward_waiting
from cython.cimports.fabric.forward.ingress import Ingress, ingress_close, ingress_open, settle, take_message
from cython.cimports.fabric.forward.lane import Shared
from cython.cimports.fabric.forward.snapshot import Generation, Snapshot
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy
from cython.cimports.tun.merge import merge_flush
from cython.cimports.tun.vnet import VnetHeader

BATCH = cython.declare(uint32_t, 32)


@cython.cclass
class EgressLoop:
    """Frames (IP packets, checksums complete) that the node port reads in turn, `BATCH` of them per drain."""

    egress: cython.pointer(Egress)
    shared: Shared
    snapshot: Snapshot
    lengths: list
    sending: cython.bint
    ports: uint32_t
    at: uint32_t

    def __cinit__(
        self, snapshot: Snapshot, frames: list, fd: int = -1, segmentation: bool = True, ports: int = 1
    ):
        """`fd` is a UDP socket to send with, -1 discards. The frames take `ports` UDP source ports in turn.

        Raises ValueError when the frames do not fit the arena.
        """
        self.egress = cython.cast(cython.pointer(Egress), calloc(1, cython.sizeof(Egress)))
        if self.egress == cython.NULL or egress_open(self.egress) < 0:
            raise MemoryError
        if sum(len(frame) + HEADROOM for frame in frames) > ARENA_SIZE:
            raise ValueError("the frames do not fit the arena")
        self.snapshot = snapshot
        self.sending = fd >= 0
        self.ports = ports
        self.egress.lane.shared = cython.address(self.shared)
        self.egress.lane.transmitter.sockets4 = 1
        self.egress.lane.transmitter.queues[0].fd = fd
        self.egress.lane.transmitter.segmentation = segmentation
        self.lengths = [len(frame) for frame in frames]
        offset: uint32_t = 0
        for frame in frames:
            memcpy(self.egress.arena + offset + HEADROOM, cython.cast(cython.p_uchar, frame), len(frame))
            offset += HEADROOM + len(frame)

    def __dealloc__(self):
        if self.egress != cython.NULL:
            egress_close(self.egress)
            free(self.egress)

    def run(self, rounds: cython.longlong) -> int:
        """Forward all frames `rounds` times; datagrams queued (a number that must be frames * rounds)."""
        lengths = cython.declare(uint32_t[8192])
        count: uint32_t = len(self.lengths)
        i: uint32_t
        e: cython.pointer(Egress) = self.egress
        g: cython.pointer(cython.const[Generation]) = cython.address(self.snapshot.generation)
        queued: uint64_t = e.lane.packets
        offset: uint32_t
        vnet: VnetHeader
        vnet.flags = 0
        vnet.gso_type = 0
        vnet.hdr_len = 0
        vnet.gso_size = 0
        vnet.csum_start = 0
        vnet.csum_offset = 0
        for i in range(count):
            lengths[i] = self.lengths[i]
        with cython.nogil:
            for _ in range(rounds):
                offset = 0
                for i in range(count):
                    self.at = self.at + 1 if self.at + 1 < self.ports else 0
                    store16(self.egress.arena + offset + HEADROOM + 20, 1024 + self.at)
                    take_frame(e, g, offset + HEADROOM, lengths[i], cython.address(vnet))
                    offset += HEADROOM + lengths[i]
                    if i % BATCH == BATCH - 1 or i == count - 1:
                        forward_waiting(e, g, 0)
                        finish(e, self.sending)
        return e.lane.packets - queued


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def take_frame(
    e: cython.pointer(Egress), g: cython.pointer(cython.const[Generation]), at: uint32_t, length: uint32_t,
    vnet: cython.pointer(cython.const[VnetHeader]),
) -> cython.void:
    """What `read_port` does with a frame that it has read to this place of the arena."""
    frame: cython.pointer(Frame) = cython.address(e.window[e.waiting])
    if e.waiting == 0:
        e.window_start = at - HEADROOM
    frame.vnet = vnet[0]
    if examine(e, g, 0, e.arena + at, length, frame):
        frame.end = at + length
        e.waiting += 1
        if e.waiting == WINDOW:
            forward_waiting(e, g, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def finish(e: cython.pointer(Egress), sending: cython.bint) -> cython.void:
    """End of a drain: send what is queued, or forget it."""
    i: cython.int
    if sending:
        egress_flush(e)
        return
    for i in range(2 * MAX_QUEUES):
        e.lane.transmitter.queues[i].count = 0
        e.lane.transmitter.queues[i].iovecs = 0
    e.lane.transmitter.dirty = 0
    e.fill = 0
    e.side_fill = 0


@cython.cclass
class IngressLoop:
    """UDP payloads with their outer IPv4 source (host integer): `[(payload, source), ...]`, `BATCH` per drain."""

    ingress: cython.pointer(Ingress)
    messages: cython.pointer(Message)
    data: cython.pointer(uint8_t)
    count: uint32_t
    shared: Shared
    snapshot: Snapshot

    def __cinit__(self, snapshot: Snapshot, datagrams: list, gso_size: int = 0):
        """`gso_size` says that every payload is a UDP_GRO message of datagrams of this size."""
        self.ingress = cython.cast(cython.pointer(Ingress), calloc(1, cython.sizeof(Ingress)))
        self.messages = cython.cast(cython.pointer(Message), calloc(len(datagrams), cython.sizeof(Message)))
        self.data = cython.cast(cython.pointer(uint8_t), calloc(1, sum(len(data) for data, _ in datagrams)))
        if self.ingress == cython.NULL or self.messages == cython.NULL or self.data == cython.NULL:
            raise MemoryError
        if ingress_open(self.ingress) < 0:
            raise MemoryError
        self.ingress.lane.shared = cython.address(self.shared)
        self.snapshot = snapshot
        self.count = len(datagrams)
        offset: cython.size_t = 0
        for i, (payload, source) in enumerate(datagrams):
            memcpy(self.data + offset, cython.cast(cython.p_uchar, payload), len(payload))
            self.messages[i].data = self.data + offset
            self.messages[i].length = len(payload)
            self.messages[i].gso_size = gso_size
            self.messages[i].family = 4
            self.messages[i].low = source
            offset += len(payload)

    def __dealloc__(self):
        if self.ingress != cython.NULL:
            ingress_close(self.ingress)
        free(self.ingress)
        free(self.messages)
        free(self.data)

    def run(self, rounds: cython.longlong) -> int:
        """Take all messages `rounds` times; packets handed over so far."""
        i: uint32_t
        g = cython.address(self.snapshot.generation)
        with cython.nogil:
            for _ in range(rounds):
                for i in range(self.count):
                    take_message(self.ingress, g, cython.address(self.messages[i]), FORMAT_VXLAN)
                    if i % BATCH == BATCH - 1 or i == self.count - 1:
                        settle(self.ingress, g)
                        merge_flush(cython.address(self.ingress.merger))
        return self.ingress.lane.packets
