"""Frames that no node sent: nothing reaches a pod, every one is counted under its reason, traffic goes on.

A stranger on the underlay can send from any address. What only the clear-text protocol cannot tell from a peer is the
perfect imitation, which the first test shows: it proves that the forgeries below fail for the reason they name.
"""

from __future__ import annotations

import random
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from fabric.lab import Lab, Pod, measure
from fabric.lab.plan import Mode
from tests.scenarios import fabric_view
from tests.scenarios.outsider import ADDRESS, ADDRESS6, MARK, Forgery, Sniffers, datagram, forge, ipv4, ipv6, outsider
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

COPIES = 400
WINDOW = 400
JUNK_PER_SECOND = 20_000
KEPT_THROUGHPUT = 0.5


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=3, pods=2, pod_kind="mixed", ipv6=True) as made:
        yield made


@pytest.fixture(scope="module")
def stranger(lab: Lab) -> Iterator[socket.socket]:
    with outsider() as sock:
        yield sock


@pytest.fixture
def sniffers(lab: Lab) -> Iterator[Sniffers]:
    places = [(pod.netns, "eth0") for pod in lab.pods] + [(node.netns, "flannel.1") for node in lab.nodes]
    made = Sniffers(places)
    yield made
    made.close()


def received(lab: Lab) -> int:
    return fabric_view.counters(lab, "node1")["receive_datagrams"]


def send_all(lab: Lab, stranger: socket.socket, frames: Sequence[bytes]) -> None:
    """All frames to node1, in windows that its socket buffer holds, until each was looked at."""
    done = received(lab)
    for start in range(0, len(frames), WINDOW):
        window = frames[start : start + WINDOW]
        for frame in window:
            stranger.send(frame)
        done += len(window)
        wait_for(lambda done=done: received(lab) >= done, "the daemon to receive all frames")  # type: ignore[misc]
    assert received(lab) == done


def bridged(lab: Lab) -> tuple[Pod, Pod]:
    """node2's pod that is imitated and node1's pod that is attacked."""
    return lab.pod("node2-pod1"), lab.pod("node1-pod1")


@pytest.mark.parametrize("target", ["node1-pod1", "node1-pod2"])
@pytest.mark.parametrize("family", [4, 6])
def test_only_a_perfect_imitation_arrives(
    lab: Lab, stranger: socket.socket, sniffers: Sniffers, target: str, family: int
) -> None:
    source, victim = measure.address(lab.pod("node2-pod1"), family), measure.address(lab.pod(target), family)
    stranger.send(forge(lab, "node2", "node1", datagram(source, victim)).frame())
    seen: list[str] = []

    def arrived() -> bool:
        seen.extend(netns for netns, _ in sniffers.seen())
        return lab.pod(target).netns in seen

    wait_for(arrived, "the imitation to arrive")
    sniffers.seen()


def forgeries4(lab: Lab) -> Iterator[tuple[str, list[Forgery]]]:
    """(reason, frames that must be counted under it), IPv4 inside and outside."""
    source, victim = (pod.ips[0] for pod in bridged(lab))
    good = forge(lab, "node2", "node1", datagram(source, victim))
    third = forge(lab, "node3", "node1", datagram(source, victim))
    yield "unknown_vtep", [good.but(outer_source=ADDRESS), good.but(outer_source="198.51.100.1")]
    yield "unknown_vtep", [good.but(outer_source=lab.node("node1").underlay_ip.replace(".11", ".1"))]
    yield "vxlan_vni", [good.but(vni=vni) for vni in (0, 2, 0x010000, 0xFFFFFF)]
    yield "vxlan_reserved", [good.but(reserved=1 << bit) for bit in range(32)]
    yield "vxlan_reserved", [good.but(flags=flags) for flags in (0x09, 0x0C, 0x88, 0xFF)]
    yield "vxlan_flags", [good.but(flags=flags) for flags in (0, 0x04, 0xF7)]
    yield "vxlan_short", [good.but(raw=good.payload()[:size]) for size in (1, 7, 8, 21)]
    yield "inner_short", [good.but(raw=good.payload()[:size]) for size in (22, 23, 41)]
    macs = (b"\xff" * 6, bytes(6), b"\x02abcde", good.inner_source_mac)
    yield "inner_mac", [good.but(inner_target_mac=value) for value in macs]
    yield "inner_mac", [good.but(inner_source_mac=value) for value in (bytes(6), good.inner_target_mac)]
    yield "inner_mac", [third.but(inner_source_mac=good.inner_source_mac)]
    yield "inner_ethertype", [good.but(ethertype=kind) for kind in (0x0806, 0x8100, 0x88CC, 0x0600)]
    sources = [victim, lab.pod("node3-pod1").ip, lab.pod("node1-pod2").ip, "198.51.100.7", "127.0.0.1", "0.0.0.0"]
    sources += ["224.0.0.1", "255.255.255.255", "192.0.2.12", "10.244.77.1", "169.254.1.1", "10.244.1.0"]
    yield "source_not_leased", [good.but(inner=datagram(other, victim)) for other in sources]
    yield "source_not_leased", [third]
    targets = [lab.pod("node3-pod1").ip, "198.51.100.7", "127.0.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.11"]
    targets += ["10.244.77.1", "169.254.169.254", "0.0.0.0", source]
    yield "destination_not_local", [good.but(inner=datagram(source, other)) for other in targets]
    yield "ecn_ce_not_ect", [good.but(outer_tos=3)]
    yield from malformed4(good, source, victim)


def malformed4(good: Forgery, source: str, victim: str) -> Iterator[tuple[str, list[Forgery]]]:
    """Inner IPv4 packets that no host sends."""
    packet = good.inner
    yield "inner_version", [good.but(inner=bytes([v << 4 | 5]) + packet[1:], ethertype=0x0800) for v in (0, 5, 7, 15)]
    yield "inner_header", [good.but(inner=bytes([0x40 | words]) + packet[1:]) for words in (0, 4, 15)]
    yield "inner_length", [good.but(inner=packet[:2] + struct.pack("!H", n) + packet[4:]) for n in (999, 65_535)]
    yield "inner_checksum", [good.but(inner=packet[:8] + bytes([ttl]) + packet[9:]) for ttl in (1, 63, 255)]

    def with_body(body: bytes, protocol: int = 17, word: int = 0) -> Forgery:
        return good.but(inner=ipv4(source, victim, body, protocol, word=word))

    yield "inner_transport", [with_body(MARK[:7]), with_body(struct.pack("!HHHH", 1, 2, 7, 0) + MARK)]
    yield "inner_transport", [with_body(struct.pack("!HHHH", 1, 2, 900, 0) + MARK), with_body(MARK, 6)]
    yield "inner_transport", [with_body(bytes(12) + bytes([words << 4]) + bytes(7) + MARK, 6) for words in (0, 4, 15)]
    yield "inner_fragment", [with_body(bytes(4), 6, 0x2000), with_body(bytes(8) + MARK, 6, 1), with_body(b"", 17, 5)]
    yield "inner_fragment", [with_body(bytes(16), 17, 0x1FFF), with_body(bytes(9), 17, 0x2000 | 3)]


def forgeries6(lab: Lab) -> Iterator[tuple[str, list[Forgery]]]:
    """The same for IPv6 inside and outside."""
    source, victim = (pod.ips[1] for pod in bridged(lab))
    good = forge(lab, "node2", "node1", datagram(source, victim))
    yield "unknown_vtep", [good.but(outer_source=address) for address in (ADDRESS6, "2001:db8:ffff::1")]
    yield "vxlan_vni", [good.but(vni=7)]
    yield "inner_mac", [good.but(inner_target_mac=b"\x33\x33\0\0\0\1")]
    sources = [victim, lab.pod("node3-pod1").ips[1], "::", "::1", "fe80::1", "ff02::1", "2001:db8:ffff::1"]
    sources += ["::ffff:10.244.2.2", "64:ff9b::10.244.2.2"]
    yield "source_not_leased", [good.but(inner=datagram(other, victim)) for other in sources]
    targets = (lab.pod("node3-pod1").ips[1], "::", "::1", "fe80::1", "ff02::1", "2001:db8:0:1::11", source)
    yield "destination_not_local", [good.but(inner=datagram(source, other)) for other in targets]

    def with_body(body: bytes, protocol: int) -> Forgery:
        return good.but(inner=ipv6(source, victim, body, protocol))

    routing = bytes([17, 2, 0, 1]) + bytes(20)
    yield "inner_extension", [with_body(routing + MARK, 43), with_body(bytes([0, 0]) + bytes(6) + bytes(8) + MARK, 0)]
    yield "inner_extension", [with_body(bytes([17, 40]) + bytes(6) + MARK, 60), with_body(bytes(3), 0)]
    yield "inner_fragment", [with_body(bytes([17, 0, 0xFF, 0xF8]) + bytes(4) + bytes(16), 44)]
    yield "inner_length", [good.but(inner=good.inner[:4] + struct.pack("!H", 500) + good.inner[6:])]
    yield "inner_transport", [with_body(MARK[:5], 17), with_body(MARK[:7], 58)]
    # IPv4 pods are behind the peer's other VTEP.
    source4, victim4 = (pod.ips[0] for pod in bridged(lab))
    mixed = datagram(source4, victim4)
    yield "source_not_leased", [good.but(inner=mixed)]


@pytest.mark.parametrize("mode", ["wire", "veth"])
@pytest.mark.parametrize("forgeries", [forgeries4, forgeries6])
def test_every_forgery_is_dropped_under_its_reason(
    lab: Lab,
    stranger: socket.socket,
    sniffers: Sniffers,
    mode: Mode,
    forgeries: Callable[[Lab], Iterator[tuple[str, list[Forgery]]]],
) -> None:
    """In wire mode GRO joins equal frames into one message: the datagrams in it count one by one."""
    lab.set_mode(mode)
    before = fabric_view.counters(lab, "node1")
    expected: dict[str, int] = {}
    for reason, forged in forgeries(lab):
        frames = [forgery.frame() for forgery in forged for _ in range(COPIES)]
        with fabric_view.counting_drops(lab, "node1") as found:
            send_all(lab, stranger, frames)
        assert found == {reason: len(frames)}, f"{reason}: {[forgery.payload().hex() for forgery in forged]}"
        expected[reason] = expected.get(reason, 0) + len(frames)
    after = fabric_view.counters(lab, "node1")
    grown = fabric_view.more(before, after)
    assert grown["receive_datagrams"] == sum(expected.values()) > 10_000
    assert "ingress_packets" not in grown, "nothing was handed to a port"
    assert "receive_overflows" not in grown
    assert "ingress_icmp_sent" not in grown, "nobody is answered"
    assert sniffers.seen() == []
    assert lab.dead_daemons() == []


def mutations(frame: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies with one to four bytes changed behind the UDP header, or cut short, as a fuzzer would."""
    rng = random.Random(seed)
    start = 14 + 20 + 8
    for _ in range(count):
        body = bytearray(frame[start:])
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.choice((0, 1, 0xFF, 0x80, rng.randrange(256)))
        if rng.random() < 0.2:
            del body[rng.randrange(len(body)) :]
        head = bytearray(frame[:start])
        struct.pack_into("!H", head, 16, 28 + len(body))
        struct.pack_into("!HHI", head, 22, 64 << 8 | 17, 0, int.from_bytes(head[26:30]))
        struct.pack_into("!HH", head, 38, 8 + len(body), 0)
        total = sum(struct.unpack("!10H", head[14:34]))
        total = (total & 0xFFFF) + (total >> 16)
        struct.pack_into("!H", head, 24, ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF)
        yield bytes(head + body)


def test_mutated_frames_are_delivered_or_counted(lab: Lab, stranger: socket.socket) -> None:
    """Each of them is one or the other, exactly once, and the daemon lives."""
    source, victim = (pod.ip for pod in bridged(lab))
    inners = [datagram(source, victim), ipv4(source, victim, bytes(4) + bytes(8) + b"\x50\x10" + bytes(6) + MARK, 6)]
    inners.append(ipv4(source, victim, bytes([8, 0, 0, 0]) + MARK, 1))
    before = fabric_view.counters(lab, "node1")
    sent = 0
    for seed, inner in enumerate(inners):
        frames = list(mutations(forge(lab, "node2", "node1", inner).frame(), 8000, seed))
        send_all(lab, stranger, frames)
        sent += len(frames)
    grown = fabric_view.more(before, fabric_view.counters(lab, "node1"))
    refused = sum(value for name, value in grown.items() if name.startswith("drop_"))
    # Every accepted packet counts in `ingress_packets`; what a pod answers is egress and may be dropped there.
    answers = grown.get("drop_no_route", 0) + grown.get("drop_not_unicast", 0)
    assert grown["receive_datagrams"] == sent
    assert grown["ingress_packets"] + refused - answers == sent
    assert lab.dead_daemons() == []
    assert all(pair.ok for pair in measure.wait_reachable(lab))


@contextmanager
def flooding(stranger: socket.socket, frames: Sequence[bytes], per_second: int) -> Iterator[list[int]]:
    """The frames again and again for the length of the block; the list holds how many were sent."""
    sent = [0]
    ended = threading.Event()

    def flood() -> None:
        start = time.monotonic()
        while not ended.is_set():
            due = int((time.monotonic() - start) * per_second)
            for _ in range(min(due - sent[0], 100)):
                stranger.send(frames[sent[0] % len(frames)])
                sent[0] += 1
            ended.wait(0.001)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield sent
    finally:
        ended.set()
        thread.join()


@pytest.mark.alone
def test_traffic_goes_on_under_a_flood_of_junk(lab: Lab, stranger: socket.socket, sniffers: Sniffers) -> None:
    source, target = lab.pod("node2-pod1"), lab.pod("node1-pod1")
    good = forge(lab, "node2", "node1", datagram(source.ip, target.ip))
    junk = [good.but(outer_source=ADDRESS), good.but(vni=9), good.but(inner=datagram("198.51.100.7", target.ip))]
    reasons = ("unknown_vtep", "vxlan_vni", "source_not_leased")
    ratios = []
    sent = 0
    with fabric_view.counting_drops(lab, "node1") as found:
        for _ in range(3):
            quiet = measure.tcp(lab, source, target, seconds=0.5).gbps
            with flooding(stranger, [forgery.frame() for forgery in junk], JUNK_PER_SECOND) as count:
                loud = measure.tcp(lab, source, target, seconds=0.5).gbps
            sent += count[0]
            ratios.append(loud / quiet)
    assert statistics.median(ratios) > KEPT_THROUGHPUT, ratios
    assert set(found) <= {*reasons, "port_queue_full"}
    counted = sum(found.get(reason, 0) for reason in reasons)
    overflows = fabric_view.counters(lab, "node1")["receive_overflows"]
    assert counted <= sent <= counted + overflows, "what the socket buffer had no room for is counted as well"
    assert sniffers.seen() == []
    print(f"\nthroughput kept under {JUNK_PER_SECOND} junk frames/s: {[round(ratio, 2) for ratio in ratios]}")
