"""pcapng blocks (draft-ietf-opsawg-pcapng): section, interfaces, packets with comments, statistics. Pure.

All numbers are little-endian; timestamps are nanoseconds. An interface's number is its place among those written.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

ETHERNET, RAW = 1, 101  # LINKTYPE_ETHERNET, LINKTYPE_RAW: the packet begins with its IP header
INBOUND, OUTBOUND = 1, 2
_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_COMMENT = 1
_MAX_OPTION = 60_000

Option = tuple[int, bytes]


def section(program: str) -> bytes:
    """The first block of a file."""
    return _block(_SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1), [(4, program.encode())])


def interface(name: str, link: int, snaplen: int, description: str = "", filter_text: str = "") -> bytes:
    """An interface: its name, LINKTYPE, longest packet, and what was asked of it."""
    options = [(2, name.encode()), (9, b"\x09")]
    if description:
        options.append((3, description.encode()))
    if filter_text:
        options.append((11, b"\0" + filter_text.encode()))
    return _block(_INTERFACE, struct.pack("<HHI", link, 0, snaplen), options)


def packet(
    number: int, time: int, data: bytes, length: int, comment: str = "", direction: int = 0
) -> bytes:
    """A packet seen by interface `number` at `time` (Unix nanoseconds), `length` bytes on the wire."""
    options: list[Option] = [(2, struct.pack("<I", direction))] if direction else []
    if comment:
        options.append((_COMMENT, comment.encode()[:_MAX_OPTION]))
    head = struct.pack("<IIIII", number, time >> 32, time & 0xFFFFFFFF, len(data), max(length, len(data)))
    return _block(_PACKET, head + _padded(data), options)


def statistics(number: int, time: int, received: int, lost: int) -> bytes:
    """How many packets interface `number` had, and how many were lost before they could be written."""
    options = [(4, struct.pack("<Q", received)), (5, struct.pack("<Q", lost))]
    return _block(_STATISTICS, struct.pack("<III", number, time >> 32, time & 0xFFFFFFFF), options)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes, options: Sequence[Option]) -> bytes:
    for code, value in options:
        body += struct.pack("<HH", code, len(value)) + _padded(value)
    if options:
        body += bytes(4)
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size
