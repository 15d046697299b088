# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One packet through the data path's own functions and live tables, with nothing sent, counted or remembered.

Theory of operation. A `Rehearsal` has a lane of each direction that no thread runs, and a copy of the snapshot's
generation in which everything that is written is its own: the descriptors of ports (sockets whose other ends the owner
reads), the counters of rules (none), and the flow table. That one has the live one's size and secret and is empty but
for the two buckets where the packet's flow belongs and those where its pod would give back another one, copied as they
were, so the packet finds its flow, its neighbours and its quota, and what it would have written can be read. VTEPs,
routes and rules are the snapshot's, which is alive as long as we are.

Limits. What one thread alone knows is not seen: the verdicts of first fragments, what waits for them, and how many ICMP
errors a port has had of late. A later fragment does not wait here, it is dropped at once. A superframe is always cut
here, never by the tunnel-GSO TAP, and datagrams do not form trains.
"""

import cython
from cython.cimports.encap.drops import DropReason
from cython.cimports.encap.inner import IPPROTO_ICMP, IPPROTO_ICMPV6, LATER_FRAGMENT, parse
from cython.cimports.encap.receive import Message
from cython.cimports.encap.transmit import MAX_QUEUES, transmitter_close, transmitter_open
from cython.cimports.encap.vtep import FORMAT_VXLAN
from cython.cimports.encap.vxlan import ENCAPSULATION
from cython.cimports.fabric.forward.batch import FRAME_ROOM, HEADROOM, egress_close, egress_flush, egress_open
from cython.cimports.fabric.forward.egress import egress_frame
from cython.cimports.fabric.forward.ethernet import unwrap
from cython.cimports.fabric.forward.flow_key import NO_QUOTE, flow_hash, flow_key, is_error, quoted_key
from cython.cimports.fabric.forward.flow_room import SEARCHED
from cython.cimports.fabric.forward.flow_state import class_of
from cython.cimports.fabric.forward.flow_table import (
    ACCOUNTS,
    WAYS,
    Bucket,
    Flow,
    FlowRest,
    Found,
    Table,
    flow_lookup,
    flow_read,
    second_of,
    tag_of,
)
from cython.cimports.fabric.forward.flow_track import track_batch
from cython.cimports.fabric.forward.ingress import settle, take_message
from cython.cimports.fabric.forward.policing import ask, police
from cython.cimports.fabric.forward.snapshot import LINK_HEADER, MAX_WORKERS, SLOTS
from cython.cimports.fabric.policy.judge import NO_RULE, Answer, Question
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy
from cython.cimports.tun.merge import merge_flush, merge_init
from cython.cimports.tun.vnet import VNET_HEADER_SIZE, VnetHeader

from fabric.forward.enforcement import RuleHits
from fabric.forward.flows import FlowTable

LOW = (1 << 64) - 1


@cython.cclass
class Rehearsal:
    """For one packet on `snapshot`, which comes in by the port at position `source`, -1 for the underlay.

    `live` is the flow table of the snapshot's, None where it has none. What is written goes to three SEQPACKET sockets,
    `fds`: back into the port it came by, on into any other port (each a virtio-net header and a frame), and to the
    underlay (UDP payloads). `sockets` are the numbers of transmit sockets of both families. Raises MemoryError.
    """

    def __cinit__(self, snapshot: Snapshot, live: FlowTable | None, source: int, fds: tuple, sockets: tuple):
        self.snapshot = snapshot
        self.live = live
        self.source = source
        self.hits = RuleHits()
        self.egress = cython.cast(cython.pointer(Egress), calloc(1, cython.sizeof(Egress)))
        self.ingress = cython.cast(cython.pointer(Ingress), calloc(1, cython.sizeof(Ingress)))
        self.ports = cython.cast(
            cython.pointer(PortEntry), calloc(snapshot.generation.port_count + 1, cython.sizeof(PortEntry))
        )
        if self.egress == cython.NULL or self.ingress == cython.NULL or self.ports == cython.NULL:
            raise MemoryError
        s = cython.address(self.ingress.lane)
        s.epoll = -1
        merge_init(cython.address(self.ingress.merger))
        if (
            egress_open(self.egress) < 0
            or transmitter_open(cython.address(s.transmitter), cython.address(s.drops[0])) < 0
        ):
            raise MemoryError
        back, on, wire = fds
        four, six = sockets
        self._copy_generation(back, on)
        self._open_lane(cython.address(self.egress.lane), cython.address(self.egress.lane.transmitter), wire, four, six)
        self._open_lane(s, cython.address(s.transmitter), wire, four, six)

    def __dealloc__(self):
        if self.egress != cython.NULL:
            egress_close(self.egress)
            free(self.egress)
        if self.ingress != cython.NULL:
            transmitter_close(cython.address(self.ingress.lane.transmitter))
            free(self.ingress)
        free(self.ports)

    def _copy_generation(self, back, on):
        """The snapshot's tables with our own ports, counters and flow table."""
        i: uint32_t
        worker: uint32_t
        own = cython.address(self.snapshot.generation)
        self.generation = own[0]
        memcpy(self.ports, own.ports, own.port_count * cython.sizeof(PortEntry))
        for i in range(own.port_count):
            self.ports[i].slot = i if i < SLOTS else SLOTS - 1
            for worker in range(MAX_WORKERS):
                if self.ports[i].fds[worker] >= 0:
                    self.ports[i].fds[worker] = back if cython.cast(cython.int, i) == self.source else on
        self.generation.ports = self.ports
        self.rules = own.rules[0]
        self.rules.hits = self.hits.blocks
        self.rules.staged = cython.NULL
        self.generation.rules = cython.address(self.rules)
        self.generation.flows = cython.NULL
        if own.flows != cython.NULL:
            self.flows = FlowTable(self.live.capacity, own.flows.quota)
            identity = self.live.identity()
            self.flows.set_secret(identity["secret"])
            self.flows.set_accounts(identity["accounts"])
            memcpy(
                cython.address(self.flows.table.charged[0]),
                cython.address(own.flows.charged[0]),
                ACCOUNTS * cython.sizeof(uint32_t),
            )
            self.generation.flows = self.flows.table

    def _open_lane(self, lane, t, wire, sockets4, sockets6):
        i: cython.int
        lane.shared = cython.address(self.shared)
        lane.wake = -1
        lane.tracker.hold.closed = True
        t.sockets4 = sockets4
        t.sockets6 = sockets6
        t.segmentation = 0
        for i in range(2 * MAX_QUEUES):
            t.queues[i].fd = wire

    # --- the packet ---

    def send(self, frame: bytes, link: bool, vnet: bytes) -> None:
        """A frame of the port `source`, with an Ethernet header if `link`, and its virtio-net header of 10 bytes.

        Raises ValueError for one that is empty or longer than a port reads.
        """
        header: VnetHeader
        e = self.egress
        g = cython.address(self.generation)
        data: cython.pointer(uint8_t) = e.arena + HEADROOM
        size: uint32_t = len(frame)
        if self.source < 0:
            raise ValueError("the packet comes from the underlay")
        source: uint32_t = self.source
        if not frame or len(frame) > FRAME_ROOM - HEADROOM - VNET_HEADER_SIZE or len(vnet) != VNET_HEADER_SIZE:
            raise ValueError(f"a frame of {len(frame)} bytes cannot be read from a port")
        memcpy(cython.address(header), cython.cast(cython.p_uchar, vnet), VNET_HEADER_SIZE)
        memcpy(data, cython.cast(cython.p_uchar, frame), size)
        track_batch(cython.address(e.lane.tracker), g)
        if link:
            if not unwrap(e, cython.address(self.ports[source]), data, size, cython.address(header)):
                return
            data += LINK_HEADER
            size -= LINK_HEADER
        self._meet(data, size)
        egress_frame(e, g, source, data, size, cython.address(header))
        egress_flush(e)

    def receive(self, payload: bytes, outer, tos: int, form: int) -> None:
        """A UDP payload from the underlay address `outer` on the socket of a format (FORMAT_*), with the outer TOS."""
        message: Message
        copy: bytearray = bytearray(payload)
        data: cython.p_uchar = copy
        skip: uint32_t = ENCAPSULATION if form == FORMAT_VXLAN else 0
        g = cython.address(self.generation)
        number = int(outer)
        message.data = data
        message.length = len(payload)
        message.gso_size = 0
        message.tos = tos
        message.family = outer.version
        message.truncated = 0
        message.high = number >> 64
        message.low = number & LOW
        track_batch(cython.address(self.ingress.lane.tracker), g)
        if message.length > skip:
            self._meet(data + skip, message.length - skip)
        take_message(self.ingress, g, cython.address(message), form)
        settle(self.ingress, g)
        merge_flush(cython.address(self.ingress.merger))

    def _meet(self, packet, length):
        """Let our flow table have what the live one has where this packet's flow belongs."""
        quoted: FlowKey
        if self.generation.flows == cython.NULL:
            return
        if parse(packet, length, cython.address(self.inner)) != DropReason.PASS:
            return
        if self.inner.fragment == LATER_FRAGMENT:
            return
        if (self.inner.protocol == IPPROTO_ICMP or self.inner.protocol == IPPROTO_ICMPV6) and is_error(
            cython.address(self.inner), packet
        ):
            self.keyed = quoted_key(cython.address(self.inner), packet, cython.address(quoted)) != cython.cast(
                uint32_t, NO_QUOTE
            )
            self.key = quoted
        else:
            flow_key(cython.address(self.inner), packet, cython.address(self.key))
            self.keyed = True
        if self.keyed:
            self._copy_flows(cython.address(self.key))

    def _copy_flows(self, key):
        """The buckets in which something is looked for; each place is consistent in itself."""
        t: cython.pointer(Table) = self.flows.table
        hash: uint64_t = flow_hash(key, cython.address(t.secret[0]))
        first: uint32_t = cython.cast(uint32_t, hash) & t.mask
        second: uint32_t = second_of(t, hash)
        way: uint32_t
        i: uint32_t
        for way in range(WAYS):
            self._copy_place(second * WAYS + way)
            for i in range(SEARCHED):
                self._copy_place(((first + i) & t.mask) * WAYS + way)

    def _copy_place(self, index):
        flow: Flow
        rest: FlowRest
        expires: uint32_t = 0
        t: cython.pointer(Table) = self.flows.table
        bucket: cython.pointer(Bucket) = t.buckets + index // WAYS
        way: uint32_t = index % WAYS
        if not flow_read(self.live.table, index, cython.address(flow), cython.address(rest), cython.address(expires)):
            return
        t.flows[index] = flow
        t.rests[index] = rest
        bucket.tags[way // 4] |= tag_of(flow_hash(cython.address(flow.key), cython.address(t.secret[0]))) << (
            way % 4 * 16
        )
        bucket.expires[way] = expires
        bucket.classes[way] = class_of(flow.state)

    # --- what became of it ---

    def _lane(self):
        """The one that the packet went through."""
        if self.ingress.messages:
            return cython.address(self.ingress.lane)
        return cython.address(self.egress.lane)

    def drops(self) -> list:
        """The reasons that were counted (DropReason)."""
        lane = self._lane()
        return [reason for reason in range(64) if lane.drops[reason]]

    def targets(self) -> list:
        """Positions of the ports that got something; those beyond the last slot are taken for one."""
        lane = self._lane()
        count = min(SLOTS, self.generation.port_count)
        return [position for position in range(count) if lane.ports[position].frames_to]

    def flow(self) -> tuple:
        """The packet's flow as the live table has it, and as it would be afterwards; None where there is none.

        Of an ICMP error the flow is that of the packet which it quotes.
        """
        if not self.keyed:
            return None, None
        return self._found(self.live), self._found(self.flows)

    def _found(self, table):
        found: Found
        flow: Flow
        rest: FlowRest
        expires: uint32_t = 0
        now: uint32_t = self._lane().tracker.now
        t: cython.pointer(Table) = table.table
        if (
            not flow_lookup(
                t,
                cython.address(self.key),
                flow_hash(cython.address(self.key), cython.address(t.secret[0])),
                cython.address(found),
            )
            or found.expires <= now
        ):
            return None
        if not flow_read(t, found.index, cython.address(flow), cython.address(rest), cython.address(expires)):
            return None
        return table._describe(cython.address(flow), cython.address(rest), expires - now, now)

    def policy(self, packet: bytes, entry: int) -> tuple:
        """What policy says of this packet as the first of a flow that comes in by `entry` (`flow_table`).

        (DropReason or 0, egress rule, ingress rule), rules by number, None where none was asked or none decided.
        Raises ValueError for a packet that the parser refuses or that has no ports.
        """
        question: Question
        answer: Answer
        inner: Inner
        data: cython.p_uchar = packet
        if parse(data, len(packet), cython.address(inner)) != DropReason.PASS or inner.fragment == LATER_FRAGMENT:
            raise ValueError("policy is not asked about this packet")
        ask(cython.address(inner), data, cython.address(question))
        reason: uint8_t = police(
            cython.address(self.generation), cython.address(question), entry, cython.address(answer)
        )
        return (
            reason,
            None if answer.egress_rule == NO_RULE else answer.egress_rule,
            None if answer.ingress_rule == NO_RULE else answer.ingress_rule,
        )

    def account(self, position: int) -> int:
        """The account of the port at `position`, by which its packets come in."""
        if not 0 <= position < self.generation.port_count:
            raise ValueError(f"there is no port {position}")
        return self.ports[position].account
