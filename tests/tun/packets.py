"""Packets for the tests of `tun`, built field by field, and a naive splitter: the twin of the compiled one."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, replace

from tun.vnet import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VNET_NEEDS_CSUM, VnetHeader

TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
DF, MF, RESERVED = 0x4000, 0x2000, 0x8000
TIMESTAMP = bytes.fromhex("0101080a0000000100000002")


def inet_sum(data: bytes) -> int:
    total = 0
    for i in range(0, len(data), 2):
        total += int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Packet:
    """One TCP or UDP packet; `build` gives its bytes. `check`: full, partial, bad or zero."""

    family: int = 4
    protocol: int = TCP
    payload: bytes = b""
    source: str = ""
    destination: str = ""
    sport: int = 40000
    dport: int = 80
    seq: int = 1000
    ack: int = 2000
    flags: int = ACK
    window: int = 500
    urgent: int = 0
    options: bytes = TIMESTAMP
    tos: int = 0
    ttl: int = 64
    ident: int = 7
    fragment: int = DF
    flow_label: int = 0x12345
    ip_options: bytes = b""
    extension: bytes = b""  # IPv6 headers; the first is of type `extension_type`, the last has to name the protocol
    extension_type: int = 60
    check: str = "full"

    def addresses(self) -> tuple[bytes, bytes]:
        prefix = "192.0.2." if self.family == 4 else "2001:db8::"
        pair = (self.source or prefix + "1", self.destination or prefix + "2")
        return ipaddress.ip_address(pair[0]).packed, ipaddress.ip_address(pair[1]).packed

    @property
    def l4(self) -> int:
        return 20 + len(self.ip_options) if self.family == 4 else 40 + len(self.extension)

    @property
    def header_length(self) -> int:
        return self.l4 + (20 + len(self.options) if self.protocol == TCP else 8)

    def next(self, **changes: object) -> Packet:
        """The packet that follows directly, with some fields changed."""
        follow = replace(self, seq=(self.seq + len(self.payload)) % 2**32, ident=(self.ident + 1) & 0xFFFF)
        return replace(follow, **changes)  # type: ignore[arg-type]

    def _transport(self, check: int) -> bytes:
        if self.protocol == UDP:
            return struct.pack("!HHHH", self.sport, self.dport, 8 + len(self.payload), check)
        offset = (20 + len(self.options)) // 4 << 4
        fixed = struct.pack("!HHII", self.sport, self.dport, self.seq, self.ack)
        return fixed + struct.pack("!BBHHH", offset, self.flags, self.window, check, self.urgent) + self.options

    def _check(self) -> int:
        segment = self._transport(0) + self.payload
        pseudo = b"".join(self.addresses()) + struct.pack("!II", self.protocol, len(segment))
        if self.check == "zero":
            return 0
        if self.check == "partial":
            return inet_sum(pseudo)
        full = inet_sum(pseudo + segment) ^ 0xFFFF
        if self.check == "bad":
            return next(full ^ flip for flip in (0x0101, 0x0202) if full ^ flip not in (0, inet_sum(pseudo)))
        return 0xFFFF if full == 0 and self.protocol == UDP else full

    def build(self) -> bytes:
        segment = self._transport(self._check()) + self.payload
        source, destination = self.addresses()
        if self.family == 6:
            word = 6 << 28 | self.tos << 20 | self.flow_label
            next_header = self.extension_type if self.extension else self.protocol
            size = len(self.extension) + len(segment)
            fixed = struct.pack("!IHBB", word, size, next_header, self.ttl)
            return fixed + source + destination + self.extension + segment
        words = (0x45 + len(self.ip_options) // 4, self.tos, self.l4 + len(segment), self.ident, self.fragment)
        header = struct.pack("!BBHHHBBH", *words, self.ttl, self.protocol, 0) + source + destination + self.ip_options
        return header[:10] + struct.pack("!H", inet_sum(header) ^ 0xFFFF) + header[12:] + segment


def destination_options(protocol: int, words: int = 0) -> bytes:
    """One IPv6 destination options header of 8 * (words + 1) bytes, padded with PadN."""
    size = 8 * (words + 1) - 4
    return bytes([protocol, words, 1, size]) + bytes(size)


def superframe_header(packet: Packet, gso_size: int) -> VnetHeader:
    """What the kernel puts before this packet when it is a superframe."""
    kind = GSO_UDP_L4 if packet.protocol == UDP else (GSO_TCPV4 if packet.family == 4 else GSO_TCPV6)
    offset = 6 if packet.protocol == UDP else 16
    return VnetHeader(VNET_NEEDS_CSUM, kind, packet.header_length, gso_size, packet.l4, offset)


def naive_split(packet: Packet, gso_size: int) -> list[bytes]:
    """Segments of a superframe, each built from scratch."""
    pieces = [packet.payload[i : i + gso_size] for i in range(0, len(packet.payload), gso_size)]
    segments = []
    for i, piece in enumerate(pieces):
        flags = packet.flags
        if i:
            flags &= ~CWR
        if i + 1 < len(pieces):
            flags &= ~(FIN | PSH)
        seq, ident = (packet.seq + i * gso_size) % 2**32, (packet.ident + i) & 0xFFFF
        segments.append(replace(packet, payload=piece, flags=flags, seq=seq, ident=ident, check="full").build())
    return segments
