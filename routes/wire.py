"""rtnetlink messages that come by the thousand or again and again, packed and read field by field.

A look at 1,000 peers reads 3,000 objects, a first look makes as many. pyroute2 needs 70 to 100 microseconds to encode
one and 20 or more to decode it (0.9.7, Python 3.11); these functions need 1 to 4. And each message that it decodes is
a cycle of 200 objects: with a look every few seconds the daemon grew until the collector came, minutes later. So links
and addresses are read here, too; what has nested attributes and is rare (VXLAN devices, devices that are made) stays
with pyroute2 (codec.py). The CNI plugin, which starts for every pod, cannot wait for pyroute2 to load (ADR 16).
Layouts: linux/netlink.h, linux/neighbour.h, linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h.
"""

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

HEADER = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence number, port id."""
NEIGHBOUR = struct.Struct("=B3xiHBB")
"""ndmsg: family, interface index, state, flags, type."""
ROUTE = struct.Struct("=BBBBBBBBI")
"""rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags."""
LINK = struct.Struct("=BxHiII")
"""ifinfomsg: family, device type, interface index, flags, mask of the flags that are to change."""
ADDRESS = struct.Struct("=BBBBI")
"""ifaddrmsg: family, prefix length, flags, scope, interface index."""
ATTRIBUTE = struct.Struct("=HH")
"""nlattr: length with these four bytes, type. The next one begins at a multiple of four."""
NUMBER = struct.Struct("=I")
TYPE_MASK = 0x3FFF
"""Without the bits that say "nested" and "big endian"."""
NLM_F_CAPPED = 0x100
"""An error message has only the header of the request that it is about (NETLINK_CAP_ACK)."""
NLMSGERR_ATTR_MSG = 1


def attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """Attributes of a message by type, from `offset` to its end; of a type that is there twice, the last."""
    found = {}
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            break
        found[kind & TYPE_MASK] = data[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def text(kind: int, value: str) -> bytes:
    """An attribute with a text and its NUL."""
    return attribute(kind, value.encode() + b"\0")


def read_text(value: bytes | None) -> str:
    """A text up to its NUL; empty when it is not there."""
    return (value or b"").split(b"\0")[0].decode(errors="replace")


def explanation(data: bytes) -> str:
    """The kernel's words in an NLMSG_ERROR message (extended acknowledgement, Linux 4.12), empty without any."""
    _, _, flags, _, _ = HEADER.unpack_from(data)
    about = HEADER.size + NUMBER.size  # where the header of the refused request begins
    if len(data) < about + HEADER.size:
        return ""
    length = HEADER.size if flags & NLM_F_CAPPED else (HEADER.unpack_from(data, about)[0] + 3) & ~3
    return read_text(attributes(data, about + length).get(NLMSGERR_ATTR_MSG))


def number(value: bytes | None) -> int:
    """An unsigned 32-bit attribute; 0 when it is not there."""
    return int(NUMBER.unpack(value)[0]) if value else 0


def address(value: bytes) -> IPv4Address | IPv6Address:
    """4 or 16 bytes."""
    return IPv4Address(value) if len(value) == 4 else IPv6Address(value)


def network(value: bytes, length: int) -> IPv4Network | IPv6Network:
    return IPv4Network((value, length)) if len(value) == 4 else IPv6Network((value, length))
