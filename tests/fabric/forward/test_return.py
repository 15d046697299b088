"""Replies leave by the port by which their flow entered: what the host's kernel translated comes back to it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
    fragment6,
)
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from fabric.forward.flows import FlowTable
from tests.fabric.forward.harness import Fabric, HarnessPort, Node, address4, address6
from tests.fabric.forward.packets import inner, superframe, wire_packets
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import superframe_header

CLIENT, LOCAL, REMOTE = (1, 10), (1, 11), (2, 10)
FAMILIES = pytest.mark.parametrize("family", [4, 6])
BACKENDS = pytest.mark.parametrize("backend", [LOCAL, REMOTE], ids=["local", "remote"])


@dataclass
class Service:
    """Node 1 with a client and a backend, node 2 with a backend; node 1's host has translated the client's packet."""

    node: Node
    client: HarnessPort
    ports: dict[tuple[int, int], HarnessPort]

    def arrives(self, port: HarnessPort) -> bytes:
        """The packet that this port got; nobody else got one."""
        _, packet = port.take()
        assert [other.name for other in (self.node.host, *self.ports.values()) if other.take_all()] == []
        return packet

    def reply(self, backend: tuple[int, int], packet: bytes) -> HarnessPort:
        """Let a backend send this; the port of node 1 that got it, alone."""
        self.ports[backend].peer.inject(packet)
        while True:
            for port in (self.node.host, self.client):
                if port.peer.take(0.01) is not None:
                    assert self.node.host.take_all() == self.client.take_all() == []
                    return port


def build(fabric: Fabric, flows: FlowTable | None) -> Service:
    one, two = fabric.add_node(1, flows=flows), fabric.add_node(2)
    client, local, remote = one.add_pod(10), one.add_pod(11), two.add_pod(10)
    fabric.publish()
    return Service(one, client, {CLIENT: client, LOCAL: local, REMOTE: remote})


@pytest.fixture
def service(fabric: Fabric) -> Service:
    return build(fabric, FlowTable(1024))


def ip(family: int, source: tuple[int, int], destination: tuple[int, int]) -> Scapy:
    if family == 4:
        return IP(src=address4(*source), dst=address4(*destination))
    return IPv6(src=address6(*source), dst=address6(*destination))


def tcp(
    family: int, source: tuple[int, int], destination: tuple[int, int], ports: tuple[int, int], flags: str
) -> bytes:
    return bytes(ip(family, source, destination) / TCP(sport=ports[0], dport=ports[1], flags=flags))


def udp(family: int, source: tuple[int, int], destination: tuple[int, int], ports: tuple[int, int]) -> bytes:
    return bytes(ip(family, source, destination) / UDP(sport=ports[0], dport=ports[1]) / Raw(b"x" * 32))


@FAMILIES
@BACKENDS
def test_a_connection_through_the_host_comes_back_to_it(
    service: Service, backend: tuple[int, int], family: int
) -> None:
    steps = [("S", "SA"), ("A", "A"), ("PA", "PA"), ("FA", "FA"), ("A", "R")]
    for there, back in steps:
        service.node.host.peer.inject(tcp(family, CLIENT, backend, (4000, 80), there))
        service.arrives(service.ports[backend])
        assert service.reply(backend, tcp(family, backend, CLIENT, (80, 4000), back)) is service.node.host


@FAMILIES
@BACKENDS
def test_the_same_for_datagrams_and_pings(service: Service, backend: tuple[int, int], family: int) -> None:
    service.node.host.peer.inject(udp(family, CLIENT, backend, (4000, 53)))
    service.arrives(service.ports[backend])
    for _ in range(3):
        assert service.reply(backend, udp(family, backend, CLIENT, (53, 4000))) is service.node.host
    assert service.reply(backend, udp(family, backend, CLIENT, (53, 4001))) is service.client, "another flow"
    ask: Scapy = ICMP(type=8, id=9) if family == 4 else ICMPv6EchoRequest(id=9)
    answer: Scapy = ICMP(type=0, id=9) if family == 4 else ICMPv6EchoReply(id=9)
    service.node.host.peer.inject(bytes(ip(family, CLIENT, backend) / ask))
    service.arrives(service.ports[backend])
    assert service.reply(backend, bytes(ip(family, backend, CLIENT) / answer)) is service.node.host
    answer.id = 10
    assert service.reply(backend, bytes(ip(family, backend, CLIENT) / answer)) is service.client


@FAMILIES
@BACKENDS
def test_a_direct_connection_takes_no_detour(service: Service, backend: tuple[int, int], family: int) -> None:
    service.client.peer.inject(tcp(family, CLIENT, backend, (4000, 80), "S"))
    service.arrives(service.ports[backend])
    assert service.reply(backend, tcp(family, backend, CLIENT, (80, 4000), "SA")) is service.client


@BACKENDS
def test_the_last_port_counts(service: Service, backend: tuple[int, int]) -> None:
    """The same ends, first through the host and then directly: replies follow."""
    for port, wanted in ((service.node.host, service.node.host), (service.client, service.client)) * 2:
        port.peer.inject(udp(4, CLIENT, backend, (4000, 53)))
        service.arrives(service.ports[backend])
        assert service.reply(backend, udp(4, backend, CLIENT, (53, 4000))) is wanted


def test_what_the_host_gives_back_goes_on(service: Service) -> None:
    """A reply that the host did not translate, and one that it did: both come from the node port, to the pod."""
    service.node.host.peer.inject(tcp(4, CLIENT, LOCAL, (4000, 80), "S"))
    service.arrives(service.ports[LOCAL])
    reply = tcp(4, LOCAL, CLIENT, (80, 4000), "SA")
    assert service.reply(LOCAL, reply) is service.node.host
    service.node.host.peer.inject(reply)
    assert service.arrives(service.client) == reply
    translated = bytes(IP(src="10.96.0.1", dst=address4(*CLIENT)) / TCP(sport=80, dport=4000, flags="SA"))
    service.node.host.peer.inject(translated)
    assert service.arrives(service.client) == translated


def test_replies_to_a_masqueraded_packet_go_to_the_node(service: Service) -> None:
    """Hairpin and node ports: the host speaks with its own overlay address."""
    for pod in (CLIENT, LOCAL, REMOTE):
        service.node.host.peer.inject(tcp(4, (1, 0), pod, (50_000, 80), "S"))
        service.arrives(service.ports[pod])
        assert service.reply(pod, tcp(4, pod, (1, 0), (80, 50_000), "SA")) is service.node.host


@FAMILIES
@BACKENDS
def test_fragments_follow_the_first_one(service: Service, backend: tuple[int, int], family: int) -> None:
    service.node.host.peer.inject(udp(family, CLIENT, backend, (4000, 53)))
    service.arrives(service.ports[backend])
    for port, wanted in ((4000, service.node.host), (4001, service.client)):
        head = ip(family, backend, CLIENT)
        body = UDP(sport=53, dport=port) / Raw(bytes(3000))
        if family == 4:
            head.id = port
            pieces = fragment(head / body, 1400)
        else:
            pieces = fragment6(head / IPv6ExtHdrFragment(id=port) / body, 1400)
        assert len(pieces) == 3
        for piece in pieces:
            assert service.reply(backend, bytes(piece)) is wanted
    assert service.node.count("flow_fragments_unmatched") == 0


def test_a_later_fragment_alone_follows_the_route(service: Service) -> None:
    piece = bytes(IP(src=address4(*LOCAL), dst=address4(*CLIENT), proto=17, frag=100, id=5) / Raw(bytes(64)))
    assert service.reply(LOCAL, piece) is service.client
    assert service.node.count("flow_fragments_unmatched") == 1


@FAMILIES
@BACKENDS
def test_an_error_follows_the_flow_that_it_quotes(service: Service, backend: tuple[int, int], family: int) -> None:
    ask = udp(family, CLIENT, backend, (4000, 53))
    service.node.host.peer.inject(ask)
    service.arrives(service.ports[backend])
    other = udp(family, CLIENT, backend, (4001, 53))
    errors = (
        [ICMP(type=3, code=3), ICMP(type=3, code=4), ICMP(type=11)]
        if family == 4
        else [ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1280)]
    )
    for error in errors:
        for quoted, wanted in ((ask, service.node.host), (other, service.client), (ask[:20], service.client)):
            packet = bytes(ip(family, backend, CLIENT) / error / Raw(quoted))
            assert service.reply(backend, packet) is wanted


@BACKENDS
def test_an_error_for_somebody_else_follows_its_route(service: Service, backend: tuple[int, int]) -> None:
    """Only the sender of the quoted packet can be told about it by the host."""
    service.node.host.peer.inject(udp(4, (1, 0), backend, (4000, 53)))
    service.arrives(service.ports[backend])
    quoted = udp(4, (1, 0), backend, (4000, 53))
    packet = bytes(ip(4, backend, CLIENT) / ICMP(type=3, code=3) / Raw(quoted))
    assert service.reply(backend, packet) is service.client


@FAMILIES
@BACKENDS
def test_superframes_come_back_whole(service: Service, backend: tuple[int, int], family: int) -> None:
    packet = superframe(family, TCP_NUMBER, 20_000, backend, CLIENT, sport=80, dport=4000)
    service.node.host.peer.inject(tcp(family, CLIENT, backend, (packet.dport, packet.sport), "S"))
    service.arrives(service.ports[backend])
    raw = packet.build()
    service.ports[backend].peer.inject(raw, superframe_header(packet, 1300))
    frames = [service.node.host.take()]
    while sum(len(inner(cut)[TCP].payload) for cut in wire_packets(frames)) < 20_000:
        frames.append(service.node.host.take())
    assert len(frames) < 5
    assert service.client.take_all() == []


def test_without_tracking_replies_go_straight_to_the_pod(fabric: Fabric) -> None:
    service = build(fabric, None)
    service.node.host.peer.inject(udp(4, CLIENT, LOCAL, (4000, 53)))
    service.arrives(service.ports[LOCAL])
    assert service.reply(LOCAL, udp(4, LOCAL, CLIENT, (53, 4000))) is service.client


def test_flows_without_room_follow_the_routes(fabric: Fabric) -> None:
    """The pod's quota is used up by an established connection: the next one is not tracked, and nothing is lost."""
    table = FlowTable(8, 1)
    service = build(fabric, table)
    for port, wanted in ((4000, service.node.host), (4001, service.client)):
        service.node.host.peer.inject(tcp(4, CLIENT, LOCAL, (port, 80), "S"))
        service.arrives(service.ports[LOCAL])
        assert service.reply(LOCAL, tcp(4, LOCAL, CLIENT, (80, port), "SA")) is wanted
        service.node.host.peer.inject(tcp(4, CLIENT, LOCAL, (port, 80), "A"))
        service.arrives(service.ports[LOCAL])
    assert table.counters()["flow_refused_quota"] > 0
    assert service.node.drops() == {}


def test_flows_outlive_snapshots_and_a_neighbour_that_leaves(service: Service) -> None:
    """Positions of ports change, accounts do not."""
    extra = service.node.add_pod(12)
    service.node.publish()
    service.node.host.peer.inject(udp(4, CLIENT, LOCAL, (4000, 53)))
    service.arrives(service.ports[LOCAL])
    service.node.remove_pod(service.client)
    service.node.ports.append(service.client)
    service.node.remove_pod(extra)
    service.node.publish()
    extra.close()
    assert service.reply(LOCAL, udp(4, LOCAL, CLIENT, (53, 4000))) is service.node.host
