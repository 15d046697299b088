"""What was fed is what was handed on plus what was dropped, to the packet, also where the kernel refuses at the end."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from tests.fabric.forward.conftest import Pair
from tests.fabric.forward.harness import PLAIN, Fabric, Node, address4, make_peer, wait_for
from tests.fabric.forward.packets import echo4, superframe, udp4, wire_packets
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import UDP as UDP_NUMBER
from tests.tun.packets import naive_split, superframe_header

DATAGRAMS = (socket.AF_INET, socket.SOCK_DGRAM)


def total(drops: dict[str, int]) -> int:
    return sum(drops.values())


@pytest.mark.slow
def test_refused_superframe_counts_its_packets(pair: Pair) -> None:
    """Packets of one flow arrive together and leave merged: a refused write loses all of them."""
    parts = naive_split(superframe(4, UDP_NUMBER, 40 * 1200, (3, 5), (2, 10)), 1200)
    sent = 0
    while not pair.b.count("drop_port_queue_full"):
        for part in parts:
            pair.raw.send_inner(pair.b, part)
        sent += len(parts)
        wait_for(lambda want=sent: pair.b.count("receive_datagrams") >= want)
    delivered: list[bytes] = []

    def settled() -> bool:
        delivered.extend(wire_packets(pair.pod_b.take_all()))
        return pair.b.drops() == {"port_queue_full": sent - len(delivered)}

    wait_for(settled)
    assert pair.b.count("write_merged") > 0, "nothing was merged: the test shows nothing"
    assert pair.b.count("ingress_packets") == len(delivered)


@pytest.mark.parametrize("gso", [False, True], ids=["packets", "superframe"])
def test_packets_the_underlay_refuses_are_not_forwarded(fabric: Fabric, gso: bool) -> None:
    """The peer's address cannot be reached from ours: every packet is a drop and none counts as forwarded."""
    a = fabric.add_node(1)
    fabric.add_raw_peer(3)
    fabric.publish()
    a.peers["peer3"] = make_peer(3, ip_address("255.255.255.255"), "vxlan", 1450)  # a broadcast: EACCES or ENETUNREACH
    a.publish()
    if gso:
        packet = superframe(4, TCP_NUMBER, 13700, (1, 5), (3, 6))
        a.host.peer.inject(packet.build(), superframe_header(packet, 1370))
    else:
        for i in range(10):
            a.host.peer.inject(udp4(address4(1, 5), address4(3, 6), bytes(100 + 10 * i)))
    wait_for(lambda: total(a.drops()) >= 10)
    assert {name.partition("_")[0] for name in a.drops()} == {"send"}
    assert total(a.drops()) == 10
    assert a.count("egress_packets") == a.count("send_datagrams") == 0


def test_an_error_that_cannot_be_told_is_no_drop(fabric: Fabric) -> None:
    """An ICMP error is made here: when the sender's port is full, only the packet it was about counts."""
    a = fabric.add_node(1)
    pod = a.add_pod(10)
    fabric.publish()
    filler = udp4(address4(1, 5), address4(1, 10), bytes(60000))
    fed = 0
    while not a.count("drop_port_queue_full"):
        a.host.peer.inject(filler)
        fed += 1
        wait_for(lambda want=fed: a.count("egress_packets") + total(a.drops()) >= want)
    before = a.drops()["port_queue_full"]
    pod.peer.inject(echo4(address4(1, 10), address4(1, 10)))
    wait_for(lambda: a.count("egress_icmp_sent") == 1)
    assert a.drops() == {"port_queue_full": before, "no_route": 1}


def test_each_port_has_its_own_counts(fabric: Fabric) -> None:
    """Frames and bytes both ways, over the tunnel and on the node; what is refused counts for the pod it concerns."""
    a, b = fabric.add_node(1), fabric.add_node(2)
    pods = [a.add_pod(10), a.add_pod(11)]
    for slot, pod in enumerate(pods, 1):
        pod.slot = slot
    fabric.publish()
    out = udp4(address4(1, 10), address4(2, 6), bytes(100))
    back = udp4(address4(2, 6), address4(1, 10), bytes(200))
    local = udp4(address4(1, 10), address4(1, 11), bytes(300))
    for _ in range(3):
        pods[0].peer.inject(out)
        b.host.take()
    b.host.peer.inject(back)
    pods[0].take()
    pods[0].peer.inject(local)
    pods[1].take()
    pods[1].peer.inject(out)  # another's source
    b.host.peer.inject(udp4(address4(2, 6), address4(1, 10), ttl=1))
    wait_for(lambda: a.drops() == {"source_spoofed": 1, "ttl_expired": 1})
    wait_for(lambda: a.worker.port_counts(1) == (4, 3 * len(out) + len(local), 1, len(back), 1))
    wait_for(lambda: a.worker.port_counts(2) == (1, len(out), 1, len(local), 1))
    assert a.worker.port_counts(0) == (0, 0, 0, 0, 0)
    assert b.worker.port_counts(0)[0] == 2


@pytest.mark.parametrize("segmentation", [True, False], ids=["trains", "singly"])
def test_each_peer_has_its_own_counts(fabric: Fabric, segmentation: bool) -> None:
    """Packets and their bytes both ways, of a superframe its segments; together they are what the node has carried."""
    a, b, c = (fabric.add_node(number, segmentation=segmentation) for number in (1, 2, 3))
    fabric.publish()
    big = superframe(4, TCP_NUMBER, 3 * 1370, (1, 5), (2, 6))
    parts = naive_split(big, 1370)
    a.host.peer.inject(big.build(), superframe_header(big, 1370))
    small = udp4(address4(1, 5), address4(3, 6), bytes(100))
    for _ in range(4):
        a.host.peer.inject(small)
    back = udp4(address4(2, 6), address4(1, 5), bytes(200))
    b.host.peer.inject(back)
    b.host.peer.inject(udp4(address4(2, 6), address4(9, 5)))  # refused: it counts for nobody
    wait_for(lambda: a.worker.peer_counts(1) == (3, sum(map(len, parts)), 1, len(back)))
    wait_for(lambda: a.worker.peer_counts(2) == (4, 4 * len(small), 0, 0))
    assert a.worker.peer_counts(0) == a.worker.peer_counts(3) == (0, 0, 0, 0)
    wait_for(lambda: c.worker.peer_counts(1) == (0, 0, 4, 4 * len(small)))
    wait_for(lambda: b.worker.peer_counts(1)[2:] == (3, sum(map(len, parts))))

    def adds_up(node: Node) -> bool:
        """What has arrived elsewhere may not have been counted here yet."""
        counted = [sum(column) for column in zip(*map(node.worker.peer_counts, range(4)), strict=True)]
        totals = ("egress_packets", "egress_bytes", "ingress_packets", "ingress_bytes")
        return counted == [node.count(name) for name in totals] and counted[0] == node.count("send_datagrams")

    for node in (a, b, c):
        wait_for(lambda node=node: adds_up(node))


def test_packets_before_the_first_snapshot_are_unknown(fabric: Fabric) -> None:
    """A daemon that has no peers yet reads its socket empty and says what that was."""
    a, raw = fabric.add_node(1), fabric.add_raw_peer(3)
    for thread in a.threads:
        thread.start()
    for _ in range(5):
        raw.send_inner(a, udp4(address4(3, 5), address4(1, 6)))
    wait_for(lambda: a.count("receive_datagrams") == 5)
    a.wait_drop("unknown_vtep", 5)


def test_a_read_that_fails_is_no_end_of_the_port(fabric: Fabric) -> None:
    """A TUN read answers EINVAL for one odd GSO frame; here a socket has an error pending. The next frame goes on."""
    a, b = fabric.add_node(1), fabric.add_node(2)
    with socket.socket(*DATAGRAMS) as kernel, socket.socket(*DATAGRAMS) as device:
        kernel.bind(("127.0.0.1", 0))
        device.setblocking(False)
        device.bind(("127.0.0.1", 0))
        device.connect(kernel.getsockname())
        a.host.fds = (device.fileno(),)
        fabric.publish()
        name = kernel.getsockname()
        kernel.close()
        device.send(b"nobody listens: ECONNREFUSED at the next read")
        wait_for(lambda: a.count("drop_port_failed"))
        with socket.socket(*DATAGRAMS) as again:
            again.bind(name)
            packet = udp4(address4(1, 5), address4(2, 6))
            again.sendto(PLAIN.emit() + packet, device.getsockname())
            assert b.host.take() == (PLAIN, packet)
        a.wait_drop("port_failed")
