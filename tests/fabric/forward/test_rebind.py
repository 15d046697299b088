"""Going over to other underlay addresses while traffic runs, on real TUN devices, with one and with two workers."""

from __future__ import annotations

import os
from contextlib import ExitStack
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from fabric.errors import DataplaneError
from fabric.model import ForwardingState, LocalVtep
from tests.fabric.forward.harness import VNI, address4, make_peer, node_mac, prefixes_of
from tests.fabric.forward.packets import udp4
from tests.fabric.forward.test_dataplane import Make, PlaneNode, collect, tap_into
from tests.fabric.forward.test_dataplane import make_node as make_node
from tests.fabric.forward.test_dataplane import namespace as namespace
from tests.tun.conftest import Namespace

pytestmark = pytest.mark.root


def state(node: PlaneNode, own: str, other: int, other_ip: str) -> ForwardingState:
    """`node`'s state with its own underlay address and its peer's."""
    vtep = LocalVtep(ip_address(own), node_mac(node.number), prefixes_of(node.number))  # type: ignore[arg-type]
    return ForwardingState(VNI, (vtep,), (make_peer(other, ip_address(other_ip), "vxlan", 1450),))


@pytest.fixture(params=[1, 2])
def pair(request: pytest.FixtureRequest, make_node: Make) -> tuple[PlaneNode, PlaneNode]:
    a, b = make_node(1, workers=request.param), make_node(2, workers=request.param)
    a.start(2)
    b.start(1)
    return a, b


def exchange(namespace: Namespace, first: int, count: int = 16) -> None:
    """Packets from pods of node 1 to pods of node 2, every one of which has to arrive."""
    with ExitStack() as stack:
        near, far = tap_into(stack, namespace, "fab1"), tap_into(stack, namespace, "fab2")
        packets = [udp4(address4(1, 5), address4(2, 6), sport=first + i) for i in range(count)]
        for packet in packets:
            near.inject(packet)
        assert sorted(collect(far, count)) == sorted(packets)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_traffic_goes_on_from_the_new_address(namespace: Namespace, pair: tuple[PlaneNode, PlaneNode]) -> None:
    a, b = pair
    exchange(namespace, 1000)
    before, open_before = a.plane.counters(), descriptors()
    for number, own in enumerate(("127.0.0.11", "127.0.0.12", "127.0.0.1")):
        namespace.run(lambda own=own: a.plane.rebind((IPv4Address(own),), 1400, "lo"))
        a.plane.apply(state(a, own, 2, "127.0.0.2"))
        b.plane.apply(state(b, "127.0.0.2", 1, own))
        exchange(namespace, 2000 + 100 * number)
    assert descriptors() == open_before
    after = a.plane.counters()
    assert after["egress_packets"] == before["egress_packets"] + 48
    assert all(after[name] >= value for name, value in before.items())
    assert a.plane.peer_counters()["peer2"]["packets_to"] == after["send_datagrams"], "the peer has stayed"
    assert b.plane.peer_counters()["peer1"]["packets_from"] == b.plane.counters()["ingress_packets"]
    assert all(a.plane.status()["threads"].values())  # type: ignore[attr-defined]
    assert a.plane.settings.mtu == 1400


def test_what_waits_in_the_queue_meanwhile_is_sent(namespace: Namespace, pair: tuple[PlaneNode, PlaneNode]) -> None:
    """Packets that the workers have not read yet when they are replaced."""
    a, _ = pair
    with ExitStack() as stack:
        near, far = tap_into(stack, namespace, "fab1"), tap_into(stack, namespace, "fab2")
        for number in range(20):
            packets = [udp4(address4(1, 5), address4(2, 6), sport=1000 + 20 * number + i) for i in range(20)]
            for packet in packets:
                near.inject(packet)
            # The underlay address stays, the interface's name changes: the workers are replaced all the same.
            a.plane.rebind((IPv4Address("127.0.0.1"),), 1450, f"lo{number}")
            assert sorted(collect(far, 20)) == sorted(packets)


def test_an_address_that_is_not_there_changes_nothing(
    namespace: Namespace, pair: tuple[PlaneNode, PlaneNode]
) -> None:
    a, _ = pair
    settings, open_before = a.plane.settings, descriptors()
    with pytest.raises(DataplaneError, match="the address is not on this host"):
        namespace.run(lambda: a.plane.rebind((IPv4Address("198.51.100.77"),), 1400, "lo"))
    assert (a.plane.settings, descriptors()) == (settings, open_before)
    exchange(namespace, 1000)


def test_the_other_family_keeps_its_sockets(namespace: Namespace, make_node: Make) -> None:
    namespace.run(lambda: Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("0"))
    node = make_node(1, underlay=(ip_address("127.0.0.1"), ip_address("::1")))
    node.start()
    ports = node.plane.status()["source_ports"]
    namespace.run(lambda: node.plane.rebind((ip_address("127.0.0.9"), ip_address("::1")), 1450, "lo"))
    after = node.plane.status()["source_ports"]
    assert isinstance(ports, list)
    assert isinstance(after, list)
    assert after[8:] == ports[8:]
    assert after[:8] != ports[:8]
