"""By which way a packet comes in: by what it is, by who has its source address, or as it was asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from encap.inner import parse_packet
from encap.vxlan import encapsulate
from fabric.capture.comments import ends_of
from fabric.errors import FabricError
from fabric.explain.layers import Outer, behind_ethernet, inner_of, outer_of
from fabric.forward.rehearse import UNDERLAY, LiveTables, Rehearsed
from fabric.model import Peer
from fabric.who import Address

NODE_PORT = 0
FROM_UNDERLAY = "underlay"
TUNNEL_HEADERS = 22


class ArrivalError(FabricError):
    """It cannot come in as it was asked."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """`packet` is the IP packet in question, the inner one of a tunnel's datagram `outer`. `frame` is what the port at
    `position` reads, with `link` an Ethernet frame. `why` and `notes` are for people."""

    packet: bytes
    why: str
    position: int = UNDERLAY
    frame: bytes = b""
    link: bool = False
    outer: Outer | None = None
    notes: tuple[str, ...] = field(default=())

    def rehearse(self, tables: LiveTables) -> Rehearsed:
        """Run it through the live tables."""
        if self.outer is None:
            return tables.send(self.position, self.frame, self.link)
        outer = self.outer
        return tables.receive(outer.payload, outer.source, outer.tos, outer.form)


def arrive(tables: LiveTables, data: bytes, ethernet: bool = False, by: str = "") -> Arrival:
    """`data` is an IP packet, or an Ethernet frame. `by` is a port's name, "underlay", the underlay address of a peer,
    or empty to find out. Raises ArrivalError for a `by` that does not exist."""
    packet = behind_ethernet(data) if ethernet else data
    outer = outer_of(packet, tables.settings.ports)
    own = tables.settings.underlay
    if outer is not None and outer.source in own and not by:
        note = f"the datagram is this node's own, to {outer.target}: the packet in it is explained, as it came in"
        return _by_source(tables, inner_of(outer), b"", False, (note,))
    if outer is not None and (outer.target in own or by == FROM_UNDERLAY):
        return Arrival(inner_of(outer), f"it is a datagram to the {outer.form} port", outer=outer)
    if by == FROM_UNDERLAY:
        peer = _peer_of(tables, packet)
        if peer is None:
            raise ArrivalError("no peer has the packet's source address: say by --from from which peer's address")
        return _wrapped(tables, packet, peer, peer.underlay, "as it was asked")
    if by:
        position = tables.position(by)
        if position is not None:
            return _by_port(tables, position, packet, data, ethernet, "as it was asked")
        return _from_address(tables, packet, by)
    return _by_source(tables, packet, data, ethernet, ())


def _from_address(tables: LiveTables, packet: bytes, by: str) -> Arrival:
    try:
        address = ip_address(by)
    except ValueError:
        known = ", ".join(port.name for port in tables.ports[:20])
        raise ArrivalError(f"there is no port {by[:80]!r}: give {known}, underlay or a peer's address") from None
    peer = tables.peer_at(address) or _peer_of(tables, packet)
    return _wrapped(tables, packet, peer, address, "as it was asked")


def _by_source(tables: LiveTables, packet: bytes, data: bytes, ethernet: bool, notes: tuple[str, ...]) -> Arrival:
    ends = ends_of(packet)
    route = tables.route(ends[0]) if ends is not None else None
    if ends is None or route is None:
        why = "nothing is routed to its source: it can only come from the host" if ends else "nothing says otherwise"
        return _by_port(tables, NODE_PORT, packet, data or packet, ethernet, why, notes)
    if route.position is not None:
        mine = ends[0] in tables.ports[route.position].addresses
        why = f"{ends[0]} is its address" if mine else f"{ends[0]} is behind it"
        return _by_port(tables, route.position, packet, data or packet, ethernet, why, notes)
    if route.peer is None:
        raise ArrivalError(f"the peer of {ends[0]} has just gone: ask again")
    return _wrapped(tables, packet, route.peer, route.peer.underlay, f"{ends[0]} is in that peer's lease", notes)


def _by_port(
    tables: LiveTables, position: int, packet: bytes, data: bytes, ethernet: bool, why: str,
    notes: tuple[str, ...] = (),
) -> Arrival:  # fmt: skip
    tap = tables.ports[position].ethernet is not None
    if ethernet and tap:
        return Arrival(packet, why, position, data, True, None, notes)
    if tap:
        notes = (*notes, "the port is a TAP: its Ethernet header is taken for right, since the packet has none")
    return Arrival(packet, why, position, packet, False, None, notes)


def _peer_of(tables: LiveTables, packet: bytes) -> Peer | None:
    ends = ends_of(packet)
    route = tables.route(ends[0]) if ends is not None else None
    return route.peer if route is not None else None


def _wrapped(
    tables: LiveTables, packet: bytes, peer: Peer | None, source: Address, why: str, notes: tuple[str, ...] = ()
) -> Arrival:
    """In the datagram that this peer would send, marked as the packet is (RFC 6040)."""
    form = (peer.encapsulation or next(iter(sorted(peer.accepts)), None)) if peer else None
    form = form or tables.settings.encapsulation or "vxlan"
    payload, mark = packet, parse_packet(packet).get("tos", 0) & 3
    own = next((each for each in tables.settings.underlay if each.version == source.version), source)
    if form == "vxlan":
        mac = peer.mac if peer is not None and any(peer.mac) else b"\x02\0\0\0\0\x01"
        around = encapsulate(
            packet or b"\x45", vni=tables.settings.vni, destination=tables.mac(source.version), source=mac
        )
        payload = around[: TUNNEL_HEADERS + len(packet)]
    return Arrival(packet, why, outer=Outer(source, own, mark, form, payload), notes=notes)
