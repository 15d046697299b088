"""From what a capture holds to an IP packet, and from an outer packet to what it carries. Pure, total."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from fabric.model import Encapsulation
from fabric.who import Address

ETHERNET = 14
VLANS = (0x8100, 0x88A8)
UDP = 17


class Outer(NamedTuple):
    """A datagram of a tunnel: outer addresses, TOS, the format by its UDP port, and the UDP payload."""

    source: Address
    target: Address
    tos: int
    form: Encapsulation
    payload: bytes


def behind_ethernet(frame: bytes) -> bytes:
    """What an Ethernet frame carries, behind VLAN tags too; empty for a frame that ends before."""
    offset = 12
    while len(frame) >= offset + 4 and int.from_bytes(frame[offset : offset + 2], "big") in VLANS:
        offset += 4
    return frame[offset + 2 :]


def outer_of(packet: bytes, ports: Mapping[Encapsulation, int]) -> Outer | None:
    """The tunnel's datagram that an IP packet is by its UDP destination port; None for any other, fragments too."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        header, protocol, tos = (packet[0] & 15) * 4, packet[9], packet[1]
        ends: tuple[Address, Address] = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        if struct.unpack_from(">H", packet, 6)[0] & 0x3FFF:
            return None
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        header, protocol, tos = 40, packet[6], (packet[0] << 4 | packet[1] >> 4) & 0xFF
        ends = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    else:
        return None
    if protocol != UDP or len(packet) < header + 8:
        return None
    port, length = struct.unpack_from(">HH", packet, header + 2)
    form = next((form for form, number in ports.items() if number and number == port), None)
    if form is None:
        return None
    end = header + length if 8 <= length <= len(packet) - header else len(packet)
    return Outer(*ends, tos, form, packet[header + 8 : end])


def inner_of(outer: Outer) -> bytes:
    """The packet that the datagram carries, unchecked."""
    return outer.payload[8 + ETHERNET :] if outer.form == "vxlan" else outer.payload


def is_ours(outer: Outer, own: Collection[Address]) -> bool:
    """Whether this node sent it."""
    return outer.source in own
