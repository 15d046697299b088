"""An IP packet out of a 5-tuple. Pure.

IPv4 with DF unless it may be cut, TTL 64, identification 0; TCP without options; a payload of zeros. Checksums are
those of RFC 791, 768, 9293 and 4443; SCTP's is left 0, as nothing on the way looks at it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fabric.capture.comments import checksum
from fabric.who import Address

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
PROTOCOLS = {"icmp": ICMP, "tcp": TCP, "udp": UDP, "icmpv6": ICMPV6, "sctp": SCTP}
HEADERS = {ICMP: 8, TCP: 20, UDP: 8, ICMPV6: 8, SCTP: 12}
FLAGS = "FSRPAUEC"
"""TCP flags, the lowest bit first."""
SPORT = 40_000
MOST = 65_535
_DF = 0x4000


@dataclass(frozen=True, slots=True)
class Tuple5:
    """`protocol` is a number, `dport` of ICMP its type, `size` that of the packet in bytes, 0 for the smallest."""

    source: Address
    target: Address
    protocol: int
    dport: int = 0
    sport: int = SPORT
    size: int = 0
    flags: int = 2
    ttl: int = 64
    may_cut: bool = False


def build(wanted: Tuple5) -> bytes:
    """The packet. Raises ValueError for a size that no such packet has."""
    six = wanted.source.version == 6
    head = 40 if six else 20
    least = head + HEADERS.get(wanted.protocol, 0)
    size = wanted.size or least
    if not least <= size <= MOST:
        raise ValueError(f"such a packet has {least} to {MOST} bytes, not {size}")
    body = _transport(wanted, size - head)
    if six:
        first = struct.pack(">IHBB", 6 << 28, size - 40, wanted.protocol, wanted.ttl)
        return first + wanted.source.packed + wanted.target.packed + body
    first = struct.pack(">BBHHHBBH", 0x45, 0, size, 0, 0 if wanted.may_cut else _DF, wanted.ttl, wanted.protocol, 0)
    first += wanted.source.packed + wanted.target.packed
    return first[:10] + struct.pack(">H", checksum(first)) + first[12:] + body


def _transport(wanted: Tuple5, size: int) -> bytes:
    ports = struct.pack(">HH", wanted.sport, wanted.dport)
    if wanted.protocol == TCP:
        head, at = ports + struct.pack(">IIBBHHH", 0, 0, 5 << 4, wanted.flags, 64_240, 0, 0), 16
    elif wanted.protocol == UDP:
        head, at = ports + struct.pack(">HH", size & 0xFFFF, 0), 6
    elif wanted.protocol in (ICMP, ICMPV6):
        head, at = struct.pack(">BBHHH", wanted.dport, 0, 0, wanted.sport, 1), 2
    elif wanted.protocol == SCTP:
        return (ports + bytes(8)).ljust(size, b"\0")
    else:
        return bytes(size)
    body = head.ljust(size, b"\0")
    pseudo = b"" if wanted.protocol == ICMP else _pseudo(wanted, size)
    total = checksum(pseudo + body + bytes(len(body) % 2))
    if wanted.protocol == UDP and total == 0:
        total = 0xFFFF  # 0 says that there is none (RFC 768)
    return body[:at] + struct.pack(">H", total) + body[at + 2 :]


def _pseudo(wanted: Tuple5, size: int) -> bytes:
    ends = wanted.source.packed + wanted.target.packed
    if wanted.source.version == 6:
        return ends + struct.pack(">II", size, wanted.protocol)
    return ends + struct.pack(">HH", wanted.protocol, size)
