"""Trains: equal datagrams to one VTEP that the kernel still has in one piece where a packet socket sees them. Pure.

UDP_SEGMENT sends them so, UDP_GRO joins them so. What the socket shows is one datagram of up to 64 KB; taken apart it
is what the wire has. Where one ends says the first one's inner IP length: all are as long, but the last, and each
agrees with its own. The outer lengths and the IP checksum are made anew, the UDP checksum is left out (0).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from fabric.capture.comments import checksum
from fabric.capture.pcapng import ETHERNET

TUNNEL = {"vxlan": 22, "udp": 0}
"""Bytes before the inner packet, by format: VXLAN and Ethernet, or nothing."""


class Piece(NamedTuple):
    """One datagram of a train with its outer headers: what was captured of it, and its length."""

    data: bytes
    length: int


class _Place(NamedTuple):
    """Offsets in a frame: outer IP, UDP's payload, where that ends; `head` bytes before each inner packet."""

    ip: int
    payload: int
    end: int
    head: int


def split(data: bytes, length: int, link: int, ports: Mapping[str, int]) -> list[Piece]:
    """The datagrams of a frame; the frame as it is where it is no train for certain."""
    whole = [Piece(data, length)]
    place = _place(data, link, ports)
    if place is None:
        return whole
    size = _size(data, place.payload, place.head)
    if not size or place.payload + size >= place.end:
        return whole
    mark = data[place.payload : place.payload + min(8, place.head)]
    pieces = []
    for start in range(place.payload, place.end, size):
        body = data[start : start + size]
        wire = min(size, place.end - start)
        if len(body) > place.head + 6 and not (body.startswith(mark) and _size(data, start, place.head) == wire):
            return whole
        pieces.append(Piece(_outer(data, place, wire) + body, place.payload + wire))
    return pieces


def _place(data: bytes, link: int, ports: Mapping[str, int]) -> _Place | None:
    ip = 14 if link == ETHERNET else 0
    if len(data) < ip + 48:
        return None
    if data[ip] >> 4 == 4:
        header, protocol = (data[ip] & 15) * 4, data[ip + 9]
        total, later = struct.unpack_from(">H", data, ip + 2)[0], struct.unpack_from(">H", data, ip + 6)[0] & 0x3FFF
    else:
        header, protocol, later = 40, data[ip + 6], 0
        total = 40 + struct.unpack_from(">H", data, ip + 4)[0]
    if protocol != 17 or later or header < 20:
        return None
    port = struct.unpack_from(">H", data, ip + header + 2)[0]
    head = next((TUNNEL[form] for form, known in ports.items() if known == port and form in TUNNEL), None)
    return None if head is None else _Place(ip, ip + header + 8, ip + total, head)


def _size(data: bytes, payload: int, head: int) -> int:
    """Bytes of the datagram's payload that begins there, 0 when that cannot be seen."""
    inner = payload + head
    if len(data) < inner + 6:
        return 0
    if data[inner] >> 4 == 4:
        total: int = struct.unpack_from(">H", data, inner + 2)[0]
        return head + total if total >= 20 else 0
    if data[inner] >> 4 == 6:
        return head + 40 + int(struct.unpack_from(">H", data, inner + 4)[0])
    return 0


def _outer(data: bytes, place: _Place, wire: int) -> bytes:
    """The headers in front of a payload of `wire` bytes."""
    head = bytearray(data[: place.payload])
    udp = place.payload - 8
    struct.pack_into(">HH", head, udp + 4, 8 + wire, 0)
    if data[place.ip] >> 4 == 6:
        struct.pack_into(">H", head, place.ip + 4, 8 + wire)
        return bytes(head)
    struct.pack_into(">H", head, place.ip + 2, place.payload - place.ip + wire)
    struct.pack_into(">H", head, place.ip + 10, 0)
    struct.pack_into(">H", head, place.ip + 10, checksum(bytes(head[place.ip : udp])))
    return bytes(head)
