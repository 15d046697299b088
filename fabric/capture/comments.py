"""What is said about a packet in a capture: verdict, reason, pod and peer; and outer headers for refused datagrams.

Pure. Packets are as anybody may have sent them: nothing here fails on one.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from encap.drops import TEXTS
from fabric.capture.pcapng import ETHERNET
from fabric.who import Names

Address = IPv4Address | IPv6Address
VXLAN_AND_ETHERNET = 22
MEMORY = 4096


class Commentator:
    """Names of pods and peers as they were at the start. `own` are our underlay addresses, `ports` the tunnels' UDP
    ports by format."""

    def __init__(
        self, pods: Sequence[Mapping[str, Any]], peers: Sequence[Mapping[str, Any]], own: Sequence[str],
        ports: Mapping[str, int],
    ) -> None:  # fmt: skip
        self._names = Names(pods, peers)
        self._publics = {
            ip_address(public): str(peer.get("node") or public) for peer in peers for public in peer["public"]
        }
        self._own = [ip_address(text) for text in own]
        self.ports = ports
        self._known: dict[tuple[Address, Address], str] = {}

    def passing(self, frame: bytes, link: int, underlay: bool, leaves: bool) -> str:
        """About a packet that an interface showed; `leaves` the data path there, or comes to it."""
        offset = inner_offset(frame, link, self.ports if underlay else {})
        ends = ends_of(frame[offset:]) if offset is not None else None
        parts = ["verdict: allowed"] if leaves else []
        return "; ".join([*parts, *([self._ends(ends)] if ends is not None and self._ends(ends) else [])])

    def refused(self, packet: Mapping[str, Any], inner: bytes, rule: str = "") -> str:
        """About a packet that was refused; `rule` is the policy rule that did, if one did."""
        reason = packet["reason"]
        parts = ["verdict: dropped", f"reason: {reason} ({TEXTS.get(reason.upper(), 'of another version')})"]
        if rule:
            parts.append(f"rule: {rule}")
        if packet["port"]:
            parts.append(f"from port: {packet['port']}")
        if packet["source"]:
            peer = self._publics.get(ip_address(packet["source"]))
            parts.append(f"from peer: {peer or 'none, ' + packet['source']}")
        ends = ends_of(inner)
        return "; ".join(parts + ([self._ends(ends)] if ends is not None and self._ends(ends) else []))

    def rebuilt(self, packet: Mapping[str, Any], payload: bytes) -> bytes:
        """The outer headers that the datagram had, as far as they are known: the source port is not."""
        source = ip_address(packet["source"])
        own = next((address for address in self._own if address.version == source.version), source)
        port, length = self.ports.get(packet["encapsulation"], 0), packet["length"] + 8
        udp = struct.pack(">HHHH", 0, port, min(length, 65535), 0)
        if source.version == 6:
            head = struct.pack(">IHBB", 6 << 28, min(length, 65535), 17, 64)
            return head + source.packed + own.packed + udp + payload
        head = struct.pack(">BBHHHBBH", 0x45, 0, min(length + 20, 65535), 0, 0x4000, 64, 17, 0)
        head += source.packed + own.packed
        return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + udp + payload

    def _ends(self, ends: tuple[Address, Address]) -> str:
        if ends not in self._known:
            if len(self._known) >= MEMORY:
                self._known.clear()
            pods = [name for end in ends if (name := self._names.pod(end))]
            peers = [name for end in ends if (name := self._names.peer(end))]
            words = [f"pod: {', '.join(pods)}"] if pods else []
            self._known[ends] = "; ".join(words + ([f"peer: {', '.join(peers)}"] if peers else []))
        return self._known[ends]


def inner_packet(packet: Mapping[str, Any], data: bytes) -> bytes:
    """The inner IP packet of a refused one, as far as there is one."""
    if packet["source"]:
        return data[VXLAN_AND_ETHERNET:] if packet["encapsulation"] == "vxlan" else data
    return data[14:] if packet["ethernet"] else data


def inner_offset(frame: bytes, link: int, ports: Mapping[str, int]) -> int | None:
    """Where the packet of interest begins: behind an Ethernet header, or behind a tunnel's on one of `ports`."""
    offset = 14 if link == ETHERNET else 0
    if not ports:
        return offset
    if len(frame) < offset + 28:
        return None
    version, header = frame[offset] >> 4, 40 if frame[offset] >> 4 == 6 else (frame[offset] & 15) * 4
    protocol = frame[offset + 6] if version == 6 else frame[offset + 9]
    offset += header
    if protocol != 17 or len(frame) < offset + 8:
        return None
    port = struct.unpack_from(">H", frame, offset + 2)[0]
    if port == ports.get("vxlan"):
        return offset + 8 + VXLAN_AND_ETHERNET
    return offset + 8 if port == ports.get("udp") else None


def ends_of(packet: bytes) -> tuple[Address, Address] | None:
    """Source and destination of an IP packet, None when it is none."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    return None


def flow_of(packet: bytes) -> tuple[str, str, str] | None:
    """Source, destination and port (`80/tcp`, `icmp`) of an IP packet as `policy.explain` takes them; None where that
    cannot be said: other protocols, later fragments, extension headers."""
    ends = ends_of(packet)
    if ends is None:
        return None
    six = packet[0] >> 4 == 6
    protocol, offset = (packet[6], 40) if six else (packet[9], (packet[0] & 15) * 4)
    if protocol in (1, 58):
        return str(ends[0]), str(ends[1]), "icmp"
    name = {6: "tcp", 17: "udp", 132: "sctp"}.get(protocol)
    later = not six and struct.unpack_from(">H", packet, 6)[0] & 0x1FFF
    if name is None or later or len(packet) < offset + 4:
        return None
    return str(ends[0]), str(ends[1]), f"{struct.unpack_from('>H', packet, offset + 2)[0]}/{name}"


def checksum(header: bytes) -> int:
    """Of an IPv4 header whose own checksum is 0 (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
