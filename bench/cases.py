"""The hot functions as cases: what one iteration is, what it is divided by, and how large that ratio may be.

A ratio compares two loops measured alternately in the same process, the fastest of several turns each, so that
neither the machine's clock nor a busy neighbour decides. References: `core`, a round of four multiply-adds and loads
(`hot.work`), for functions on headers; `memory`, a memcpy of 64 KB, for functions on payload. Limits are about 1.6
times what was measured when they were recorded (Intel, AVX-512 capable, 3.7 GHz, gcc 12 -O3), two times for memory.
"""

from __future__ import annotations

import os
import socket
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import count
from typing import Literal

from bench import data, hot, hot_path
from encap.vxlan import encapsulate
from fabric.forward.flow_probe import FlowProbe
from tun.batch import write_merged
from tun.split import split
from tun.vnet import VnetHeader

Loop = Callable[[int], object]
POD = IPv4Address("10.244.1.2")
LOOPBACK_PEERS = IPv4Address("127.1.0.0")
TURNS = 7
MORE_TURNS = 40


@dataclass(frozen=True)
class Case:
    """`make()` prepares a loop; `loop(n)` does `n` iterations. `limit` is the largest ratio allowed."""

    name: str
    make: Callable[[], Loop]
    n: int
    reference: Literal["core", "memory"]
    limit: float


def parse4() -> Loop:
    packet = data.udp_packet(data.OWN_POD, POD)
    return lambda n: hot.loop_parse(packet, n)


def parse6() -> Loop:
    packet = data.udp6_packet()
    return lambda n: hot.loop_parse(packet, n)


def header_sum() -> Loop:
    header = data.udp_packet(data.OWN_POD, POD)[:20]
    return lambda n: hot.loop_header_sum(header, n)


def payload_sum() -> Loop:
    payload = os.urandom(65536)
    return lambda n: hot.loop_payload_sum(payload, n)


def verify() -> Loop:
    packet = data.tcp_packet(POD, data.OWN_POD, 1398)
    return lambda n: hot.loop_verify(packet, 20, n)


def split_headers() -> Loop:
    frame, vnet = data.superframe()
    return lambda n: hot.loop_split(frame, vnet, n)


def merge_segments() -> Loop:
    frame, vnet = data.superframe()
    frames = split(frame, VnetHeader.parse(vnet))
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    return lambda n: write_merged(null, frames, rounds=n)


def lookup4(prefixes: int) -> Callable[[], Loop]:
    def make() -> Loop:
        fib, addresses = data.prefixes(prefixes), data.addresses4(prefixes)
        return lambda n: hot.loop_lookup4(fib, addresses, n)

    return make


def lookup6(prefixes: int) -> Callable[[], Loop]:
    def make() -> Loop:
        fib, addresses = data.prefixes6(prefixes), data.addresses6(prefixes)
        return lambda n: hot.loop_lookup6(fib, addresses, n)

    return make


def find_vtep() -> Loop:
    table, addresses = data.table(1000), data.underlay_addresses(1000)
    return lambda n: hot.loop_vtep(table, addresses, n)


def stamp() -> Loop:
    table = data.table(1000)
    return lambda n: hot.loop_stamp(table, n)


def check() -> Loop:
    packet = data.udp_packet(POD, data.OWN_POD)
    datagram = encapsulate(packet, vni=data.VNI, destination=data.OWN_MAC, source=data.peer_mac(1))
    return lambda n: hot.loop_check(datagram, data.OWN_MAC, data.peer_mac(1), data.VNI, n)


def egress(peers: int) -> Callable[[], Loop]:
    """Parse, route, stamp, queue; one iteration is one packet, n a multiple of data.FRAMES."""

    def make() -> Loop:
        loop = hot_path.EgressLoop(data.snapshot(peers), data.frames_to(peers))
        return lambda n: loop.run(n // data.FRAMES)

    return make


def ingress(peers: int) -> Callable[[], Loop]:
    """VTEP, header checks, parse, admission, merge into superframes, write to /dev/null."""

    def make() -> Loop:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        loop = hot_path.IngressLoop(data.snapshot(peers, null), data.datagrams_from(peers))
        return lambda n: loop.run(n // data.FRAMES)

    return make


def egress_sent(peers: int, ports: int = 1, tracking: bool = True, rules: int | None = None) -> Callable[[], Loop]:
    """Egress with a sendmmsg() over loopback, no trains: a whole packet, whatever its destination and its flow."""

    def make() -> Loop:
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sink.bind(("0.0.0.0", 0))
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.bind(("127.0.0.1", 0))
        port = sink.getsockname()[1]
        tables = data.snapshot(peers, port=port, base=LOOPBACK_PEERS, tracking=tracking, rules=rules)
        # Both stay open as long as the process, like the /dev/null of the other cases.
        sink.detach()
        loop = hot_path.EgressLoop(tables, data.frames_to(peers), sender.detach(), False, ports)
        loop.run(peers * ports // data.FRAMES)  # the flows are there before anything is measured
        return lambda n: loop.run(n // data.FRAMES)

    return make


def ingress_alone(peers: int, tracking: bool = True) -> Callable[[], Loop]:
    """Ingress into a port that takes no superframes: one write per packet, whatever its source."""

    def make() -> Loop:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        tables = data.snapshot(peers, null, features=0, tracking=tracking)
        loop = hot_path.IngressLoop(tables, data.datagrams_from(peers))
        return lambda n: loop.run(n // data.FRAMES)

    return make


def track(flows: int, rules: int | None = None) -> Callable[[], Loop]:
    """Key, hash, lookup and state of a packet that is parsed already; one flow is remembered from packet to packet."""

    def make() -> Loop:
        packets = data.packets_of(flows)
        probe = FlowProbe(data.snapshot(data.MAX_PEERS, rules=rules), packets)
        # The second second: the first packet of a flow in it writes the record, which is not the case in question.
        probe.run(0, 1, 1)
        return lambda n: probe.run(0, 1, max(1, n // len(packets)))

    return make


def begin(rules: int | None) -> Callable[[], Loop]:
    """The same for the first packet of a flow: judged and put into the table, in the place of one that has expired."""

    def make() -> Loop:
        packets = list(dict.fromkeys(data.packets_of(1000)))
        probe = FlowProbe(data.snapshot(data.MAX_PEERS, rules=rules), packets)
        clock = count(1000, 1000)

        def loop(n: int) -> None:
            for _ in range(max(1, n // len(packets))):
                probe.run(0, next(clock), 1)

        return loop

    return make


CASES: tuple[Case, ...] = (
    Case("parse, IPv4 UDP", parse4, 50_000, "core", 20),
    Case("parse, IPv6 UDP", parse6, 50_000, "core", 12),
    Case("header checksum, 20 bytes", header_sum, 50_000, "core", 8),
    Case("payload checksum, 64 KB", payload_sum, 200, "memory", 2.6),
    Case("verify checksum, 1,450 byte packet", verify, 20_000, "core", 70),
    Case("split, 46 segments", split_headers, 200, "memory", 4),
    Case("merge, 46 segments", merge_segments, 200, "memory", 6),
    Case("lookup, IPv4, 1,000 prefixes", lookup4(1000), 50_000, "core", 16),
    Case("lookup, IPv4, 10,000 prefixes", lookup4(10_000), 50_000, "core", 32),
    Case("lookup, IPv6, 10,000 prefixes", lookup6(10_000), 20_000, "core", 110),
    Case("VTEP by address, 1,000 peers", find_vtep, 50_000, "core", 5),
    Case("encapsulation header", stamp, 50_000, "core", 3),
    Case("decapsulation checks", check, 50_000, "core", 10),
    Case("flow of a packet, one flow", track(1), 50_000, "core", 20),
    Case("flow of a packet, 1,000 flows", track(1000), 50_000, "core", 60),
    Case("egress of a packet, 1,000 peers", egress(1000), 20_000, "core", 80),
    Case("ingress of a packet, one flow", ingress(1), 20_000, "core", 120),
)


@dataclass(frozen=True)
class Scaling:
    """The same work against a small and a large table: the cost of a packet must not depend on the cluster's size."""

    name: str
    small: Callable[[], Loop]
    large: Callable[[], Loop]
    n: int
    limit: float | None


SCALINGS: tuple[Scaling, ...] = (
    Scaling("egress with send, 1,000 peers against 1", egress_sent(1), egress_sent(1000), 4_000, 1.3),
    # A thousand peers are a thousand flows too, which the next case is about.
    Scaling(
        "ingress with write, 1,000 peers against 1", ingress_alone(1, False), ingress_alone(1000, False), 10_000, 1.3
    ),
    Scaling(
        "ingress with write, 1,000 flows tracked or not", ingress_alone(1000, False), ingress_alone(1000), 10_000, 1.3
    ),
    Scaling("egress with send, 100,000 flows against 1", egress_sent(1), egress_sent(2, 50_000), 4_000, 1.3),
    Scaling("egress with send, tracking on against off", egress_sent(1000, 1, False), egress_sent(1000), 4_000, 1.07),
    Scaling("egress with send, policy on against off", egress_sent(1000), egress_sent(1000, rules=100), 4_000, 1.07),
    Scaling("flow of a packet, 10,000 rules against none", track(1000), track(1000, 10_000), 50_000, 1.3),
    Scaling("first packet of a flow, 100 rules against none", begin(None), begin(100), 20_000, None),
    Scaling("first packet of a flow, 10,000 rules against none", begin(None), begin(10_000), 20_000, None),
    Scaling("flow of a packet, 100,000 flows", track(1000), track(100_000), 200_000, None),
    Scaling("egress, user code alone", egress(1), egress(1000), 20_000, None),
)


def references() -> dict[str, tuple[Loop, int]]:
    """The two loops that figures are divided by, with the number of iterations of one turn."""
    source, target = os.urandom(65536), bytearray(65536)
    words = array("I", range(1024))
    return {"core": (lambda n: hot.work(words, n), 50_000), "memory": (lambda n: hot.copy(source, target, n), 200)}


def seconds(loop: Loop, n: int) -> float:
    """Time of one iteration in one turn."""
    start = time.perf_counter()
    loop(n)
    return (time.perf_counter() - start) / n


@dataclass(frozen=True)
class Measured:
    """Seconds per iteration of both loops, the fastest turn of each."""

    own: float
    reference: float

    @property
    def ratio(self) -> float:
        return self.own / self.reference


def alternate(own: Loop, n: int, reference: Loop, m: int, limit: float | None) -> Measured:
    """The two loops in turn, TURNS times; more often while the ratio is above the limit."""
    best = [float("inf"), float("inf")]
    for turn in range(MORE_TURNS):
        best = [min(best[0], seconds(own, n)), min(best[1], seconds(reference, m))]
        if turn + 1 >= TURNS and (limit is None or best[0] / best[1] <= limit):
            break
    return Measured(*best)


def measure_case(case: Case) -> Measured:
    """A case against its reference."""
    reference, m = references()[case.reference]
    return alternate(case.make(), case.n, reference, m, case.limit)


def measure_scaling(scaling: Scaling) -> Measured:
    """The large table against the small one."""
    return alternate(scaling.large(), scaling.n, scaling.small(), scaling.n, scaling.limit)
