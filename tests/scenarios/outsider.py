"""A stranger on the underlay: frames built byte by byte, with any source it likes.

Layouts: Ethernet | IPv4 (RFC 791) or IPv6 (RFC 8200) | UDP | VXLAN (RFC 7348) | Ethernet | IP packet.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address

from fabric.lab import Lab
from fabric.lab.plan import UNDERLAY, UNDERLAY_BRIDGE
from tests.scenarios import inside

NAME = "fablab-outsider"
ADDRESS, ADDRESS6 = "192.0.2.99", "2001:db8:0:1::99"
PORT = 8472
MARK = b"from-the-outsider"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ones_sum(data: bytes) -> int:
    """16-bit one's complement sum (RFC 1071), not inverted."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4(source: str, target: str, payload: bytes, protocol: int = 17, *, tos: int = 0, word: int = 0) -> bytes:
    """An IPv4 packet without options; `word` is flags and fragment offset."""
    head = struct.pack("!BBHHHBBH", 0x45, tos, 20 + len(payload), 1, word, 64, protocol, 0)
    head += ip_address(source).packed + ip_address(target).packed
    return head[:10] + struct.pack("!H", ones_sum(head) ^ 0xFFFF) + head[12:] + payload


def ipv6(source: str, target: str, payload: bytes, protocol: int = 17) -> bytes:
    """An IPv6 packet."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    return head + ip_address(source).packed + ip_address(target).packed + payload


def udp(source: str, target: str, payload: bytes, sport: int = 5000, dport: int = 7) -> bytes:
    """A UDP datagram with its checksum."""
    head = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    ends = ip_address(source).packed + ip_address(target).packed
    check = ones_sum(ends + struct.pack("!HH", 17, len(head) + len(payload)) + head + payload) ^ 0xFFFF
    return head[:6] + struct.pack("!H", check or 0xFFFF) + payload


def datagram(source: str, target: str, payload: bytes = MARK, *, dport: int = 7, tos: int = 0) -> bytes:
    """A whole IP packet with a UDP datagram."""
    body = udp(source, target, payload, dport=dport)
    return ipv6(source, target, body) if ":" in source else ipv4(source, target, body, tos=tos)


@dataclass(frozen=True, slots=True)
class Forgery:
    """One frame towards a node, by its parts; a correct one is what the node's real peer would send."""

    outer_source: str
    outer_target: str
    target_mac: bytes
    inner_target_mac: bytes
    inner_source_mac: bytes
    inner: bytes
    vni: int = 1
    flags: int = 0x08
    reserved: int = 0  # the 24 bits after the flags and the last 8, as one number of 32 bits
    ethertype: int = 0
    outer_tos: int = 0
    raw: bytes | None = None  # the whole UDP payload instead

    def but(self, **changes: object) -> Forgery:
        """The same with other parts."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def payload(self) -> bytes:
        """From the VXLAN header on."""
        if self.raw is not None:
            return self.raw
        kind = self.ethertype or (0x86DD if self.inner[:1] and self.inner[0] >> 4 == 6 else 0x0800)
        first = self.flags << 24 | self.reserved >> 8
        header = struct.pack("!II", first, self.vni << 8 | self.reserved & 0xFF)
        return header + self.inner_target_mac + self.inner_source_mac + struct.pack("!H", kind) + self.inner

    def frame(self) -> bytes:
        """What goes on the wire."""
        body = udp(self.outer_source, self.outer_target, self.payload(), 50_000, PORT)
        six = ":" in self.outer_source
        packet = (
            ipv6(self.outer_source, self.outer_target, body)
            if six
            else ipv4(self.outer_source, self.outer_target, body, tos=self.outer_tos)
        )
        return self.target_mac + b"\x02\0\0\0\0\x99" + struct.pack("!H", 0x86DD if six else 0x0800) + packet


def forge(lab: Lab, peer: str, victim: str, inner: bytes) -> Forgery:
    """A perfect imitation of what `peer` sends to `victim`."""
    family = 1 if inner[0] >> 4 == 6 else 0
    one, other = lab.node(peer), lab.node(victim)
    macs = {entry["subnets"][0]: entry["macs"] for entry in lab.control(victim, "peers")}
    own = {entry["subnets"][0]: entry["macs"] for entry in lab.control(peer, "peers")}
    link = inside.ip_json(other.netns, "link", "show", "dev", "eth0")[0]
    return Forgery(
        (one.underlay_ip, one.underlay_ip6)[family],
        (other.underlay_ip, other.underlay_ip6)[family],
        mac(link["address"]),
        mac(own[other.subnet][family]),
        mac(macs[one.subnet][family]),
        inner,
    )


@contextmanager
def outsider() -> Iterator[socket.socket]:
    """A namespace on the underlay that is no node; gives a packet socket on its eth0."""
    inside.host_ip("netns", "add", NAME)
    try:
        inside.ip(UNDERLAY, "link", "add", "outsider", "type", "veth", "peer", "name", "eth0", "netns", NAME)
        inside.ip(UNDERLAY, "link", "set", "outsider", "master", UNDERLAY_BRIDGE, "up")
        inside.ip(NAME, "link", "set", "eth0", "up")
        inside.ip(NAME, "addr", "add", f"{ADDRESS}/24", "dev", "eth0")
        inside.ip(NAME, "addr", "add", f"{ADDRESS6}/64", "dev", "eth0", "nodad")
        with inside.open_socket(NAME, socket.AF_PACKET, socket.SOCK_RAW) as sock:
            inside.call(NAME, lambda: sock.bind(("eth0", 0)))
            yield sock
    finally:
        inside.host_ip("netns", "del", NAME)


class Sniffers:
    """Everything that arrives in namespaces with MARK in it."""

    def __init__(self, places: Sequence[tuple[str, str]]) -> None:
        """`places` are namespaces with a device."""
        self._sockets = []
        for netns, device in places:
            sock = inside.open_socket(netns, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # ETH_P_ALL
            sock.setsockopt(socket.SOL_SOCKET, inside.SO_RCVBUFFORCE, 16 << 20)
            sock.setblocking(False)
            inside.call(netns, lambda sock=sock, device=device: sock.bind((device, 3)))  # type: ignore[misc]
            self._sockets.append((netns, sock))

    def seen(self) -> list[tuple[str, bytes]]:
        """(namespace, packet) of all marked packets since the last call, in whichever direction they went."""
        found = []
        for netns, sock in self._sockets:
            while True:
                try:
                    packet = sock.recv(65_536)
                except BlockingIOError:
                    break
                if MARK in packet:
                    found.append((netns, packet))
        return found

    def close(self) -> None:
        for _, sock in self._sockets:
            sock.close()
