# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The two loops without threads, sockets or epoll: one datagram or frame in, what became of it out. For fuzzing.

Theory of operation. A `Probe` owns an ingress and an egress half on one snapshot. `receive` and `send` feed one input;
the `fuzz_*` methods make their own from seeds (truncate, flip bits, write boundary values into bytes and words, splice
two seeds) and, in half of the cases, put the IPv4 header checksum right again so that damage gets past it. Every input
stands in a heap block of exactly its size, so that AddressSanitizer sees a read one byte too far. After each case the
accounts must balance: what was fed is what was handed over plus what was dropped under one reason.

Limits: ICMP answers of the ingress half and datagrams of the egress half go to the socket that the owner gives.
"""

import cython
from cython.cimports.encap.drops import DropReason as Reason
from cython.cimports.encap.inner import Inner, parse
from cython.cimports.encap.receive import Message
from cython.cimports.encap.vxlan import ENCAPSULATION
from cython.cimports.fabric.forward.batch import HEADROOM, Egress, egress_close, egress_flush, egress_open
from cython.cimports.fabric.forward.egress import egress_frame
from cython.cimports.fabric.forward.icmp import ICMP_BUFFER, PROHIBITED, build_error
from cython.cimports.fabric.forward.ingress import Ingress, ingress_close, ingress_open, settle, take_message
from cython.cimports.fabric.forward.lane import Lane
from cython.cimports.fabric.forward.mutate import Corpus, draw, mutate, pick_seed, repair
from cython.cimports.fabric.forward.release import lose_expired
from cython.cimports.fabric.forward.reset import build_reset
from cython.cimports.fabric.forward.snapshot import Generation
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.tun.merge import merge_flush
from cython.cimports.tun.vnet import VNET_HEADER_SIZE, VnetHeader

from encap.drops import DropReason

ROOM = cython.declare(uint32_t, 65536)
NAMES = [DropReason(value).name.lower() for value in range(Reason.REASONS)]
FORMATS = {"vxlan": 0, "udp": 1}


def refused(lane, own):
    """Drops of one half so far."""
    total: uint64_t = 0
    i: uint32_t
    for i in range(64):
        if not own or i < Reason.SEND_QUEUE_FULL or i > Reason.SEND_FAILED:
            total += lane.drops[i]
    return total


def parse_case(state, corpus, scratch, reasons):
    """One mutated packet to the parser; 0, or -1 when an accepted header points outside the packet, or an answer to it
    is none that the parser accepts."""
    inner: Inner
    length: uint32_t = pick_seed(state, corpus, scratch, ROOM)
    length = mutate(state, corpus, scratch, length, ROOM, 0)
    if draw(state) >> 63:
        repair(scratch, length)
    packet: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), malloc(length if length else 1))
    if packet == cython.NULL:
        return -1
    memcpy(packet, scratch, length)
    reason: cython.int = parse(packet, length, cython.address(inner))
    sound: cython.bint = True
    reasons[reason] += 1
    if reason == Reason.PASS:
        sound = inner.length <= length and inner.l4 <= inner.length
        # One of four: a packet that is refused by a policy that lets its ends know.
        if sound and not draw(state) >> 62:
            sound = answers_hold(packet, cython.address(inner))
    free(packet)
    return 0 if sound else -1


def answers_hold(packet, inner):
    """Whether what both ends are told about a packet is well formed."""
    out = cython.declare(uint8_t[ICMP_BUFFER])
    made: Inner
    kind: uint32_t
    length: uint32_t
    for kind in range(3):
        if kind == 2:
            length = build_error(cython.address(out[0]), packet, inner, PROHIBITED, 0, 0x0AF40101, 1 << 61, 1)
        else:
            length = build_reset(cython.address(out[0]), packet, inner, kind)
        if length and (
            parse(cython.address(out[0]), length, cython.address(made)) != Reason.PASS or made.length != length
        ):
            return False
    return True


def feed_message(s, message, payload):
    """One message from a block of its own size; number of datagrams, or -1 when the accounts do not balance."""
    before: uint64_t = s.datagrams
    settled: uint64_t = s.lane.packets + refused(cython.address(s.lane), False) + s.lane.tracker.hold.count
    data: cython.pointer(uint8_t) = cython.cast(
        cython.pointer(uint8_t), malloc(message.length if message.length else 1)
    )
    if data == cython.NULL:
        return -1
    memcpy(data, payload, message.length)
    message.data = data
    take_message(s, cython.cast(cython.pointer(Generation), s.lane.shared.current), message, s.lane.shared.formats[0])
    settle(s, cython.cast(cython.pointer(Generation), s.lane.shared.current))
    merge_flush(cython.address(s.merger))
    free(data)
    if (
        s.lane.packets + refused(cython.address(s.lane), False) + s.lane.tracker.hold.count - settled
        != s.datagrams - before
    ):
        return -1
    return cython.cast(cython.int, s.datagrams - before)


def ingress_case(s, state, corpus, scratch):
    """One mutated message: mostly from a known VTEP, sometimes merged, marked or truncated."""
    message: Message
    r: uint64_t = draw(state)
    skip: uint32_t = 0 if s.lane.shared.formats[0] else ENCAPSULATION
    copies: uint32_t = 1
    i: uint32_t
    size: uint32_t = pick_seed(state, corpus, scratch, ROOM)
    memset(cython.address(message), 0, cython.sizeof(Message))
    message.length = size
    if (r & 15) == 0 and size and size < 4000:
        # A UDP_GRO message: equal datagrams side by side, each damaged below on its own.
        copies = 2 + cython.cast(uint32_t, (r >> 4) & 7)
        for i in range(1, copies):
            memcpy(scratch + i * size, scratch, size)
        message.length = copies * size
        message.gso_size = size
    if copies > 1:
        for i in range(copies):
            mutate(state, corpus, scratch + i * size, size, size, skip)
    else:
        message.length = mutate(state, corpus, scratch, size, ROOM, skip)
    if (r >> 8) & 1 and message.length > skip:
        repair(scratch + skip, message.length - skip)
    if (r >> 9) & 31 == 0:
        message.gso_size = cython.cast(uint32_t, r >> 48)
    message.tos = cython.cast(uint8_t, r >> 16) if (r >> 14) & 3 == 0 else 0
    message.truncated = (r >> 24) & 255 == 0
    message.family = 4
    message.low = 0x7F000003 if (r >> 32) & 63 else 0x7F000009
    return 0 if feed_message(s, cython.address(message), scratch) >= 0 else -1


def feed_frame(e, position, frame, length, vnet):
    """One frame of a port, and those that waited for it; 1 when any was forwarded, 0 when not, -1 when the accounts do
    not balance."""
    packets: uint64_t = e.lane.packets
    settled: uint64_t = refused(cython.address(e.lane), True) + e.lane.tracker.hold.count
    forwarded: int64_t
    block: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), malloc(HEADROOM + length))
    if block == cython.NULL:
        return -1
    memcpy(block + HEADROOM, frame, length)
    egress_frame(
        e, cython.cast(cython.pointer(Generation), e.lane.shared.current), position, block + HEADROOM, length, vnet
    )
    egress_flush(e)
    free(block)
    packets = e.lane.packets - packets
    # A superframe or a packet that is cut counts as many, so only whether there were any can be compared.
    settled = refused(cython.address(e.lane), True) + e.lane.tracker.hold.count - settled
    forwarded = 1 - cython.cast(int64_t, settled)
    if forwarded < 0 or (packets > 0) != (forwarded > 0):
        return -1
    return 1 if packets else 0


def egress_case(e, state, corpus, scratch):
    """One mutated frame: a seed is a virtio-net header and a frame."""
    vnet: VnetHeader
    r: uint64_t = draw(state)
    length: uint32_t = pick_seed(state, corpus, scratch, ROOM)
    length = mutate(state, corpus, scratch, length, ROOM, 0 if r & 3 == 0 else VNET_HEADER_SIZE)
    if length <= VNET_HEADER_SIZE:
        return 0
    memcpy(cython.address(vnet), scratch, VNET_HEADER_SIZE)
    if (r >> 2) & 1:
        repair(scratch + VNET_HEADER_SIZE, length - VNET_HEADER_SIZE)
    if feed_frame(
        e, cython.cast(uint32_t, (r >> 3) & 1), scratch + VNET_HEADER_SIZE, length - VNET_HEADER_SIZE,
        cython.address(vnet),
    ) < 0:
        return -1
    return 0


@cython.cclass
class Probe:
    """Both halves on `snapshot`, whose ports take what is delivered; `sock` is the fd datagrams leave by.

    `encapsulation` is that of the receiving socket. Raises MemoryError.
    """

    def __cinit__(self, snapshot: Snapshot, sock: int, encapsulation: str = "vxlan"):
        self.egress = cython.cast(cython.pointer(Egress), calloc(1, cython.sizeof(Egress)))
        self.ingress = cython.cast(cython.pointer(Ingress), calloc(1, cython.sizeof(Ingress)))
        if self.egress == cython.NULL or self.ingress == cython.NULL:
            raise MemoryError
        if egress_open(self.egress) < 0 or ingress_open(self.ingress) < 0:
            raise MemoryError
        self.snapshot = snapshot
        self.shared.current = cython.cast(uint64_t, cython.address(snapshot.generation))
        self.shared.formats[0] = FORMATS[encapsulation]
        self._open_lane(cython.address(self.egress.lane))
        self._open_lane(cython.address(self.ingress.lane))
        for lane in range(2):
            t = cython.address(self.egress.lane.transmitter) if lane else cython.address(self.ingress.lane.transmitter)
            t.sockets4 = 1
            t.queues[0].fd = sock

    def __dealloc__(self):
        if self.egress != cython.NULL:
            egress_close(self.egress)
            free(self.egress)
        if self.ingress != cython.NULL:
            ingress_close(self.ingress)
            free(self.ingress)

    def _open_lane(self, lane):
        lane.shared = cython.address(self.shared)
        lane.wake = -1

    def receive(
        self, payload: bytes, source: int, *, tos: int = 0, gso_size: int = 0, truncated: bool = False
    ) -> dict:
        """Feed one message from the IPv4 underlay address `source`; counts by reason, "pass" for packets handed over.

        The accounts are checked: AssertionError when a datagram was counted twice or not at all.
        """
        message: Message
        memset(cython.address(message), 0, cython.sizeof(Message))
        message.length = len(payload)
        message.gso_size = gso_size
        message.tos = tos
        message.truncated = truncated
        message.family = 4
        message.low = source
        data: cython.p_uchar = payload
        before = self.ingress_counts()
        if feed_message(self.ingress, cython.address(message), data) < 0:
            raise AssertionError("datagrams fed and counted do not agree")
        return difference(before, self.ingress_counts())

    def send(self, position: int, frame: bytes, vnet: bytes) -> dict:
        """Feed one frame of the port at `position` with its 10-byte virtio-net header; counts as for `receive`."""
        header: VnetHeader
        if len(vnet) != VNET_HEADER_SIZE or not frame:
            raise ValueError("a frame has at least one byte and a 10-byte header before it")
        memcpy(cython.address(header), cython.cast(cython.p_uchar, vnet), VNET_HEADER_SIZE)
        data: cython.p_uchar = frame
        before = self.egress_counts()
        if feed_frame(self.egress, position, data, len(frame), cython.address(header)) < 0:
            raise AssertionError("a frame was neither forwarded nor dropped once")
        return difference(before, self.egress_counts())

    def set_clock(self, seconds: int) -> None:
        """The time of both halves, which stands still otherwise; what has waited too long by then is dropped."""
        for lane in range(2):
            half = cython.address(self.egress.lane) if lane else cython.address(self.ingress.lane)
            half.tracker.now = seconds
            lose_expired(half, cython.cast(cython.pointer(Generation), self.shared.current), seconds)

    def swap(self, snapshot: Snapshot) -> None:
        """From the next input on."""
        self.snapshot = snapshot
        self.shared.current = cython.cast(uint64_t, cython.address(snapshot.generation))

    def ingress_counts(self) -> dict:
        """Everything the ingress half has counted, by reason."""
        return lane_counts(cython.address(self.ingress.lane))

    def egress_counts(self) -> dict:
        """Everything the egress half has counted, by reason."""
        return lane_counts(cython.address(self.egress.lane))

    def fuzz_ingress(self, seeds: list, seed: int, count: int) -> dict:
        """`count` mutated datagrams; counts by reason. AssertionError names the case whose accounts are wrong."""
        return run(self, 1, seeds, seed, count)

    def fuzz_egress(self, seeds: list, seed: int, count: int) -> dict:
        """The same for frames of ports 0 and 1; a seed is a virtio-net header followed by a frame."""
        return run(self, 2, seeds, seed, count)


def fuzz_parse(seeds: list, seed: int, count: int) -> dict:
    """`count` mutated inner packets to the parser; counts by reason."""
    return run(None, 0, seeds, seed, count)


def difference(before: dict, after: dict) -> dict:
    """What changed."""
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


@cython.cfunc
def lane_counts(lane: cython.pointer(Lane)) -> dict:
    out: dict = {name: lane.drops[value] for value, name in enumerate(NAMES)}
    out["pass"] = lane.packets
    out["held"] = lane.tracker.hold.count
    return out


@cython.cfunc
def run(probe: object, kind: cython.int, seeds: list, seed: int, count: int) -> dict:
    """The loop of all three: kind 0 parser, 1 ingress, 2 egress."""
    reasons = cython.declare(uint64_t[64])
    halves: Probe = probe
    corpus: Corpus
    state: uint64_t = seed * 2 + 1
    total: uint64_t = count
    i: uint64_t = 0
    n: uint32_t
    bad: cython.int = 0
    flat: bytes = b"".join(seeds)
    starts = cython.cast(cython.pointer(uint32_t), malloc((len(seeds) + 1) * cython.sizeof(uint32_t)))
    scratch = cython.cast(cython.pointer(uint8_t), malloc(2 * ROOM))
    try:
        if starts == cython.NULL or scratch == cython.NULL:
            raise MemoryError
        starts[0] = 0
        for n, item in enumerate(seeds):
            starts[n + 1] = starts[n] + cython.cast(uint32_t, len(item))
        corpus.data = cython.cast(cython.p_uchar, flat)
        corpus.start = starts
        corpus.count = len(seeds)
        memset(cython.address(reasons[0]), 0, cython.sizeof(reasons))
        before = None if kind == 0 else (probe.ingress_counts() if kind == 1 else probe.egress_counts())
        with cython.nogil:
            while i < total and bad == 0:
                i += 1
                if kind == 0:
                    bad = parse_case(cython.address(state), cython.address(corpus), scratch, cython.address(reasons[0]))
                elif kind == 1:
                    bad = ingress_case(halves.ingress, cython.address(state), cython.address(corpus), scratch)
                else:
                    bad = egress_case(halves.egress, cython.address(state), cython.address(corpus), scratch)
        if bad:
            raise AssertionError(f"case {i} of seed {seed} breaks an invariant")
        if kind == 0:
            return {name: reasons[n] for n, name in enumerate(NAMES) if reasons[n]}
        return difference(before, probe.ingress_counts() if kind == 1 else probe.egress_counts())
    finally:
        free(starts)
        free(scratch)
