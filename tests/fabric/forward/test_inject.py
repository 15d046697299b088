"""Tunnel-GSO transmit: the frame and the 24-byte header that a TAP would get, taken from a socket pair in its place."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import NamedTuple

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from tests.fabric.forward.harness import Fabric, Node, RawPeer, node_mac, wait_for
from tests.fabric.forward.packets import make, superframe
from tests.tun.packets import ACK, CWR, ECE, Packet, inet_sum, naive_split, superframe_header
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import UDP as UDP_NUMBER

TAP_MAC = bytes.fromhex("02aabbccddee")
LINKS = [ip_interface("2001:db8::1/64"), ip_interface("127.0.0.1/29")]


class Injecting(NamedTuple):
    node: Node
    raw: RawPeer
    tap: socket.socket
    far: socket.socket


@pytest.fixture
def injecting(fabric: Fabric) -> Iterator[Injecting]:
    tap, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tap, far:
        tap.setblocking(False)
        far.settimeout(10)
        node, raw = fabric.add_node(1), fabric.add_raw_peer(3)
        ports = [sock.getsockname()[1] for sock in node.transmit_sockets]
        node.worker.set_tunnel_gso(tap.fileno(), TAP_MAC, ports, [], LINKS)
        fabric.publish()
        yield Injecting(node, raw, tap, far)


def send(injecting: Injecting, packet: Packet, gso: int) -> None:
    injecting.node.host.peer.inject(packet.build(), superframe_header(packet, gso))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", [TCP_NUMBER, UDP_NUMBER])
def test_frame_and_header(injecting: Injecting, family: int, protocol: int) -> None:
    packet = superframe(family, protocol, 40000, (1, 5), (3, 6), flags=ACK | CWR | ECE, tos=2)
    send(injecting, packet, 1350)
    data = injecting.far.recv(70000)
    flags, kind, hdr_len, gso, start, offset = struct.unpack_from("=BBHHHH", data)
    outer_transport, inner_network = struct.unpack_from("=HH", data, 20)
    frame = data[24:]
    assert flags == 1 | 8
    assert kind == superframe_header(packet, 0).gso_type | 0x20
    assert (gso, offset) == (1350, 16 if protocol == TCP_NUMBER else 6)
    assert (outer_transport, inner_network) == (34, 64)
    assert start == inner_network + packet.l4
    assert hdr_len == inner_network + packet.header_length
    assert frame[inner_network:] == packet.build(), "the superframe itself is not touched"

    ether = Ether(frame[:inner_network])
    assert ether.dst == TAP_MAC.hex(":")
    outer, udp = ether[IP], ether[UDP]
    assert (outer.src, outer.dst, outer.proto, outer.tos, int(outer.flags)) == ("127.0.0.1", "127.0.0.3", 17, 2, 0)
    assert outer.ttl == 65, "the kernel forwards it once"
    assert outer.len == len(frame) - 14
    assert inet_sum(frame[14:34]) == 0xFFFF
    assert udp.dport == injecting.node.port
    assert udp.sport in {sock.getsockname()[1] for sock in injecting.node.transmit_sockets}
    assert udp.len == len(frame) - 34
    assert udp.chksum == inet_sum(frame[26:34] + struct.pack("!HH", 17, udp.len)), "partial: the pseudo-header's sum"
    vxlan = VXLAN(frame[42:inner_network])
    assert (int(vxlan.flags), vxlan.vni, vxlan.reserved1, vxlan.reserved2) == (8, 1, 0, 0)
    assert frame[50:62] == node_mac(3) + node_mac(1)
    assert frame[62:64] == (b"\x08\0" if family == 4 else b"\x86\xdd")
    wait_for(lambda: injecting.node.count("send_injected") == 1)
    assert injecting.raw.receive_all() == []


def test_refusal_falls_back_without_loss(injecting: Injecting) -> None:
    injecting.far.close()
    packet = superframe(4, TCP_NUMBER, 13700, (1, 5), (3, 6))
    for _ in range(2):
        send(injecting, packet, 1370)
        assert [injecting.raw.receive()[22:] for _ in range(10)] == naive_split(packet, 1370)
    wait_for(lambda: injecting.node.count("send_injected") == 0)
    assert injecting.node.drops() == {}


def test_a_vtep_behind_a_router_gets_segments(injecting: Injecting, fabric: Fabric) -> None:
    far = fabric.add_raw_peer(9)
    fabric.publish()
    packet = superframe(4, TCP_NUMBER, 13700, (1, 5), (9, 6))
    send(injecting, packet, 1370)
    assert [far.receive()[22:] for _ in range(10)] == naive_split(packet, 1370)
    assert injecting.node.count("send_injected") == 0


def test_single_packets_do_not_take_this_way(injecting: Injecting) -> None:
    packet = make(4, (1, 5), (3, 6))
    injecting.node.host.peer.inject(packet)
    assert injecting.raw.receive()[22:] == packet


def test_too_long_for_the_outer_header_is_cut(injecting: Injecting) -> None:
    packet = superframe(4, TCP_NUMBER, 65535 - 52, (1, 5), (3, 6))
    send(injecting, packet, 1370)
    expected = naive_split(packet, 1370)
    assert [injecting.raw.receive()[22:] for _ in expected] == expected


def test_rules_come_first(injecting: Injecting) -> None:
    packet = superframe(4, TCP_NUMBER, 13700, (1, 5), (3, 6))
    send(injecting, packet, 1441)
    injecting.node.wait_drop("too_big")
    wait_for(lambda: injecting.node.count("send_injected") == 0)
