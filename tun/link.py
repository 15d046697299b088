"""Link settings by name in the calling thread's network namespace, with plain ioctls and two netlink messages.

Kept free of pyroute2, which takes longer to import than a device takes to make; routes and addresses are its matter.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCGIFMTU = 0x8921
SIOCSIFMTU = 0x8922
SIOCGIFTXQLEN = 0x8942
SIOCSIFTXQLEN = 0x8943
IFF_UP = 0x0001

_RTM_NEWLINK = 16
_RTM_GETLINK = 18
_NLM_F_REQUEST = 1
_NLM_F_ACK = 4
_NLMSG_ERROR = 2
_IFLA_IFNAME = 3
_IFLA_LINKINFO = 18
_IFLA_NET_NS_FD = 28
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
# include/uapi/linux/if_link.h, IFLA_TUN_*
_TUN_TYPE, _TUN_PERSIST, _TUN_MULTI_QUEUE, _TUN_NUM_QUEUES, _TUN_NUM_DISABLED = 3, 6, 7, 8, 9

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")


class TunInfo(NamedTuple):
    """What the kernel says about a TUN/TAP device: `kind` is "tun" or "tap", `queues` counts attached ones."""

    kind: str
    persistent: bool
    multi_queue: bool
    queues: int


def get_mtu(name: str) -> int:
    return _get(name, SIOCGIFMTU, "i")


def set_mtu(name: str, mtu: int) -> None:
    _ioctl(name, SIOCSIFMTU, struct.pack("i", mtu))


def get_txqueuelen(name: str) -> int:
    return _get(name, SIOCGIFTXQLEN, "i")


def set_txqueuelen(name: str, packets: int) -> None:
    _ioctl(name, SIOCSIFTXQLEN, struct.pack("i", packets))


def is_up(name: str) -> bool:
    return bool(_get(name, SIOCGIFFLAGS, "H") & IFF_UP)


def set_up(name: str, up: bool = True) -> None:
    flags = _get(name, SIOCGIFFLAGS, "H")
    _ioctl(name, SIOCSIFFLAGS, struct.pack("H", flags | IFF_UP if up else flags & ~IFF_UP))


def exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _get(name: str, request: int, layout: str) -> int:
    value: int = struct.unpack_from(layout, _ioctl(name, request, b""), 16)[0]
    return value


def _ioctl(name: str, request: int, value: bytes) -> bytes:
    argument = name.encode("utf-8", "surrogateescape").ljust(16, b"\0") + value.ljust(24, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        return fcntl.ioctl(control.fileno(), request, argument)


def tun_info(name: str) -> TunInfo | None:
    """The device's TUN/TAP attributes; None when there is none of this name or it is of another sort."""
    if not exists(name):
        return None
    reply = _request(_RTM_GETLINK, 0, _IFINFO.pack(0, 0, socket.if_nametoindex(name), 0, 0))
    link = dict(_attributes(reply[_IFINFO.size :]))
    info = dict(_attributes(link.get(_IFLA_LINKINFO, b"")))
    if info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") != b"tun" or _IFLA_INFO_DATA not in info:
        return None
    data = dict(_attributes(info[_IFLA_INFO_DATA]))

    def number(attribute: int) -> int:
        return int.from_bytes(data.get(attribute, b""), "little")

    return TunInfo(
        kind="tap" if number(_TUN_TYPE) == 2 else "tun",
        persistent=bool(number(_TUN_PERSIST)),
        multi_queue=bool(number(_TUN_MULTI_QUEUE)),
        queues=number(_TUN_NUM_QUEUES) + number(_TUN_NUM_DISABLED),
    )


def move(name: str, netns_fd: int, new_name: str) -> None:
    """Moves a device to another network namespace under `new_name` in one step; OSError (EEXIST: name taken there)."""
    attributes = _attribute(_IFLA_NET_NS_FD, struct.pack("=I", netns_fd))
    attributes += _attribute(_IFLA_IFNAME, new_name.encode() + b"\0")
    _request(_RTM_NEWLINK, _NLM_F_ACK, _IFINFO.pack(0, 0, socket.if_nametoindex(name), 0, 0) + attributes)


def _attribute(kind: int, value: bytes) -> bytes:
    data = struct.pack("=HH", 4 + len(value), kind) + value
    return data.ljust((len(data) + 3) & ~3, b"\0")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def _request(kind: int, flags: int, body: bytes) -> bytes:
    """Sends one rtnetlink request; the body of the reply, empty for an acknowledgement. OSError for a refusal."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(5)
        netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 1, 0) + body)
        reply = netlink.recv(65536)
    length, reply_kind, _, _, _ = _HEADER.unpack_from(reply)
    if reply_kind != _NLMSG_ERROR:
        return reply[_HEADER.size : length]
    error = -struct.unpack_from("=i", reply, _HEADER.size)[0]
    if error:
        raise OSError(error, os.strerror(error))
    return b""
