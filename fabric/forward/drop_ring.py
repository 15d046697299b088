# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What a worker's thread refused: the beginning of such packets with the reason, for as long as somebody asks.

Theory of operation. The kernel shows every packet on its way in or out; a packet that the data path refuses has no way
out, so only the data path can show it. A ring has one writer, a thread that must never wait, and one reader, the
control plane. The writer looks at the reader's `tail` (acquire), and where the ring is full counts and goes on; else it
fills a slot and publishes it by `head` (release). A full ring costs a refused packet two loads, a record in it a clock
and a copy of 256 bytes; a packet that is not refused costs nothing.

Limits: what the kernel refuses when packets are sent or written in batches is counted only. A packet is as it was when
it was refused: TTL may be lowered already.
"""

import cython
from cython.cimports.fabric.forward.kernel import ACQUIRE, RELAXED, RELEASE, atomic_load, atomic_store
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.time import CLOCK_REALTIME, clock_gettime, timespec


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def slot_of(ring: cython.pointer(Ring), reason: cython.int) -> cython.pointer(Refused):
    """The next slot with time and reason, or NULL when there is none; `publish` hands it over."""
    now: timespec
    head: uint64_t = ring.head
    slot: cython.pointer(Refused)
    if head - atomic_load(cython.address(ring.tail), ACQUIRE) >= RING_SLOTS:
        atomic_store(cython.address(ring.lost), ring.lost + 1, RELAXED)
        return cython.NULL
    slot = cython.address(ring.slots[head % RING_SLOTS])
    clock_gettime(CLOCK_REALTIME, cython.address(now))
    slot.time = cython.cast(uint64_t, now.tv_sec) * 1_000_000_000 + cython.cast(uint64_t, now.tv_nsec)
    slot.reason = reason
    return slot


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def publish(
    ring: cython.pointer(Ring), slot: cython.pointer(Refused), data: cython.pointer(cython.const[uint8_t]),
    length: uint32_t,
) -> cython.void:
    """Fill in the packet and let the reader see the slot."""
    slot.length = length
    slot.captured = length if length < RING_BYTES else RING_BYTES
    memcpy(cython.address(slot.data[0]), data, slot.captured)
    atomic_store(cython.address(ring.head), ring.head + 1, RELEASE)


def ring_record(ring, direction, reason, position, data, length):
    """A packet of a port."""
    slot: cython.pointer(Refused) = slot_of(ring, reason)
    if slot == cython.NULL:
        return
    slot.direction = direction
    slot.position = position
    slot.family = 0
    slot.format = 0
    slot.high = 0
    slot.low = 0
    publish(ring, slot, data, length)


def ring_record_from(ring, reason, family, high, low, form, data, length):
    """A datagram from the underlay."""
    slot: cython.pointer(Refused) = slot_of(ring, reason)
    if slot == cython.NULL:
        return
    slot.direction = FROM_UNDERLAY
    slot.position = 0
    slot.family = family
    slot.format = form
    slot.high = high
    slot.low = low
    publish(ring, slot, data, length)


@cython.cclass
class DropRing:
    """One ring. Must outlive the thread that writes into it. Raises MemoryError."""

    def __cinit__(self):
        self.ring = cython.cast(cython.pointer(Ring), calloc(1, cython.sizeof(Ring)))
        if self.ring == cython.NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.ring)

    @property
    def lost(self) -> int:
        """Packets that came while it was full."""
        return atomic_load(cython.address(self.ring.lost), RELAXED)

    def write(self, direction: int, reason: int, position: int, data: bytes) -> None:
        """As the worker's thread does; for tests and measurements."""
        ring_record(self.ring, direction, reason, position, cython.cast(cython.pointer(uint8_t), data), len(data))

    def write_from(self, reason: int, family: int, outer: int, form: int, data: bytes) -> None:
        """As the ingress thread does; for tests and measurements."""
        high: uint64_t = outer >> 64
        low: uint64_t = outer & ((1 << 64) - 1)
        ring_record_from(
            self.ring, reason, family, high, low, form, cython.cast(cython.pointer(uint8_t), data), len(data)
        )

    def read(self) -> list:
        """All records since the last call, the oldest first: (time, direction, reason, position, outer source's
        family and address as a number, format, length, data)."""
        out: list = []
        head: uint64_t = atomic_load(cython.address(self.ring.head), ACQUIRE)
        tail: uint64_t = self.ring.tail
        while tail != head:
            out.append(self._tuple(cython.address(self.ring.slots[tail % RING_SLOTS])))
            tail += 1
        atomic_store(cython.address(self.ring.tail), tail, RELEASE)
        return out

    def _tuple(self, r):
        data: bytes = cython.cast(cython.pointer(cython.char), cython.address(r.data[0]))[: r.captured]
        outer: object = (cython.cast(object, r.high) << 64) | r.low
        return (r.time, r.direction, r.reason, r.position, r.family, outer, r.format, r.length, data)
