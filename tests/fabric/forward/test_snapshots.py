"""Snapshot swaps, ports that come and go, source ports, and the headerless format, all under traffic."""

from __future__ import annotations

import select
import threading
from dataclasses import replace
from ipaddress import ip_network

import pytest

from encap.drops import DropReason
from fabric.forward.snapshot import Snapshot, to_port, to_vtep
from fabric.forward.worker import Worker
from tests.fabric.forward.conftest import Pair
from tests.fabric.forward.harness import PLAIN, Fabric, HarnessPort, Node, address4, address6, wait_for
from tests.fabric.forward.packets import make, superframe, udp4, udp6, wire_packets
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import naive_split, superframe_header


class Sender(threading.Thread):
    """Injects `count` numbered UDP packets into a port as fast as it takes them."""

    def __init__(self, port: HarnessPort, template: bytes, count: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.template = template
        self.count = count

    def run(self) -> None:
        for number in range(self.count):
            packet = self.template[:-4] + number.to_bytes(4, "big")
            while True:
                try:
                    self.port.peer.inject(packet)
                    break
                except BlockingIOError:
                    select.select([], [], [], 0.001)


def numbered(source: str, destination: str) -> bytes:
    """UDP without a checksum, so that the number at its end may change and nothing merges."""
    packet = udp4(source, destination, b"number: " + bytes(4))
    return packet[:26] + b"\0\0" + packet[28:]


@pytest.mark.slow
def test_swaps_under_traffic_lose_and_reorder_nothing(pair: Pair) -> None:
    count, swaps = 8_000, 0
    sender = Sender(pair.a.host, numbered(address4(1, 5), address4(2, 6)), count)
    sender.start()
    got: list[int] = []
    while len(got) < count:
        frames = [pair.b.host.take() for _ in range(min(20, count - len(got)))]
        got += [int.from_bytes(part[-4:], "big") for part in wire_packets(frames)]
        pair.a.publish()
        pair.b.publish()
        swaps += 1
    sender.join()
    assert got == list(range(count))
    assert swaps > 20
    assert pair.a.drops() == pair.b.drops() == {}


def test_old_snapshots_are_freed(pair: Pair) -> None:
    for _ in range(50):
        pair.a.publish()
    assert pair.a.worker.reap() == 0


def test_route_changes_with_the_snapshot(pair: Pair) -> None:
    """The remembered destination of the egress thread belongs to its generation."""
    packet = udp4(address4(1, 5), address4(2, 6))
    pair.a.host.peer.inject(packet)
    assert pair.b.host.take() == (PLAIN, packet)
    moved = {name: replace(peer, prefixes=()) for name, peer in pair.a.peers.items()}
    moved["peer3"] = replace(moved["peer3"], prefixes=(ip_network("10.244.2.0/24"),))
    pair.a.peers = moved
    pair.a.publish()
    pair.a.host.peer.inject(packet)
    assert pair.raw.receive()[22:] == packet
    assert pair.b.host.take_all() == []


def test_longest_prefix_wins(pair: Pair) -> None:
    pair.a.peers["peer3"] = replace(pair.a.peers["peer3"], prefixes=(ip_network("10.244.2.128/25"),))
    pair.a.publish()
    pair.a.host.peer.inject(udp4(address4(1, 5), address4(2, 200)))
    assert pair.raw.receive()
    pair.a.host.peer.inject(udp4(address4(1, 5), address4(2, 100)))
    pair.b.host.take()


def test_new_port_is_read_at_once(pair: Pair) -> None:
    pod = pair.a.add_pod(20)
    pair.a.publish()
    pod.peer.inject(make(4, (1, 20), (2, 10)))
    pair.pod_b.take()


@pytest.mark.slow
def test_ports_come_and_go_under_traffic(pair: Pair) -> None:
    """Packets for a pod that left go to the host's kernel; none is lost, nothing crashes."""
    count = 10_000
    sender = Sender(pair.a.host, numbered(address4(1, 5), address4(2, 10)), count)
    sender.start()
    got: list[int] = []
    pod: HarnessPort | None = pair.pod_b
    while len(got) < count:
        if pod:
            pair.b.remove_pod(pod)
            pair.b.publish()
            got += numbers(pod)
            pod.close()
            pod = None
        else:
            pod = pair.b.add_pod(10)
            pair.b.publish()
        got += numbers(pair.b.host) + (numbers(pod) if pod else [])
    sender.join()
    assert sorted(got) == list(range(count))
    assert pair.a.drops() == pair.b.drops() == {}


def numbers(port: HarnessPort) -> list[int]:
    return [int.from_bytes(part[-4:], "big") for part in wire_packets(port.take_all())]


def test_device_that_was_deleted_is_left_alone(pair: Pair) -> None:
    pair.pod_a.peer.close()
    wait_for(lambda: pair.a.drops() == {"port_gone": 1})
    packet = udp4(address4(1, 5), address4(2, 6))
    pair.a.host.peer.inject(packet)
    assert pair.b.host.take() == (PLAIN, packet), "the others go on"
    before = pair.a.count("egress_wakeups")
    pair.a.host.peer.inject(packet)
    pair.b.host.take()
    assert pair.a.count("egress_wakeups") <= before + 2, "the dead port is not watched any more"
    assert pair.a.drops() == {"port_gone": 1}


def test_full_port_is_counted(pair: Pair) -> None:
    """A pod that reads nothing: its queue fills, everything beyond is counted, the others go on."""
    packet = udp4(address4(3, 5), address4(2, 10), b"x" * 1200)
    while not pair.b.count("drop_port_queue_full"):
        sent = pair.b.count("receive_datagrams")
        for _ in range(200):
            pair.raw.send_inner(pair.b, packet)
        wait_for(lambda want=sent + 200: pair.b.count("receive_datagrams") >= want)
    other = udp4(address4(3, 5), address4(2, 6))
    pair.raw.send_inner(pair.b, other)
    assert pair.b.host.take() == (PLAIN, other)


def test_before_the_first_snapshot_nothing_is_accepted_and_nothing_spins(fabric: Fabric) -> None:
    node = fabric.add_node(2)
    raw = fabric.add_raw_peer(3)
    for thread in node.threads:
        thread.start()
    for _ in range(20):
        raw.send_inner(node, udp4(address4(3, 5), address4(2, 6)))
    wait_for(lambda: node.count("ingress_wakeups") >= 1)
    fabric.publish()
    packet = udp4(address4(3, 5), address4(2, 7))
    raw.send_inner(node, packet)
    frames = [node.host.take()]
    while frames[-1] != (PLAIN, packet):
        frames.append(node.host.take())
    assert node.count("ingress_wakeups") < 100


# --- source ports ---


def test_one_flow_keeps_one_source_port(pair: Pair) -> None:
    ports = set()
    for i in range(50):
        pair.a.host.peer.inject(udp4(address4(1, 5), address4(3, 6), bytes([i]) * (i + 1)))
        ports.add(pair.raw.receive_from()[1][1])
    assert len(ports) == 1
    assert 49152 <= ports.pop() <= 65535


@pytest.mark.parametrize("family", [4, 6])
def test_many_flows_use_all_source_ports(pair: Pair, family: int) -> None:
    ports: dict[int, int] = {}
    for i in range(400):
        if family == 4:
            pair.a.host.peer.inject(udp4(address4(1, 5), address4(3, 6), sport=1024 + i))
        else:
            pair.a.host.peer.inject(udp6(address6(1, 5), address6(3, 6), sport=1024 + i))
        port = pair.raw.receive_from()[1][1]
        ports[port] = ports.get(port, 0) + 1
    assert len(ports) == 8
    assert min(ports.values()) > 400 / 8 / 3, ports


def test_fragments_of_a_datagram_share_a_source_port(pair: Pair) -> None:
    """Later fragments have no ports, so the hash of every fragment leaves them out."""
    pair.a.host.peer.inject(udp4(address4(1, 5), address4(3, 6), b"x" * 4000))
    assert len({pair.raw.receive_from()[1][1] for _ in range(3)}) == 1


def test_segments_of_a_superframe_share_a_source_port(pair: Pair) -> None:
    packet = superframe(4, TCP_NUMBER, 13700, (1, 5), (3, 6))
    pair.a.host.peer.inject(packet.build(), superframe_header(packet, 1370))
    seen = [pair.raw.receive_from() for _ in range(10)]
    assert [data[22:] for data, _, _ in seen] == naive_split(packet, 1370)
    assert len({source for _, source, _ in seen}) == 1


# --- flannel's udp format ---


def test_udp_format_carries_the_bare_packet(fabric: Fabric) -> None:
    a, b = fabric.add_node(1, encapsulation="udp"), fabric.add_node(2, encapsulation="udp")
    raw = fabric.add_raw_peer(3, "udp")
    fabric.publish()
    packet = udp4(address4(1, 5), address4(3, 6), tos=2)
    a.host.peer.inject(packet)
    data, _, tos = raw.receive_from()
    assert (data, tos) == (packet, 2)
    back = udp4(address4(3, 6), address4(1, 5))
    raw.send(a, back)
    assert a.host.take() == (PLAIN, back)
    big = superframe(4, TCP_NUMBER, 13700, (1, 5), (2, 6))
    a.host.peer.inject(big.build(), superframe_header(big, 1370))
    frames = [b.host.take()]
    while len(wire_packets(frames)) < 10:
        frames.append(b.host.take())
    assert wire_packets(frames) == naive_split(big, 1370)


def test_udp_format_carries_no_ipv6(fabric: Fabric) -> None:
    """flannel's udp backend is IPv4 only."""
    a = fabric.add_node(1, encapsulation="udp")
    fabric.add_raw_peer(3, "udp")
    fabric.publish()
    a.host.peer.inject(udp6(address6(1, 5), address6(3, 6)))
    a.wait_drop("family_unsupported")


@pytest.mark.parametrize("size", [0, 1, 19, 20])
def test_udp_format_short_datagrams(fabric: Fabric, size: int) -> None:
    a, raw = fabric.add_node(1, encapsulation="udp"), fabric.add_raw_peer(3, "udp")
    fabric.publish()
    raw.send(a, udp4(address4(3, 5), address4(1, 6))[:size])
    a.wait_drop("vxlan_short" if size == 0 else "inner_short" if size < 20 else "inner_length")


# --- overload ---


def test_overload_is_accounted_to_the_packet(pair: Pair) -> None:
    """Target R26: a reader that is too slow; what was sent is what arrived plus what was counted, both ways."""
    packet = udp4(address4(3, 5), address4(2, 10), b"x" * 1200)[:26] + b"\0\0"
    packet += b"x" * 1200
    sent = 0
    while not pair.b.count("drop_port_queue_full"):
        for _ in range(500):
            pair.raw.send_inner(pair.b, packet)
        sent += 500
        wait_for(lambda want=sent: pair.b.count("receive_datagrams") >= want)
    assert pair.b.count("receive_overflows") == 0
    delivered = len(pair.pod_b.take_all())
    assert pair.b.drops() == {"port_queue_full": sent - delivered}


# --- the worker and the snapshot as objects ---


def test_snapshot_answers_for_itself(pair: Pair) -> None:
    snapshot = Snapshot(7, pair.a.state(), pair.a.ports, 1, {"vxlan": pair.a.port, "udp": 1}, True)
    assert snapshot.number == 7
    routes = {str(a): snapshot.route(a) for a in (pair.pod_a.addresses[0], pair.pod_b.addresses[1])}
    assert routes == {address4(1, 10): to_port(1), address6(2, 10): to_vtep(0)}


def test_two_vteps_with_one_address_are_refused(pair: Pair) -> None:
    pair.a.peers["twin"] = replace(pair.a.peers["peer3"], name="twin")
    with pytest.raises(ValueError, match="already another VTEP's"):
        pair.a.publish()


def test_worker_refuses_too_many_sockets() -> None:
    with pytest.raises(ValueError, match="at most 4 receive sockets"):
        Worker(0, [(0, "vxlan")] * 5, [], [])
    with pytest.raises(ValueError, match="16 transmit sockets"):
        Worker(0, [], [0] * 17, [])


def test_every_reason_has_a_counter(pair: Pair) -> None:
    names = {name.removeprefix("drop_") for name in pair.a.worker.counters() if name.startswith("drop_")}
    assert names == {reason.name.lower() for reason in DropReason} - {"pass", "reasons"}


def test_node_stops_when_idle(fabric: Fabric) -> None:
    node: Node = fabric.add_node(1)
    fabric.publish()
    node.worker.stop()
    for thread in node.threads:
        thread.join(5)
        assert not thread.is_alive()
