"""Other underlays than plain IPv4 loopback: IPv6, a smaller MTU than we were told, no route, a firewall."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from functools import partial

import pytest

from tests.fabric.forward.harness import PLAIN, Fabric, Node, RawPeer, address4, wait_for
from tests.fabric.forward.packets import make, superframe, udp4, wire_packets
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import UDP as UDP_NUMBER
from tests.tun.packets import naive_split, superframe_header
from tun.netns import run_in_netns
from tun.port import Frame

pytestmark = pytest.mark.root


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def local_routes(netns: str) -> int:
    """The kernel makes the routes to our addresses a moment after the addresses, by a work queue."""
    words = ("ip", "-n", netns, "-6", "route", "show", "table", "local")
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.count("local 2001:db8:ff::")


@pytest.fixture
def netns() -> Iterator[str]:
    """A namespace whose loopback also has the addresses 2001:db8:ff::1 to ::4."""
    name = f"fabtest-{uuid.uuid4().hex[:8]}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        for host in range(1, 5):
            ip("-n", name, "addr", "add", f"2001:db8:ff::{host}/128", "dev", "lo", "nodad")
        wait_for(lambda: local_routes(name) == 4)
        yield name
    finally:
        ip("netns", "del", name)


class Inside(Fabric):
    """A fabric whose sockets live in a namespace."""

    def __init__(self, netns: str, base: str) -> None:
        super().__init__(base)
        self.path = f"/run/netns/{netns}"

    def add_node(self, number: int, **options: object) -> Node:
        return run_in_netns(self.path, partial(super().add_node, number, **options))

    def add_raw_peer(self, number: int, encapsulation: str = "vxlan") -> RawPeer:
        return run_in_netns(self.path, partial(super().add_raw_peer, number, encapsulation))


@pytest.fixture
def six(netns: str) -> Iterator[Inside]:
    with Inside(netns, "2001:db8:ff::") as made:
        yield made


def collect(node: Node, count: int) -> list[bytes]:
    frames: list[Frame] = []
    while len(wire_packets(frames)) < count:
        frames.append(node.host.take())
    return wire_packets(frames)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", [TCP_NUMBER, UDP_NUMBER])
def test_superframes_over_ipv6(six: Inside, family: int, protocol: int) -> None:
    a, b = six.add_node(1), six.add_node(2)
    six.publish(mtu=1430)
    packet = superframe(family, protocol, 27000, (1, 5), (2, 6))
    a.host.peer.inject(packet.build(), superframe_header(packet, 1350))
    assert collect(b, 20) == naive_split(packet, 1350)
    assert a.count("send_messages") < 20
    assert a.drops() == b.drops() == {}


@pytest.mark.parametrize("family", [4, 6])
def test_ecn_both_ways_over_ipv6(six: Inside, family: int) -> None:
    a, raw = six.add_node(1), six.add_raw_peer(3)
    six.publish()
    for ecn in range(4):
        packet = superframe(family, UDP_NUMBER, 100, (1, 5), (3, 6), tos=0xB8 | ecn, check="full").build()
        a.host.peer.inject(packet)
        payload, _, tos = raw.receive_from()
        assert (payload[22:], tos) == (packet, ecn)
    back = superframe(family, UDP_NUMBER, 100, (3, 6), (1, 5), tos=2, check="full")
    raw.send_inner(a, back.build(), tos=3)
    marked = superframe(family, UDP_NUMBER, 100, (3, 6), (1, 5), tos=3, check="full")
    assert a.host.take() == (PLAIN, marked.build())


def test_unknown_ipv6_sender_is_refused(six: Inside) -> None:
    a, raw = six.add_node(1), six.add_raw_peer(3)
    six.publish()
    del a.peers["peer3"]
    a.publish()
    raw.send_inner(a, make(4, (3, 5), (1, 6)))
    a.wait_drop("unknown_vtep")


def test_flows_spread_over_ipv6_source_ports(six: Inside) -> None:
    a, raw = six.add_node(1), six.add_raw_peer(3)
    six.publish()
    ports = set()
    for sport in range(100):
        a.host.peer.inject(udp4(address4(1, 5), address4(3, 6), sport=2000 + sport))
        ports.add(raw.receive_from()[1][1])
    assert len(ports) == 8


def test_pod_may_not_speak_to_an_ipv6_tunnel_port(six: Inside) -> None:
    a = six.add_node(1)
    six.add_raw_peer(3)
    pod = a.add_pod(10)
    six.publish()
    for to in ("2001:db8:ff::1", "2001:db8:ff::3"):
        packet = superframe(6, UDP_NUMBER, 30, (1, 10), (3, 6), destination=to, dport=a.port, check="full")
        pod.peer.inject(packet.build())
    a.wait_drop("pod_to_vtep", 2)


@pytest.mark.parametrize("ecn", range(4))
def test_train_that_the_path_does_not_take_goes_datagram_by_datagram(netns: str, ecn: int) -> None:
    """The underlay's MTU is smaller than we think: the kernel refuses UDP_SEGMENT but fragments single sends."""
    with Inside(netns, "127.0.0.") as fabric:
        a, raw = fabric.add_node(1), fabric.add_raw_peer(3)
        fabric.publish()
        ip("-n", netns, "link", "set", "lo", "mtu", "1300")
        packet = superframe(4, TCP_NUMBER, 27400, (1, 5), (3, 6), tos=ecn)
        a.host.peer.inject(packet.build(), superframe_header(packet, 1370))
        seen = [raw.receive_from() for _ in range(20)]
        assert [data[22:] for data, _, _ in seen] == naive_split(packet, 1370)
        assert {tos for _, _, tos in seen} == {ecn}, "a datagram sent alone keeps its congestion mark"
        wait_for(lambda: a.count("send_datagrams") == 20)  # counted after the send, which we may be faster to see
        assert a.count("send_resent") > 0
        assert a.drops() == {}
        big = superframe(4, TCP_NUMBER, 13700, (1, 5), (3, 6), tos=ecn)
        ip("-n", netns, "link", "set", "lo", "mtu", "65536")
        a.host.peer.inject(big.build(), superframe_header(big, 1370))
        assert [raw.receive()[22:] for _ in range(10)] == naive_split(big, 1370)


def test_underlay_without_a_route_is_counted(netns: str) -> None:
    with Inside(netns, "127.0.0.") as fabric:
        a = fabric.add_node(1)
        fabric.add_raw_peer(3)
        fabric.publish()
        ip("-n", netns, "route", "add", "unreachable", "127.0.0.3/32", "table", "local")
        a.host.peer.inject(udp4(address4(1, 5), address4(3, 6)))
        a.wait_drop("send_unreachable")
        packet = superframe(4, TCP_NUMBER, 13700, (1, 5), (3, 6))
        a.host.peer.inject(packet.build(), superframe_header(packet, 1370))
        a.wait_drop("send_unreachable", 11)


def test_local_firewall_is_counted(netns: str) -> None:
    chain = "add chain inet fab out { type filter hook output priority 0; policy drop; }"
    with Inside(netns, "127.0.0.") as fabric:
        a = fabric.add_node(1)
        fabric.add_raw_peer(3)
        fabric.publish()
        subprocess.run(["ip", "netns", "exec", netns, "nft", f"add table inet fab; {chain}"], check=True)
        a.host.peer.inject(udp4(address4(1, 5), address4(3, 6)))
        a.wait_drop("send_refused")
