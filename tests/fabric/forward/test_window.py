"""Frames and datagrams wait for each other between their checks and their way: none is lost, changed or overtaken."""

from __future__ import annotations

import random
import struct

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from tests.fabric.forward.harness import PLAIN, Fabric, HarnessPort, address4, wait_for
from tests.fabric.forward.packets import wire_packets

COUNT = 300
ENCAPSULATION = 22  # VXLAN and inner Ethernet header


def numbered(number: int, source: str, target: str, size: int) -> bytes:
    body = struct.pack("!I", number) + bytes([number & 0xFF]) * size
    return bytes(IP(src=source, dst=target) / UDP(sport=1000 + number % 5, dport=2) / Raw(body))


def number_of(packet: bytes) -> int:
    return int.from_bytes(packet[28:32], "big")


@pytest.mark.parametrize("seed", range(4))
def test_frames_of_a_port(seed: int) -> None:
    """Small and long ones, some for nobody and some broken, faster than they are forwarded."""
    chance = random.Random(seed)
    with Fabric() as fabric:
        node, peer = fabric.add_node(1), fabric.add_raw_peer(2)
        fabric.publish()
        wanted = []
        for number in range(COUNT):
            kind = chance.choice(["small", "small", "small", "long", "nobody", "broken"])
            size = chance.randrange(1300, 1400) if kind == "long" else chance.randrange(200)
            packet = numbered(number, address4(1, 5), "203.0.113.9" if kind == "nobody" else address4(2, 6), size)
            if kind == "broken":
                packet = packet[:2] + b"\xff\xff" + packet[4:]
            elif kind != "nobody":
                wanted.append(packet)
            node.host.peer.inject(packet, PLAIN)
        found = [peer.receive()[ENCAPSULATION:] for _ in wanted]
    assert sorted(found, key=number_of) == wanted
    for flow in range(5):
        numbers = [number_of(packet) for packet in found if number_of(packet) % 5 == flow]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("seed", range(4))
def test_datagrams_of_a_peer(seed: int) -> None:
    """For two ports, for nobody, with a wrong VNI and cut short."""
    chance = random.Random(seed)
    with Fabric() as fabric:
        node, peer = fabric.add_node(1), fabric.add_raw_peer(2)
        pod = node.add_pod(7)
        fabric.publish()
        wanted: dict[int, list[int]] = {6: [], 7: []}
        for number in range(COUNT):
            host = chance.choice([6, 7])
            kind = chance.choice(["good", "good", "good", "nobody", "vni", "short"])
            target = "203.0.113.9" if kind == "nobody" else address4(1, host)
            payload = peer.wrap(node, numbered(number, address4(2, 5), target, chance.randrange(900)))
            if kind == "vni":
                payload = payload[:4] + b"\0\0\x63\0" + payload[8:]
            elif kind == "short":
                payload = payload[: chance.randrange(50)]
            elif kind == "good":
                wanted[host].append(number)
            peer.send(node, payload)
        for host, port in ((6, node.host), (7, pod)):
            found: list[int] = []

            def all_came(port: HarnessPort = port, found: list[int] = found, count: int = len(wanted[host])) -> bool:
                found.extend(number_of(packet) for packet in wire_packets(port.take_all()))
                return len(found) >= count

            wait_for(all_came)
            for flow in range(5):
                assert [n for n in found if n % 5 == flow] == [n for n in wanted[host] if n % 5 == flow]
            assert sorted(found) == wanted[host]
