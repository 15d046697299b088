# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""A worker: the memory of one egress and one ingress thread, and the control plane's hold on them.

The two `run_*` methods are thread bodies that release the GIL for as long as they run. `swap` publishes a snapshot by
one pointer store; `reap` frees those that no thread can be using any more. Sockets and ports belong to the owner
(`dataplane.py`) and must outlive the threads.
"""

import os

import cython
from cython.cimports.encap.drops import DropReason as Reason
from cython.cimports.encap.receive import RECEIVE_BUFFERS
from cython.cimports.encap.transmit import QUEUE_MESSAGES
from cython.cimports.encap.vtep import FORMAT_UDP, FORMAT_VXLAN
from cython.cimports.fabric.forward.batch import TAP_LINKS, Egress, Link, egress_close, egress_open
from cython.cimports.fabric.forward.denials import read_denials
from cython.cimports.fabric.forward.drop_ring import DropRing
from cython.cimports.fabric.forward.egress import egress_run
from cython.cimports.fabric.forward.ingress import Ingress, ingress_close, ingress_open, ingress_run
from cython.cimports.fabric.forward.kernel import ORDERED, atomic_load, atomic_store
from cython.cimports.fabric.forward.lane import SOCKETS, Lane
from cython.cimports.fabric.forward.snapshot import MAX_WORKERS
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.unistd import close

from encap.drops import DropReason

LOW = (1 << 64) - 1
REASON_NAMES = [DropReason(value).name.lower() for value in range(1, Reason.REASONS)]


@cython.cclass
class Worker:
    """One worker.

    `receive` is a sequence of (fd, "vxlan" | "udp"), at most four; `transmit4` and `transmit6` are the fds of the
    source ports per underlay family. Raises ValueError for too many of either, MemoryError when memory or descriptors
    are used up.
    """

    def __cinit__(self, index: int, receive, transmit4, transmit6):
        if not 0 <= index < MAX_WORKERS:
            raise ValueError(f"worker {index}: there are at most {MAX_WORKERS}")
        self.egress = cython.cast(cython.pointer(Egress), calloc(1, cython.sizeof(Egress)))
        self.ingress = cython.cast(cython.pointer(Ingress), calloc(1, cython.sizeof(Ingress)))
        # What has not been opened must not be closed by `__dealloc__`.
        if self.egress != cython.NULL:
            self.egress.lane.wake = -1
            self.egress.lane.epoll = -1
        if self.ingress != cython.NULL:
            self.ingress.lane.wake = -1
            self.ingress.lane.epoll = -1
        if self.egress == cython.NULL or self.ingress == cython.NULL:
            raise MemoryError
        if egress_open(self.egress) < 0 or ingress_open(self.ingress) < 0:
            raise MemoryError
        if len(receive) > SOCKETS or len(transmit4) > 16 or len(transmit6) > 16:
            raise ValueError("a worker takes at most 4 receive sockets and 16 transmit sockets per family")
        self.shared.worker = index
        self.shared.socket_count = len(receive)
        for i, (fd, form) in enumerate(receive):
            self.shared.sockets[i] = fd
            self.shared.formats[i] = FORMAT_UDP if form == "udp" else FORMAT_VXLAN
        self.retired = []
        self.wakes = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self.shared.wakes[0], self.shared.wakes[1] = self.wakes
        self.egress.ingress = self.ingress
        self._open_lane(cython.address(self.egress.lane), self.wakes[0], transmit4, transmit6)
        self._open_lane(cython.address(self.ingress.lane), self.wakes[1], transmit4, transmit6)

    def __dealloc__(self):
        if self.egress != cython.NULL:
            close(self.egress.lane.wake)
            egress_close(self.egress)
            free(self.egress)
        if self.ingress != cython.NULL:
            close(self.ingress.lane.wake)
            ingress_close(self.ingress)
            free(self.ingress)

    def _open_lane(self, lane, wake, sockets4, sockets6):
        lane.shared = cython.address(self.shared)
        lane.wake = wake
        lane.seen = cython.cast(uint64_t, -1)
        lane.transmitter.sockets4 = len(sockets4)
        lane.transmitter.sockets6 = len(sockets6)
        for i, fd in enumerate(sockets4):
            lane.transmitter.queues[i].fd = fd
        for i, fd in enumerate(sockets6):
            lane.transmitter.queues[16 + i].fd = fd

    def add_socket(self, fd: int, form: str) -> None:
        """One more receive socket, also while the threads run. Raises ValueError when there are four already."""
        count = self.shared.socket_count
        if count >= SOCKETS:
            raise ValueError(f"a worker takes at most {SOCKETS} receive sockets")
        self.shared.sockets[count] = fd
        self.shared.formats[count] = FORMAT_UDP if form == "udp" else FORMAT_VXLAN
        atomic_store(cython.address(self.shared.socket_count), count + 1, ORDERED)
        self.wake()

    def set_segmentation(self, enabled: bool) -> None:
        """UDP_SEGMENT on or off; takes effect with the next datagram."""
        self.egress.lane.transmitter.segmentation = enabled
        self.ingress.lane.transmitter.segmentation = enabled

    def set_batching(self, enabled: bool) -> None:
        """Many messages per system call of the underlay sockets, or one. Before the threads start."""
        self.egress.lane.transmitter.batch = self.ingress.lane.transmitter.batch = QUEUE_MESSAGES if enabled else 1
        self.ingress.receiver.batch = RECEIVE_BUFFERS if enabled else 1

    def set_tunnel_gso(self, fd: int, mac: bytes, source_ports4, source_ports6, on_link) -> None:
        """Send superframes to VTEPs inside `on_link` whole through the TAP `fd` with this MAC; -1 turns it off.

        At most TAP_LINKS of `on_link` are used. Also while the threads run, if then only between a TAP and -1: the
        descriptor is what they look at, and it is set last.
        """
        link: cython.pointer(Link)
        if fd < 0:
            self.egress.tap = fd
            return
        for i in range(6):
            self.egress.tap_mac[i] = mac[i]
        for i, port in enumerate(source_ports4):
            self.egress.lane.transmitter.queues[i].source_port = port
        for i, port in enumerate(source_ports6):
            self.egress.lane.transmitter.queues[16 + i].source_port = port
        self.egress.tap_links = min(len(on_link), TAP_LINKS)
        for i, each in enumerate(on_link[:TAP_LINKS]):
            link = cython.address(self.egress.tap_link[i])
            mask, network = int(each.network.netmask), int(each.network.network_address)
            link.family = each.version
            link.mask_high = mask >> 64
            link.mask_low = mask & LOW
            link.high = network >> 64
            link.low = network & LOW
        self.egress.tap = fd

    def record_drops(self, enabled: bool) -> None:
        """Take refused packets down from now on, or no longer; also while the threads run. What is not read stays."""
        if not enabled:
            self.egress.lane.ring = self.ingress.lane.ring = cython.NULL
            return
        if self.egress_ring is None:
            # Kept for as long as this worker: a thread may hold on to it for a batch.
            self.egress_ring, self.ingress_ring = DropRing(), DropRing()
        self.egress.lane.ring = self.egress_ring.ring
        self.ingress.lane.ring = self.ingress_ring.ring

    def recorded_drops(self) -> tuple:
        """Records since the last call (`DropRing.read`), and how many were lost so far."""
        if self.egress_ring is None:
            return [], 0
        found = self.egress_ring.read() + self.ingress_ring.read()
        return found, self.egress_ring.lost + self.ingress_ring.lost

    def run_egress(self) -> None:
        """Body of the egress thread; returns after `stop`."""
        with cython.nogil:
            egress_run(self.egress)

    def run_ingress(self) -> None:
        """Body of the ingress thread; returns after `stop`."""
        with cython.nogil:
            ingress_run(self.ingress)

    def swap(self, snapshot: Snapshot) -> None:
        """Publish a snapshot; both threads use it from their next batch on."""
        if self.snapshot is not None:
            self.retired.append(self.snapshot)
        self.snapshot = snapshot
        atomic_store(
            cython.address(self.shared.current), cython.cast(uint64_t, cython.address(snapshot.generation)), ORDERED
        )
        self.wake()

    def wake(self) -> None:
        """Let both threads look at the current generation and the stop flag."""
        for fd in self.wakes:
            os.eventfd_write(fd, 1)

    def beat(self) -> tuple:
        """Wake both threads; how often (egress, ingress) have woken so far, which is more by the next call.

        A thread that never sleeps counts its datagrams instead.
        """
        beats = (self.egress.lane.wakeups, self.ingress.lane.wakeups + self.ingress.datagrams + self.ingress.parks)
        self.wake()
        return beats

    def reap(self) -> int:
        """Free retired snapshots that no thread uses; how many are left."""
        egress: uint64_t = atomic_load(cython.address(self.egress.lane.seen), ORDERED)
        ingress: uint64_t = atomic_load(cython.address(self.ingress.lane.seen), ORDERED)
        oldest: uint64_t = egress if egress < ingress else ingress
        self.retired = [snapshot for snapshot in self.retired if snapshot.number >= oldest]
        return len(self.retired)

    def stop(self) -> None:
        """Ask both threads to return; the caller joins them."""
        atomic_store(cython.address(self.shared.stop), 1, ORDERED)
        self.wake()

    def port_counts(self, slot: int) -> tuple:
        """What both threads have counted for the port of a slot since the start: see `WorkerPort.COUNTS`."""
        e = cython.address(self.egress.lane.ports[cython.cast(cython.uint, slot)])
        s = cython.address(self.ingress.lane.ports[cython.cast(cython.uint, slot)])
        return (
            e.frames_from + s.frames_from,
            e.bytes_from + s.bytes_from,
            e.frames_to + s.frames_to,
            e.bytes_to + s.bytes_to,
            e.drops + s.drops,
        )

    def peer_counts(self, slot: int) -> tuple:
        """What both threads have carried to and from the VTEP of a slot since the start: see `PeerCounts.COUNTS`.

        What the ingress thread sends are ICMP errors of its own, which count nowhere.
        """
        sent = cython.address(self.egress.lane.transmitter.carried[cython.cast(cython.uint, slot)])
        taken = cython.address(self.ingress.carried[cython.cast(cython.uint, slot)])
        return sent.packets, sent.bytes, taken.packets, taken.bytes

    def counters(self) -> dict:
        """All counters of both threads by name; drops as `drop_<reason>`.

        `*_packets` leaves out what the kernel refused at the end: such a packet counts under its drop reason only.
        """
        out: dict = {}
        m = cython.address(self.ingress.merger)
        # Losses are read first: packets are counted before they can be lost, so the difference is never negative.
        unsent: uint64_t = 0
        reason: cython.int
        for reason in range(Reason.SEND_QUEUE_FULL, Reason.SEND_FAILED + 1):
            unsent += self.egress.lane.drops[reason]
        unwritten: uint64_t = m.errors_again + m.errors_down + m.errors_gone + m.errors_other
        add_lane(out, "egress", cython.address(self.egress.lane))
        add_lane(out, "ingress", cython.address(self.ingress.lane))
        out["egress_packets"] -= unsent
        out["ingress_packets"] -= unwritten
        out["egress_local"] = self.egress.lane.local
        out["joint_turns"] = self.egress.joint_turns
        t = cython.address(self.egress.lane.transmitter)
        out["send_datagrams"] = t.datagrams
        out["send_bytes"] = t.bytes
        out["send_messages"] = t.sends
        out["send_calls"] = t.calls
        out["send_resent"] = t.resent
        out["egress_neighbours"] = self.egress.neighbours
        out["send_injected"] = self.egress.injected
        out["receive_datagrams"] = self.ingress.datagrams
        out["receive_messages"] = self.ingress.messages
        out["receive_overflows"] = self.ingress.receiver.overflows
        out["write_frames"] = m.frames
        out["write_calls"] = m.writes
        out["write_merged"] = m.merged
        out["write_bad_checksum"] = m.bad_checksum
        out["flow_fragments_unmatched"] = (
            self.egress.lane.tracker.fragments.unmatched + self.ingress.lane.tracker.fragments.unmatched
        )
        first, second = cython.address(self.egress.lane.tracker), cython.address(self.ingress.lane.tracker)
        out["flow_fragments_held"] = first.hold.taken + second.hold.taken
        out["flow_answered"] = first.limiter.sent + second.limiter.sent
        out["flow_answers_limited"] = first.limiter.limited + second.limiter.limited
        out.update(self._drops())
        return out

    def denied(self) -> list:
        """What policy has denied since the last call, sampled; at most the last 128 of each thread.

        Tuples of drop reason, rule number or None, family, source and destination as integers, protocol, and both ports
        or ICMP type and code.
        """
        return [
            *read_denials(cython.address(self.egress.lane.tracker.denials), cython.address(self.denied_seen[0])),
            *read_denials(cython.address(self.ingress.lane.tracker.denials), cython.address(self.denied_seen[1])),
        ]

    def _drops(self):
        m = cython.address(self.ingress.merger)
        drops: list = [self.egress.lane.drops[i] for i in range(len(REASON_NAMES) + 1)]
        reason: cython.int
        for reason in range(Reason.REASONS):
            # What the ingress thread sends are ICMP errors of its own: losing one refuses no packet.
            if not Reason.SEND_QUEUE_FULL <= reason <= Reason.SEND_FAILED:
                drops[reason] += self.ingress.lane.drops[reason]
        drops[Reason.PORT_QUEUE_FULL] += m.errors_again
        drops[Reason.PORT_DOWN] += m.errors_down
        drops[Reason.PORT_GONE] += m.errors_gone
        drops[Reason.PORT_FAILED] += m.errors_other
        return {"drop_" + name: value for name, value in zip(REASON_NAMES, drops[1:], strict=True)}


@cython.cfunc
def add_lane(out: dict, name: str, lane: cython.pointer(Lane)) -> object:
    """Counters both threads have."""
    out[name + "_packets"] = lane.packets
    out[name + "_bytes"] = lane.bytes
    out[name + "_superframes"] = lane.superframes
    out[name + "_wakeups"] = lane.wakeups
    out[name + "_icmp_sent"] = lane.limiter.sent
    out[name + "_icmp_limited"] = lane.limiter.limited
