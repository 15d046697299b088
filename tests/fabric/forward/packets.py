"""Inner packets for the worker's tests, made by scapy, and what a port wrote as the packets it stands for."""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6TimeExceeded, IPv6
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from tests.fabric.forward.harness import address4, address6
from tests.tun.packets import Packet
from tun.port import Frame
from tun.split import split
from tun.vnet import VNET_NEEDS_CSUM


def udp4(source: str, destination: str, payload: bytes = b"x" * 32, **fields: object) -> bytes:
    """IPv4 UDP; `fields` are scapy's of the IP header, `sport` and `dport` apart."""
    ports = {name: fields.pop(name) for name in ("sport", "dport") if name in fields}
    transport = UDP(**{"sport": 4000, "dport": 5000} | ports)
    return bytes(IP(src=source, dst=destination, **fields) / transport / Raw(payload))


def udp6(source: str, destination: str, payload: bytes = b"x" * 32, **fields: object) -> bytes:
    """IPv6 UDP; `fields` as for udp4."""
    ports = {name: fields.pop(name) for name in ("sport", "dport") if name in fields}
    transport = UDP(**{"sport": 4000, "dport": 5000} | ports)
    return bytes(IPv6(src=source, dst=destination, **fields) / transport / Raw(payload))


def echo4(source: str, destination: str, payload: bytes = b"ping" * 8, **fields: object) -> bytes:
    return bytes(IP(src=source, dst=destination, **fields) / ICMP(id=7, seq=1) / Raw(payload))


def echo6(source: str, destination: str, payload: bytes = b"ping" * 8, **fields: object) -> bytes:
    return bytes(IPv6(src=source, dst=destination, **fields) / ICMPv6EchoRequest(id=7, seq=1, data=payload))


def tcp4(source: str, destination: str, payload: bytes = b"x" * 32, **fields: object) -> bytes:
    return bytes(IP(src=source, dst=destination, **fields) / TCP(sport=4000, dport=80, flags="A", seq=1) / Raw(payload))


def make(family: int, source: tuple[int, int], destination: tuple[int, int], payload: bytes = b"x" * 32) -> bytes:
    """UDP from (node, host) to (node, host)."""
    if family == 4:
        return udp4(address4(*source), address4(*destination), payload)
    return udp6(address6(*source), address6(*destination), payload)


def superframe(
    family: int, protocol: int, size: int, source: tuple[int, int], to: tuple[int, int], **more: object
) -> Packet:
    """A TCP or UDP superframe with `size` payload bytes and a partial checksum."""
    pick = address4 if family == 4 else address6
    payload = bytes((i * 7 + i // 251) & 0xFF for i in range(size))
    fields = {"source": pick(*source), "destination": pick(*to), "check": "partial"} | more
    return Packet(family, protocol, payload, **fields)  # type: ignore[arg-type]


def inner(data: bytes) -> Scapy:
    """Scapy's view of an IP packet."""
    return IP(data) if data[0] >> 4 == 4 else IPv6(data)


def wire_packets(frames: list[Frame]) -> list[bytes]:
    """The packets that frames written to a port stand for: superframes cut."""
    found: list[bytes] = []
    for header, frame in frames:
        if header.gso_type:
            found.extend(split(frame, header))
        else:
            assert not header.flags & VNET_NEEDS_CSUM, "an ordinary packet from the wire has a finished checksum"
            found.append(frame)
    return found


def icmp6_time_exceeded(source: str, destination: str, **fields: object) -> bytes:
    return bytes(IPv6(src=source, dst=destination, **fields) / ICMPv6TimeExceeded() / Raw(b"q" * 48))
