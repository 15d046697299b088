"""Offloads of a TUN/TAP device: constants, negotiation in order, kill switches, and a write test at start.

Constants are from include/uapi/linux/if_tun.h and hard-coded: installed headers are often older than the kernel.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
from collections.abc import Mapping, Sequence

from tun.errors import DeviceError
from tun.vnet import GSO_TCPV4, GSO_UDP_L4, VNET_NEEDS_CSUM, VnetHeader

TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNGETFEATURES = 0x800454CF
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETSNDBUF = 0x400454D4
TUNGETVNETHDRSZ = 0x800454D7
TUNSETVNETHDRSZ = 0x400454D8
TUNSETQUEUE = 0x400454D9
TUNGETDEVNETNS = 0x54E3
SIOCGIFHWADDR = 0x8927

IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_PERSIST = 0x0800
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40


class Features(enum.IntFlag):
    """What a port takes on write and may deliver on read (values are those of FEATURE_* in tun/vnet.pxd)."""

    NONE = 0
    CSUM = 1
    TSO = 2
    USO = 4
    ALL = 7


# Names of the kill switches, as the daemon's --offload takes them.
SWITCHES: Mapping[str, Features] = {"tun-tso": Features.TSO, "tun-uso": Features.USO}


def allowed_features(switches: Mapping[str, bool]) -> Features:
    """Features left by the kill switches: `tun-tso`, `tun-uso` set to False take one away; other names are ignored."""
    allowed = Features.ALL
    for name, feature in SWITCHES.items():
        if not switches.get(name, True):
            allowed &= ~feature
    return allowed


def offload_bits(features: Features) -> int:
    """The TUN_F_* argument of TUNSETOFFLOAD. The kernel grants USO only when both families are asked for."""
    bits = 0
    if features & Features.CSUM:
        bits |= TUN_F_CSUM
        if features & Features.TSO:
            bits |= TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
        if features & Features.USO:
            bits |= TUN_F_USO4 | TUN_F_USO6
    return bits


def candidates(allowed: Features) -> list[Features]:
    """What to ask the kernel for, best first: all allowed, then without USO (before Linux 6.2), then nothing."""
    if not allowed & Features.CSUM:
        return [Features.NONE]
    steps = [allowed, allowed & ~Features.USO, Features.NONE]
    return list(dict.fromkeys(steps))


def negotiate(fds: Sequence[int], allowed: Features = Features.ALL) -> Features:
    """Sets the best offloads the kernel takes on every queue in `fds` and returns them.

    Raises DeviceError when a queue has no device or a later queue refuses what the first one took.
    """
    for features in candidates(allowed):
        if all(_set_offload(fd, features) for fd in fds):
            return features
    raise DeviceError("set offloads on", "the device", "the kernel refuses even none", errno=errno.EINVAL)


def _set_offload(fd: int, features: Features) -> bool:
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, offload_bits(features))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise DeviceError("set offloads on", f"fd {fd}", error.strerror or "", errno=error.errno or 0) from None
    return True


def hardware_address(fd: int) -> bytes:
    """The MAC of the device behind a queue, in whatever namespace it is."""
    return fcntl.ioctl(fd, SIOCGIFHWADDR, bytes(40))[18:24]


def probe_write(fd: int, features: Features) -> Features:
    """Writes one small superframe per offload to the device, which must be up; returns `features` without the broken.

    Some stable kernels (6.6.44 and its time) refuse a superframe whose last segment is short, so the frame is 2.5
    segments long. Only EINVAL counts as broken. The frame is valid but harmless: its source is a multicast address
    (233.252.0.1, documentation range of RFC 6676), which routing drops as martian without any ICMP answer, even on a
    forwarding host without reverse path filter; its destination is 192.0.2.2 with TTL 1. On a TAP it goes to a MAC
    address that is not the device's.

    Raises DeviceError when the device is down or gone.
    """
    header_size = struct.unpack("i", fcntl.ioctl(fd, TUNGETVNETHDRSZ, bytes(4)))[0]
    flags = struct.unpack_from("H", fcntl.ioctl(fd, TUNGETIFF, bytes(40)), 16)[0]
    ethernet = bytes.fromhex("0200000000020200000000010800") if flags & IFF_TAP else b""
    working = features
    for feature, protocol in ((Features.TSO, 6), (Features.USO, 17)):
        if features & feature and not _write_accepted(fd, *probe_frame(protocol, ethernet), header_size):
            working &= ~feature
    return working


def _write_accepted(fd: int, header: VnetHeader, frame: bytes, header_size: int) -> bool:
    try:
        os.write(fd, header.emit().ljust(header_size, b"\0") + frame)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
            return True  # no memory now says nothing about the format
        why = "the device is down" if error.errno == errno.EIO else error.strerror or ""
        todo = "bring it up before the test" if error.errno == errno.EIO else ""
        raise DeviceError("test superframe writes on", f"fd {fd}", why, todo, error.errno or 0) from None
    return True


def probe_frame(protocol: int, ethernet: bytes = b"") -> tuple[VnetHeader, bytes]:
    """The test superframe (TCP 6 or UDP 17): 250 bytes of payload in segments of 100, partial transport checksum."""
    payload = bytes(250)
    if protocol == 6:
        length, gso_type, csum_offset = 20, GSO_TCPV4, 16
        transport = struct.pack("!HHIIBBHHH", 9, 9, 1, 1, 5 << 4, 0x10, 1024, 0, 0)
    else:
        length, gso_type, csum_offset = 8, GSO_UDP_L4, 6
        transport = struct.pack("!HHHH", 9, 9, 8 + len(payload), 0)
    addresses = bytes([233, 252, 0, 1, 192, 0, 2, 2])
    partial = _fold(addresses + struct.pack("!HH", protocol, length + len(payload)))
    transport = transport[:csum_offset] + struct.pack("!H", partial) + transport[csum_offset + 2 :]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length + len(payload), 0, 0x4000, 1, protocol, 0) + addresses
    ip = ip[:10] + struct.pack("!H", _fold(ip) ^ 0xFFFF) + ip[12:]
    l4 = len(ethernet) + 20
    return VnetHeader(VNET_NEEDS_CSUM, gso_type, l4 + length, 100, l4, csum_offset), ethernet + ip + transport + payload


def _fold(data: bytes) -> int:
    """One's-complement sum of an even number of bytes as big-endian words (RFC 1071), not inverted."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
