"""The bridge port: the host's pods that have no port of their own, all of them behind one device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.fabric.forward.harness import Fabric, HarnessPort, Node, address4, address6
from tests.fabric.forward.packets import superframe, udp4, udp6
from tests.tun.packets import TCP, superframe_header

FAMILIES = pytest.mark.parametrize("family", [4, 6])
OUTSIDE = {4: "192.0.2.77", 6: "2001:db8:ffff::77"}


@dataclass
class Bench:
    """Node 1 with a bridge port and a pod port (.10); node 2 with a pod port (.10)."""

    one: Node
    two: Node
    bridges: HarnessPort
    pod: HarnessPort
    far: HarnessPort

    def got(self, port: HarnessPort) -> bytes:
        """What this port was given; the others were given nothing."""
        frame = port.take()
        others = (self.one.host, self.two.host, self.bridges, self.pod, self.far)
        assert [other.name for other in others if other.take_all()] == []
        return frame[1]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Fabric() as fabric:
        one, two = fabric.add_node(1), fabric.add_node(2)
        bridges = HarnessPort("bridges")
        bridges.bridged = True
        one.ports.append(bridges)
        pod, far = one.add_pod(10), two.add_pod(10)
        fabric.publish()
        yield Bench(one, two, bridges, pod, far)


def inner(source: str, target: str, *, reply: bool = False) -> bytes:
    ports = {"sport": 5000, "dport": 4000} if reply else {}
    return (udp6 if ":" in source else udp4)(source, target, **ports)


def at(node: int, host: int, family: int) -> str:
    return address4(node, host) if family == 4 else address6(node, host)


@FAMILIES
def test_between_two_of_its_pods_a_packet_comes_back_as_it_was(bench: Bench, family: int) -> None:
    """The host has lowered the TTL on the way here, and does it again."""
    packet = inner(at(1, 20, family), at(1, 21, family))
    bench.bridges.peer.inject(packet)
    assert bench.got(bench.bridges) == packet


@FAMILIES
def test_to_the_other_ports_and_peers_and_back(bench: Bench, family: int) -> None:
    for target, port in ((at(1, 10, family), bench.pod), (at(2, 10, family), bench.far)):
        there, back = inner(at(1, 20, family), target), inner(target, at(1, 20, family), reply=True)
        bench.bridges.peer.inject(there)
        assert bench.got(port)[-20:] == there[-20:]
        port.peer.inject(back)
        assert bench.got(bench.bridges)[-20:] == back[-20:]


@FAMILIES
def test_what_is_outside_is_the_hosts(bench: Bench, family: int) -> None:
    packet = inner(at(1, 20, family), OUTSIDE[family])
    bench.bridges.peer.inject(packet)
    assert bench.got(bench.one.host) == packet


@FAMILIES
def test_what_the_host_has_translated_goes_back_to_it(bench: Bench, family: int) -> None:
    """From the node port to a pod in a bridge, and the answer by the node port again."""
    there, back = inner(at(1, 20, family), at(1, 21, family)), inner(at(1, 21, family), at(1, 20, family), reply=True)
    bench.one.host.peer.inject(there)
    assert bench.got(bench.bridges) == there
    bench.bridges.peer.inject(back)
    assert bench.got(bench.one.host) == back


@FAMILIES
@pytest.mark.parametrize("host", [0, 10], ids=["the node's", "a pod port's"])
def test_only_addresses_that_lead_back_to_it_may_send(bench: Bench, family: int, host: int) -> None:
    bench.bridges.peer.inject(inner(at(1, host, family), at(2, 10, family)))
    bench.one.wait_drop("source_spoofed")


@FAMILIES
@pytest.mark.parametrize("source", [(2, 10), None], ids=["a peer's", "outside"])
def test_nor_addresses_of_elsewhere(bench: Bench, family: int, source: tuple[int, int] | None) -> None:
    address = at(*source, family) if source else OUTSIDE[family]
    bench.bridges.peer.inject(inner(address, at(1, 10, family)))
    bench.one.wait_drop("source_spoofed")


@FAMILIES
def test_the_nodes_own_address_is_behind_the_node_port(bench: Bench, family: int) -> None:
    packet = inner(at(2, 10, family), at(1, 0, family))
    bench.far.peer.inject(packet)
    assert bench.got(bench.one.host)[-20:] == packet[-20:]


def test_superframes_come_back_whole(bench: Bench) -> None:
    packet = superframe(4, TCP, 40_000, (1, 20), (1, 21))
    header = superframe_header(packet, 1400)
    bench.bridges.peer.inject(packet.build(), header)
    assert bench.bridges.take() == (header, packet.build())
