"""The data plane as the daemon handles it, on real TUN devices, with one and with two workers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest

from fabric.errors import DataplaneError
from fabric.forward.dataplane import Dataplane
from fabric.model import DataplaneSettings, Endpoint, ForwardingState, LocalVtep
from tests.fabric.forward.harness import VNI, address4, make_peer, node_mac, prefixes_of, wait_for
from tests.fabric.forward.packets import make, superframe, udp4, wire_packets
from tests.tun.conftest import Namespace, PacketPeer
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import naive_split, superframe_header
from tun.port import Frame

pytestmark = pytest.mark.root

PORTS = {"vxlan": 8472, "udp": 8285}


class PlaneNode:
    """A Dataplane in a namespace of the test, at 127.0.0.<number>."""

    def __init__(self, namespace: Namespace, number: int, **changes: object) -> None:
        self.namespace = namespace
        self.number = number
        settings = DataplaneSettings(
            VNI, PORTS, "vxlan", (ip_address(f"127.0.0.{number}"),), f"fab{number}", 1450, 1, {}, "strict", 1000, "lo"
        )
        self.plane = Dataplane(replace(settings, **changes))  # type: ignore[arg-type]

    def start(self, *others: int) -> None:
        self.namespace.run(self.plane.open)
        self.namespace.run(self.plane.create_node_port)
        self.plane.apply(self.state(*others))
        self.plane.start()

    def state(self, *others: int) -> ForwardingState:
        own = LocalVtep(
            ip_address(f"127.0.0.{self.number}"), node_mac(self.number), prefixes_of(self.number)  # type: ignore[arg-type]
        )
        peers = tuple(make_peer(other, ip_address(f"127.0.0.{other}"), "vxlan", 1450) for other in others)
        return ForwardingState(VNI, (own,), peers)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    made.command("ip", "link", "set", "lo", "up")
    yield made
    made.delete()


Make = Callable[..., PlaneNode]


@pytest.fixture
def make_node(namespace: Namespace) -> Iterator[Make]:
    with ExitStack() as stack:

        def build(number: int, **changes: object) -> PlaneNode:
            node = PlaneNode(namespace, number, **changes)
            stack.callback(node.plane.stop)
            return node

        yield build


def endpoint(pods: Namespace, number: int, *addresses: str) -> Endpoint:
    return Endpoint(f"p{number}", "tun", pods.path, f"eth{number}", tuple(map(ip_address, addresses)))


def tap_into(stack: ExitStack, namespace: Namespace, name: str) -> PacketPeer:
    """The kernel's side of a device, by its name in the namespace."""
    device = type("Named", (), {"name": name})()
    return stack.enter_context(PacketPeer(namespace, device))  # type: ignore[arg-type]


def collect(peer: PacketPeer, count: int) -> list[bytes]:
    frames: list[Frame] = []
    while len(wire_packets(frames)) < count:
        frame = peer.take(10)
        assert frame is not None
        frames.append(frame)
    return wire_packets(frames)


@pytest.mark.parametrize("workers", [1, 2])
def test_traffic_between_real_devices(namespace: Namespace, make_node: Make, workers: int) -> None:
    """64 flows and a superframe; with two workers both queues and both receive sockets have their share."""
    a, b = make_node(1, workers=workers), make_node(2, workers=workers)
    a.start(2)
    b.start(1)
    assert all(a.plane.status()["threads"].values())  # type: ignore[attr-defined]
    with ExitStack() as stack:
        near, far = tap_into(stack, namespace, "fab1"), tap_into(stack, namespace, "fab2")
        packets = [udp4(address4(1, 5), address4(2, 6), sport=1000 + i) for i in range(64)]
        for packet in packets:
            near.inject(packet)
        assert sorted(collect(far, 64)) == sorted(packets)
        big = superframe(4, TCP_NUMBER, 27400, (1, 5), (2, 6))
        near.inject(big.build(), superframe_header(big, 1370))
        assert collect(far, 20) == naive_split(big, 1370)
    counters = a.plane.counters(), b.plane.counters()
    assert counters[0]["egress_packets"] == counters[1]["ingress_packets"] == 84
    assert not any(value for counter in counters for name, value in counter.items() if name.startswith("drop_"))


def test_every_thread_gets_ahead_when_it_is_woken(namespace: Namespace, make_node: Make) -> None:
    node = make_node(1, workers=2)
    assert node.plane.beats() == {}
    node.start()
    before = node.plane.beats()
    assert before.keys() == node.plane.status()["threads"].keys()  # type: ignore[attr-defined]
    assert len(before) == 4
    wait_for(lambda: all(node.plane.beats()[name] > beat for name, beat in before.items()))


@pytest.mark.parametrize("workers", [1, 2])
def test_pod_ports_come_and_go(namespace: Namespace, make_node: Make, workers: int) -> None:
    pods = Namespace()
    try:
        a, b = make_node(1), make_node(2, workers=workers)
        a.start(2)
        b.start(1)
        described = [
            b.namespace.run(partial(b.plane.add_port, endpoint(pods, i, address4(2, i))))
            for i in (10, 11)
        ]
        assert [d["device"] for d in described] == ["eth10", "eth11"]
        with ExitStack() as stack:
            near = tap_into(stack, namespace, "fab1")
            for i in (10, 11):
                pod = tap_into(stack, pods, f"eth{i}")
                near.inject(make(4, (1, 5), (2, i)))
                (got,) = collect(pod, 1)
                assert got[8] == 63
                pod.inject(make(4, (2, i), (1, 5)))
                (back,) = collect(near, 1)
                assert back[8] == 63
        counted = b.plane.port_counters()
        assert set(counted) == {"node", "p10", "p11"}
        assert all(counted[name]["frames_from"] >= 1 and counted[name]["bytes_to"] > 20 for name in ("p10", "p11"))
        with pytest.raises(DataplaneError, match="p10 exists already"):
            b.plane.add_port(replace(endpoint(pods, 12), name="p10"))
        b.plane.delete_port("p10")
        wait_for(lambda: "eth10" not in pods.command("ip", "-br", "link"))
        with pytest.raises(DataplaneError, match="no port p10"):
            b.plane.delete_port("p10")
        assert "eth11" in pods.command("ip", "-br", "link")
        assert b.plane.port_counters()["p11"]["frames_to"] == counted["p11"]["frames_to"]
        b.namespace.run(partial(b.plane.add_port, endpoint(pods, 13, address4(2, 13))))
        assert b.plane.port_counters()["p13"]["bytes_to"] == 0, "nothing of the port that was counted there before"
        with pytest.raises(DataplaneError, match="p12"):
            b.plane.add_port(replace(endpoint(pods, 12, address4(2, 12)), netns="/run/netns/fabtest-not-there"))
    finally:
        pods.delete()


def test_the_next_pod_with_an_address_inherits_no_flows(namespace: Namespace, make_node: Make) -> None:
    pods = Namespace()
    try:
        a, b = make_node(1), make_node(2, flows=1024)
        a.start(2)
        b.start(1)
        for number in (10, 11):
            b.namespace.run(partial(b.plane.add_port, endpoint(pods, number, address4(2, number))))
        with ExitStack() as stack:
            near = tap_into(stack, namespace, "fab1")
            inside = {number: tap_into(stack, pods, f"eth{number}") for number in (10, 11)}
            for port, (number, pod) in itertools.product(range(3), inside.items()):
                near.inject(udp4(address4(1, 5), address4(2, number), sport=4000 + port))
                collect(pod, 1)
            inside[11].inject(udp4(address4(2, 11), address4(2, 10)))
            collect(inside[10], 1)
        assert b.plane.counters()["flows"] == 7
        b.plane.delete_port("p10")
        counters = b.plane.counters()
        assert (counters["flows"], counters["flow_forgotten"]) == (3, 4)
        assert b.namespace.run(partial(b.plane.add_port, endpoint(pods, 12, address4(2, 10))))["name"] == "p12"
    finally:
        pods.delete()


def test_deleted_node_port_is_made_again(namespace: Namespace, make_node: Make) -> None:
    a, b = make_node(1), make_node(2)
    a.start(2)
    b.start(1)
    namespace.command("ip", "link", "del", "fab1")
    wait_for(lambda: a.plane.counters()["drop_port_gone"] >= 1)
    namespace.run(a.plane.recreate_node_port)
    with ExitStack() as stack:
        near, far = tap_into(stack, namespace, "fab1"), tap_into(stack, namespace, "fab2")
        packet = make(6, (1, 5), (2, 6))
        near.inject(packet)
        assert collect(far, 1) == [packet]


def test_stop_leaves_nothing(namespace: Namespace) -> None:
    before = len(os.listdir("/proc/self/fd"))
    node = PlaneNode(namespace, 1, workers=2)
    node.start(2)
    assert "fab1" in namespace.command("ip", "-br", "link")
    node.plane.stop()
    assert "fab1" not in namespace.command("ip", "-br", "link")
    assert namespace.command("ss", "-Hlun").strip() == ""
    del node
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("workers", [1, 2])
def test_held_port_names_the_holder(namespace: Namespace, make_node: Make, workers: int) -> None:
    make_node(1).start()
    with pytest.raises(DataplaneError, match=rf"127\.0\.0\.1 port 8472: held by process {os.getpid()} ") as caught:
        namespace.run(make_node(1, device="other", workers=workers).plane.open)
    assert "\n" not in str(caught.value)
    assert "other" not in namespace.command("ip", "-br", "link")


def test_port_held_by_a_kernel_device_names_it(namespace: Namespace, make_node: Make) -> None:
    options = ["id", "1", "dstport", "8472", "local", "127.0.0.1", "nolearning"]
    namespace.command("ip", "link", "add", "flannel.1", "type", "vxlan", *options)
    namespace.command("ip", "link", "set", "flannel.1", "up")
    with pytest.raises(DataplaneError, match=r"kernel VXLAN device flannel\.1"):
        namespace.run(make_node(1).plane.open)


def test_address_of_another_host(namespace: Namespace, make_node: Make) -> None:
    with pytest.raises(DataplaneError, match=r"192\.0\.2\.1 port 8472: the address is not on this host"):
        namespace.run(make_node(1, underlay=(ip_address("192.0.2.1"),)).plane.open)


def test_bad_state_keeps_the_last_one(namespace: Namespace, make_node: Make) -> None:
    a, b = make_node(1), make_node(2)
    a.start(2)
    b.start(1)
    state = a.state(2)
    twice = replace(state, peers=(*state.peers, replace(state.peers[0], name="twin")))
    with pytest.raises(DataplaneError, match="keeping the last ones: VTEP twin"):
        a.plane.apply(twice)
    with ExitStack() as stack:
        near, far = tap_into(stack, namespace, "fab1"), tap_into(stack, namespace, "fab2")
        packet = make(4, (1, 5), (2, 6))
        near.inject(packet)
        assert collect(far, 1) == [packet]


@pytest.mark.parametrize("switch", ["tun-tso", "tun-uso", "udp-gso", "udp-gro"])
def test_kill_switches(namespace: Namespace, make_node: Make, switch: str) -> None:
    a, b = make_node(1, offload={switch: False}), make_node(2, offload={switch: False})
    a.start(2)
    b.start(1)
    if switch.startswith("udp"):
        assert a.plane.status()["offloads"][switch] is False  # type: ignore[index]
    with ExitStack() as stack:
        near, far = tap_into(stack, namespace, "fab1"), tap_into(stack, namespace, "fab2")
        parts = naive_split(superframe(4, TCP_NUMBER, 27400, (1, 5), (2, 6)), 1370)
        for part in parts:
            near.inject(part)
        assert collect(far, 20) == parts
