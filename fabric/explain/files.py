"""One packet out of a pcap or pcapng file (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng).

Both byte orders, both time resolutions, any number of sections and interfaces. Only what leads to the wanted packet is
read, block by block, so a file may be of any size and may still be written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from fabric.errors import FabricError

ETHERNET, RAW, NULL, LOOP, COOKED, COOKED2 = 1, 101, 0, 108, 113, 276
IP = (12, 14, RAW, 228, 229)
BEFORE_IP = {NULL: 4, LOOP: 4, COOKED: 16, COOKED2: 20, **dict.fromkeys(IP, 0)}
"""LINKTYPE and how many bytes stand before the IP header; Ethernet apart."""
MAX_BLOCK = 1 << 24
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 3, 6


class Captured(NamedTuple):
    """`length` is the packet's own, `data` what the file has of it, of this LINKTYPE."""

    link: int
    data: bytes
    length: int
    interface: str = ""


class CaptureError(FabricError):
    """The file is no capture, damaged, or has no such packet."""


def packet_at(file: BinaryIO, number: int) -> Captured:
    """The packet with this number, 1 for the first. Raises CaptureError, OSError."""
    seen = 0
    for seen, captured in enumerate(_packets(file), 1):
        if seen == number:
            return captured
    if not seen:
        raise CaptureError("the file has no packets")
    raise CaptureError(f"there is no packet {number}: the file has {seen}")


def network_packet(captured: Captured) -> tuple[bytes, bool]:
    """What the daemon takes: an IP packet, or an Ethernet frame and True. Raises CaptureError for other links."""
    if captured.link == ETHERNET:
        return captured.data, True
    skip = BEFORE_IP.get(captured.link)
    if skip is None:
        raise CaptureError(
            f"packets of link type {captured.link} cannot be explained: only IP, Ethernet and Linux's own"
        )
    return captured.data[skip:], False


def _packets(file: BinaryIO) -> Iterator[Captured]:
    magic = file.read(4)
    if magic == b"\x0a\x0d\x0d\x0a":
        yield from _pcapng(file)
        return
    order = {
        b"\xd4\xc3\xb2\xa1": "<",
        b"\x4d\x3c\xb2\xa1": "<",
        b"\xa1\xb2\xc3\xd4": ">",
        b"\xa1\xb2\x3c\x4d": ">",
    }.get(magic)
    if order is None:
        raise CaptureError("this is neither a pcap nor a pcapng file")
    link = struct.unpack(f"{order}I", _exactly(file, 20)[16:])[0] & 0xFFFF
    while head := file.read(16):
        if len(head) < 16:
            raise CaptureError("the file ends within a packet")
        size, length = struct.unpack(f"{order}II", head[8:])
        yield Captured(link, _exactly(file, size), length)


def _pcapng(file: BinaryIO) -> Iterator[Captured]:
    order = _section(file)
    interfaces: list[tuple[int, str]] = []
    while head := file.read(8):
        if head[:4] == b"\x0a\x0d\x0d\x0a":
            order, interfaces = _section(file, head[4:]), []
            continue
        if len(head) < 8:
            raise CaptureError("the file ends within a block")
        kind, size = struct.unpack(f"{order}II", head)
        if not 12 <= size <= MAX_BLOCK or size % 4:
            raise CaptureError(f"a block says that it has {size} bytes: the file is damaged")
        body = _exactly(file, size - 8)[:-4]
        if kind == _INTERFACE and len(body) >= 8:
            interfaces.append((struct.unpack_from(f"{order}H", body)[0], _name(body[8:], order)))
        elif kind == _ENHANCED and len(body) >= 20:
            number, _, _, captured, length = struct.unpack_from(f"{order}IIIII", body)
            yield _of(interfaces, number, body[20 : 20 + captured], length)
        elif kind == _SIMPLE and len(body) >= 4:
            length = struct.unpack_from(f"{order}I", body)[0]
            yield _of(interfaces, 0, body[4 : 4 + length], length)


def _of(interfaces: list[tuple[int, str]], number: int, data: bytes, length: int) -> Captured:
    if number >= len(interfaces):
        raise CaptureError(f"a packet is of interface {number}, which the file does not describe")
    link, name = interfaces[number]
    return Captured(link, data, length, name)


def _section(file: BinaryIO, size: bytes = b"") -> str:
    """Read a section header behind its type; the byte order."""
    head = size + _exactly(file, 8 - len(size))
    order = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}.get(head[4:])
    if order is None:
        raise CaptureError("a section has no byte order mark: the file is damaged")
    length = struct.unpack(f"{order}I", head[:4])[0]
    if not 28 <= length <= MAX_BLOCK:
        raise CaptureError(f"a section header says that it has {length} bytes: the file is damaged")
    _exactly(file, length - 12)
    return order


def _name(options: bytes, order: str) -> str:
    """`if_name` of an interface block."""
    while len(options) >= 4:
        code, size = struct.unpack_from(f"{order}HH", options)
        if code == 2:
            return options[4 : 4 + size].decode(errors="replace")
        if code == 0:
            break
        options = options[4 + size + -size % 4 :]
    return ""


def _exactly(file: BinaryIO, size: int) -> bytes:
    if size > MAX_BLOCK:
        raise CaptureError(f"a packet says that it has {size} bytes: the file is damaged")
    data = file.read(size)
    if len(data) < size:
        raise CaptureError("the file ends within a packet")
    return data
