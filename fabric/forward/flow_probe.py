# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The flow table as one thread of a worker uses it, without threads and devices: for tests and benchmarks.

A `FlowProbe` has a tracker of its own, so several of them on one snapshot are several threads. `track` takes one
packet. `run` and `torn` go through the packets given at the start without the GIL.
"""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import Inner, parse
from cython.cimports.fabric.forward.denials import read_denials
from cython.cimports.fabric.forward.flow_key import FlowKey, flow_hash, flow_key
from cython.cimports.fabric.forward.flow_table import Found, Table, flow_lookup
from cython.cimports.fabric.forward.flow_track import ANSWER, BY_NODE_PORT, REFUSED_SHIFT, Tracker, track
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.libc.string import memcpy


@cython.cclass
class FlowProbe:
    """On `snapshot`, which has a flow table. Raises ValueError for a packet that the parser refuses, MemoryError."""

    def __cinit__(self, snapshot: Snapshot, packets=()):
        if snapshot.generation.flows == cython.NULL:
            raise ValueError("the snapshot has no flow table")
        self.snapshot = snapshot
        self.count = len(packets)
        self.tracker = cython.cast(cython.pointer(Tracker), calloc(1, cython.sizeof(Tracker)))
        self.inners = cython.cast(cython.pointer(Inner), calloc(self.count + 1, cython.sizeof(Inner)))
        self.starts = cython.cast(cython.pointer(uint32_t), calloc(self.count + 1, cython.sizeof(uint32_t)))
        self.bytes = cython.cast(cython.pointer(uint8_t), malloc(sum(map(len, packets)) + 1))
        if (
            self.tracker == cython.NULL
            or self.inners == cython.NULL
            or self.starts == cython.NULL
            or self.bytes == cython.NULL
        ):
            raise MemoryError
        offset: uint32_t = 0
        for i, packet in enumerate(packets):
            memcpy(self.bytes + offset, cython.cast(cython.p_uchar, packet), len(packet))
            if parse(self.bytes + offset, len(packet), cython.address(self.inners[i])) != DropReason.PASS:
                raise ValueError(f"packet {i} is malformed")
            self.starts[i] = offset
            offset += len(packet)

    def __dealloc__(self):
        free(self.tracker)
        free(self.inners)
        free(self.starts)
        free(self.bytes)

    def track(self, packet: bytes, entry: int, now: int) -> bool:
        """One packet that came in by `entry` at `now` (seconds): True when it has to leave by the node port."""
        return self._track(packet, entry, now) == BY_NODE_PORT

    def refused(self, packet: bytes, entry: int, now: int) -> int:
        """The same: the drop reason by which policy refuses it, 0 when it may pass."""
        verdict: uint32_t = self._track(packet, entry, now)
        return verdict >> REFUSED_SHIFT

    def answered(self, packet: bytes, entry: int, now: int) -> bool:
        """The same: whether the ends of its flow are told that it is refused."""
        verdict: uint32_t = self._track(packet, entry, now)
        return verdict > BY_NODE_PORT and verdict & ANSWER != 0

    def denied(self) -> list:
        """As `Worker.denied`, of this tracker."""
        return read_denials(cython.address(self.tracker.denials), cython.address(self.denied_seen))

    def _track(self, packet, entry, now):
        inner: Inner
        data: cython.p_uchar = packet
        if parse(data, len(packet), cython.address(inner)) != DropReason.PASS:
            raise ValueError("the packet is malformed")
        self.tracker.now = now
        return track(self.tracker, cython.address(self.snapshot.generation), cython.address(inner), data, entry, 0)

    def run(self, entry: int, now: int, rounds: int, spread: int = 0) -> int:
        """All packets `rounds` times; how many had to leave by the node port. `spread`: see `torn`."""
        by: uint32_t = entry
        width: uint32_t = spread
        total: uint64_t = 0
        turns: uint64_t = rounds
        start: uint32_t = now
        i: uint32_t
        self.tracker.now = start
        g = cython.address(self.snapshot.generation)
        with cython.nogil:
            while turns:
                turns -= 1
                for i in range(self.count):
                    if width:
                        by = 1 + self.inners[i].sport % width
                        self.tracker.now = start + by
                    total += track(self.tracker, g, cython.address(self.inners[i]), self.bytes + self.starts[i], by, 0)
        return total

    def torn(self, spread: int, rounds: int) -> int:
        """Look up all packets `rounds` times; how many records contradict themselves.

        The flows are those of UDP packets that `run` with the same `spread` took: port of entry and account are
        1 + source port % spread, and so much after `now` is their time.
        """
        width: uint32_t = spread
        total: uint64_t = 0
        turns: uint64_t = rounds
        with cython.nogil:
            while turns:
                turns -= 1
                total += self._torn(width)
        return total

    def _torn(self, spread):
        key: FlowKey
        found: Found
        i: uint32_t
        side: uint32_t
        wanted: uint32_t
        total: uint64_t = 0
        t: cython.pointer(Table) = self.snapshot.generation.flows
        for i in range(self.count):
            side = flow_key(cython.address(self.inners[i]), self.bytes + self.starts[i], cython.address(key))
            if flow_lookup(
                t, cython.address(key), flow_hash(cython.address(key), cython.address(t.secret[0])),
                cython.address(found),
            ):
                wanted = 1 + self.inners[i].sport % spread
                total += (
                    found.flow.origin != side or found.flow.entry[side] != wanted or found.flow.account != wanted
                    or found.expires != found.flow.seen[side] + 30
                )
        return total
