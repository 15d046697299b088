"""Peers of different backend types at once: what each is sent, and what is accepted from whom (ADR 14)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP

from fabric.forward.worker import Worker
from tests.fabric.forward.harness import PLAIN, Fabric, Node, RawPeer, address4, address6, node_mac, wait_for
from tests.fabric.forward.packets import make, superframe, udp4, udp6
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import naive_split, superframe_header

FORMATS = ("vxlan", "udp")
GOOD = udp4(address4(3, 5), address4(1, 6))
SOMEBODY = bytes.fromhex("0a0000000077")


def mixed(fabric: Fabric, own: str, peer: str | None) -> tuple[Node, RawPeer]:
    """A node of type `own` with the sockets of both formats, and peer 3; `peer` None has a plain route (host-gw)."""
    node = fabric.add_node(1, encapsulation=own, second_format="udp" if own == "vxlan" else "vxlan")
    raw = fabric.add_raw_peer(3, peer or "vxlan")
    raw.encapsulation = peer  # type: ignore[assignment]
    fabric.publish()
    return node, raw


def emit(raw: RawPeer, node: Node, packet: bytes, form: str) -> None:
    """The packet in this format, whatever the peer's type is."""
    raw.send(node, raw.wrap(node, packet) if form == "vxlan" else packet, form=form)


@pytest.mark.parametrize(("own", "peer", "form"), list(itertools.product(FORMATS, (*FORMATS, None), FORMATS)))
def test_our_format_and_the_peers_are_accepted_and_no_other(
    fabric: Fabric, own: str, peer: str | None, form: str
) -> None:
    node, raw = mixed(fabric, own, peer)
    emit(raw, node, GOOD, form)
    if form in (own, peer):
        assert node.host.take() == (PLAIN, GOOD)
    else:
        node.wait_drop("format_refused")
        assert node.host.take_all() == []


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("peer", ["vxlan", "udp", None])
def test_the_inner_source_is_held_to_the_lease_in_every_format(fabric: Fabric, peer: str | None, form: str) -> None:
    node, raw = mixed(fabric, form, peer)
    for source in (address4(1, 5), address4(4, 5), "192.0.2.9"):
        emit(raw, node, udp4(source, address4(1, 6)), form)
    emit(raw, node, udp4(address4(3, 5), address4(200, 6)), form)
    wait_for(lambda: sum(node.drops().values()) == 4)
    assert node.drops() == {"source_not_leased": 3, "destination_not_local": 1}


def test_a_merged_message_of_a_refused_format_counts_each_datagram(fabric: Fabric) -> None:
    node, raw = mixed(fabric, "vxlan", "vxlan")
    for _ in range(50):
        emit(raw, node, GOOD, "udp")
    node.wait_drop("format_refused", 50)


def test_strangers_are_unknown_on_both_ports(fabric: Fabric) -> None:
    node, raw = mixed(fabric, "vxlan", "udp")
    del node.peers["peer3"]
    node.publish()
    for form in FORMATS:
        emit(raw, node, GOOD, form)
    node.wait_drop("unknown_vtep", 2)


# --- a sender whose lease names no MAC ---


@pytest.mark.parametrize("peer", ["udp", None])
def test_any_unicast_mac_of_a_peer_without_one(fabric: Fabric, peer: str | None) -> None:
    node, raw = mixed(fabric, "vxlan", peer)
    for source in (SOMEBODY, node_mac(9), bytes.fromhex("fefefefefefe"), bytes.fromhex("000000000001")):
        raw.send(node, raw.wrap(node, GOOD, source=source), form="vxlan")
        assert node.host.take() == (PLAIN, GOOD)


@pytest.mark.parametrize(
    "source", [node_mac(1), bytes(6), bytes.fromhex("030000000003"), bytes.fromhex("ffffffffffff")],
    ids=["ours", "zero", "multicast", "broadcast"],
)  # fmt: skip
def test_no_other_mac_of_a_peer_without_one(fabric: Fabric, source: bytes) -> None:
    node, raw = mixed(fabric, "vxlan", "udp")
    raw.send(node, raw.wrap(node, GOOD, source=source), form="vxlan")
    node.wait_drop("inner_mac")


def test_the_inner_destination_is_ours_whoever_sends(fabric: Fabric) -> None:
    node, raw = mixed(fabric, "vxlan", "udp")
    frame = bytearray(raw.wrap(node, GOOD, source=SOMEBODY))
    frame[8:14] = node_mac(2)
    raw.send(node, bytes(frame), form="vxlan")
    node.wait_drop("inner_mac")
    for offset, value in ((20, b"\x08\x06"), (0, b"\0"), (4, b"\0\0\x02")):
        frame = bytearray(raw.wrap(node, GOOD, source=SOMEBODY))
        frame[offset : offset + len(value)] = value
        raw.send(node, bytes(frame), form="vxlan")
    wait_for(lambda: sum(node.drops().values()) == 4)
    assert node.drops() == {"inner_mac": 1, "inner_ethertype": 1, "vxlan_flags": 1, "vxlan_vni": 1}


def test_a_peer_with_a_mac_may_use_no_other(fabric: Fabric) -> None:
    node, raw = mixed(fabric, "udp", "vxlan")
    raw.send(node, raw.wrap(node, GOOD, source=SOMEBODY), form="vxlan")
    node.wait_drop("inner_mac")


# --- sending ---


@pytest.mark.parametrize("own", FORMATS)
def test_every_peer_is_sent_its_own_format_on_its_own_port(fabric: Fabric, own: str) -> None:
    node = fabric.add_node(1, encapsulation=own)
    vxlan, udp = fabric.add_raw_peer(3, "vxlan"), fabric.add_raw_peer(4, "udp")
    fabric.publish()
    assert vxlan.port != udp.port
    for number in range(10):
        one, two = udp4(address4(1, 5), address4(3, 6), id=number), udp4(address4(1, 5), address4(4, 6), id=number)
        node.host.peer.inject(one)
        node.host.peer.inject(two)
        assert vxlan.receive()[22:] == one
        assert udp.receive() == two


def test_superframes_to_peers_of_both_formats(fabric: Fabric) -> None:
    node = fabric.add_node(1)
    vxlan, udp = fabric.add_raw_peer(3, "vxlan"), fabric.add_raw_peer(4, "udp")
    fabric.publish()
    for raw, skip in ((vxlan, 22), (udp, 0)):
        packet = superframe(4, TCP_NUMBER, 13700, (1, 5), (raw.number, 6))
        node.host.peer.inject(packet.build(), superframe_header(packet, 1370))
        assert [raw.receive()[skip:] for _ in range(10)] == naive_split(packet, 1370)


def test_no_ipv6_to_a_udp_peer_of_a_vxlan_node(fabric: Fabric) -> None:
    node, _ = mixed(fabric, "vxlan", "udp")
    node.host.peer.inject(udp6(address6(1, 5), address6(3, 6)))
    node.wait_drop("family_unsupported")


def test_two_nodes_of_different_types_talk_both_ways(fabric: Fabric) -> None:
    a = fabric.add_node(1, encapsulation="vxlan", second_format="udp")
    b = fabric.add_node(2, encapsulation="udp", second_format="vxlan")
    pod_a, pod_b = a.add_pod(10), b.add_pod(10)
    fabric.publish()
    for number in range(20):
        pod_a.peer.inject(make(4, (1, 10), (2, 10), bytes([number]) * 40))
        assert pod_b.take()[1][28:] == bytes([number]) * 40
        pod_b.peer.inject(make(4, (2, 10), (1, 10), bytes([number]) * 40))
        assert pod_a.take()[1][28:] == bytes([number]) * 40
    assert a.drops() == b.drops() == {}


# --- peers to which the host has a plain route ---


def test_packets_for_a_host_gw_peer_are_the_hosts(fabric: Fabric) -> None:
    node, _ = mixed(fabric, "vxlan", None)
    pod = node.add_pod(10)
    node.publish()
    packet = make(4, (1, 10), (3, 6))
    pod.peer.inject(packet)
    assert node.host.take() == (PLAIN, packet)
    node.host.peer.inject(make(4, (1, 5), (3, 6)))  # the host routes them elsewhere: nobody can be meant
    answer = IP(node.host.take()[1])
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 0)
    node.wait_drop("no_route")
    assert node.count("send_datagrams") == 0


def test_a_direct_peer_is_the_hosts_until_the_host_says_otherwise(fabric: Fabric) -> None:
    """DirectRouting: what still comes through the node port is encapsulated, and what the peer encapsulates taken."""
    node, raw = mixed(fabric, "vxlan", "vxlan")
    pod = node.add_pod(10)
    node.peers["peer3"] = replace(node.peers["peer3"], direct=True)
    node.publish()
    packet = make(4, (1, 10), (3, 6))
    pod.peer.inject(packet)
    assert node.host.take() == (PLAIN, packet)
    node.host.peer.inject(packet)
    assert raw.receive()[22:] == packet
    emit(raw, node, GOOD, "vxlan")
    assert node.host.take() == (PLAIN, GOOD)


def test_errors_for_a_host_gw_peer_go_through_the_host(fabric: Fabric) -> None:
    node, raw = mixed(fabric, "vxlan", None)
    node.add_pod(10)
    node.publish()
    emit(raw, node, udp4(address4(3, 5), address4(1, 10), ttl=1), "vxlan")
    answer = IP(node.host.take()[1])
    assert (answer.src, answer.dst, answer[ICMP].type) == (address4(1, 0), address4(3, 5), 11)
    node.wait_drop("ttl_expired")
    assert node.count("send_datagrams") == 0


@pytest.mark.parametrize("form", FORMATS)
def test_a_pod_speaks_to_no_tunnel_port_of_either_format(fabric: Fabric, form: str) -> None:
    node, _ = mixed(fabric, "vxlan", "udp")
    pod = node.add_pod(10)
    node.publish()
    for to in ("127.0.0.1", "127.0.0.3"):
        pod.peer.inject(udp4(address4(1, 10), to, dport=fabric.tunnel_ports[form]))
    node.wait_drop("pod_to_vtep", 2)


# --- sockets of both formats in one thread ---


def test_a_socket_added_while_the_threads_run(fabric: Fabric) -> None:
    node, raw = fabric.add_node(1), fabric.add_raw_peer(3, "udp")
    fabric.publish()
    emit(raw, node, GOOD, "vxlan")
    assert node.host.take() == (PLAIN, GOOD)
    with node.bind("udp") as late:
        node.worker.add_socket(late.fileno(), "udp")
        emit(raw, node, GOOD, "udp")
        assert node.host.take() == (PLAIN, GOOD)
        emit(raw, node, GOOD, "vxlan")
        assert node.host.take() == (PLAIN, GOOD)
        assert node.count("ingress_wakeups") < 20
        node.worker.stop()
        for thread in node.threads:
            thread.join(10)


def test_a_worker_takes_four_sockets_and_no_fifth(fabric: Fabric) -> None:
    worker = Worker(0, [], [], [])
    for number in range(4):
        worker.add_socket(number, "vxlan")
    with pytest.raises(ValueError, match="at most 4 receive sockets"):
        worker.add_socket(4, "vxlan")


def test_sockets_do_not_spin_before_the_first_snapshot(fabric: Fabric) -> None:
    a, raw = fabric.add_node(1, second_format="udp"), fabric.add_raw_peer(3)
    for thread in a.threads:
        thread.start()
    raw.send(a, b"early", form="udp")
    wait_for(lambda: a.count("ingress_wakeups") >= 1)
    fabric.publish()
    emit(raw, a, GOOD, "vxlan")
    assert a.host.take() == (PLAIN, GOOD)
    assert a.count("ingress_wakeups") < 20


@pytest.mark.slow
def test_a_flooded_socket_does_not_starve_the_other(fabric: Fabric) -> None:
    """A queue that never runs empty: the other socket still has its turn within a batch or two."""
    a, raw = fabric.add_node(1, second_format="udp"), fabric.add_raw_peer(3, "udp")
    for number in range(2000):
        emit(raw, a, udp4(address4(3, 5), address4(1, 6), number.to_bytes(4, "big")), "vxlan")
    urgent = udp4(address4(3, 5), address4(1, 7))
    emit(raw, a, urgent, "udp")
    fabric.publish()
    frames = [a.host.take() for _ in range(2001)]
    assert frames.index((PLAIN, urgent)) < 200
