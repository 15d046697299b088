"""Records of the drop rings as packets for people: names for numbers."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from encap.drops import DropReason
from fabric.model import RefusedPacket

if TYPE_CHECKING:
    from fabric.forward.drop_ring import Record

PORT_ETHERNET, UNDERLAY = 1, 2  # `direction` in drop_ring.pxd


def refused_packet(record: Record, ports: Sequence[str]) -> RefusedPacket:
    """`ports` are the ports' names by position, as they are now: one that went meanwhile has none."""
    time, direction, reason, position, family, outer, form, length, data = record
    name = DropReason(reason).name.lower()
    if direction == UNDERLAY:
        source = IPv4Address(outer) if family == 4 else IPv6Address(outer)
        return RefusedPacket(time, name, length, data, source=source, encapsulation="udp" if form == 1 else "vxlan")
    port = ports[position] if position < len(ports) else "?"
    return RefusedPacket(time, name, length, data, port=port, ethernet=direction == PORT_ETHERNET)
