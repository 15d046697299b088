"""What would have left: bytes with their headers in words, and one word for the whole. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encap.inner import parse_packet
from fabric.explain import headers
from fabric.explain.arrival import Arrival
from fabric.forward.rehearse import Frame, LiveTables, Rehearsed, Route
from fabric.model import Peer
from fabric.who import Names

MOST_PIECES = 4
MOST_BYTES = 2048
"""Pieces that are shown, and bytes of each."""
TUNNEL_HEADERS = 22


def verdict(result: Rehearsed) -> str:
    """`sent`, `delivered`, `dropped`, or `answered` for what ends here with an answer."""
    if result.drops:
        return "dropped"
    if result.datagrams:
        return "sent"
    if result.delivered:
        return "delivered"
    return "answered" if result.answers else "dropped"


def flow_ends(flow: Mapping[str, object]) -> str:
    """Both ends of a flow, the one that began first."""
    ends = [
        f"[{flow[end]}]:{flow[port]}" if ":" in str(flow[end]) else f"{flow[end]}:{flow[port]}"
        for end, port in (("source", "sport"), ("destination", "dport"))
    ]
    return " to ".join(ends)


def results(
    tables: LiveTables, arrival: Arrival, result: Rehearsed, route: Route | None, names: Names
) -> list[dict[str, Any]]:
    """One item for each thing that would leave, the first MOST_PIECES of each kind."""
    peer = _peer(tables, arrival, route)
    port = tables.position(result.target) if result.target else None
    back = arrival.position if arrival.outer is None else 0
    return [
        *(_datagram(tables, arrival, peer, payload) for payload in result.datagrams[:MOST_PIECES]),
        *(_frame(tables, "delivered", port or 0, frame) for frame in result.delivered[:MOST_PIECES]),
        *(_frame(tables, "answer", back, frame) for frame in result.answers[:MOST_PIECES]),
    ]


def _peer(tables: LiveTables, arrival: Arrival, route: Route | None) -> Peer | None:
    """Who gets the datagrams: whoever sent one, for an error, else the way's peer."""
    if arrival.outer is not None:
        return tables.peer_at(arrival.outer.source)
    return route.peer if route is not None else None


def _datagram(tables: LiveTables, arrival: Arrival, peer: Peer | None, payload: bytes) -> dict[str, Any]:
    """The outer headers are the kernel's: addresses, ports and ECN are as told to it."""
    form = peer.encapsulation if peer is not None else tables.settings.encapsulation
    found = parse_packet(arrival.packet)
    tunnel = form == "vxlan"
    lines = headers.tunnel_lines(payload) if tunnel else headers.ip_lines(payload)
    target = peer.underlay if peer is not None else None
    own = next((each for each in tables.settings.underlay if target and each.version == target.version), None)
    sport = tables.source_port(target.version, found.get("hash", 0)) if target else 0
    dport = tables.settings.ports.get(form, 0) if form else 0
    mark = found.get("tos", 0) & 3 if arrival.outer is None else 0
    outer = f"outer IPv{target.version if target else 4} from {own} to {target}, ECN {mark}; UDP {sport} to {dport},"
    return {
        "kind": "datagram" if arrival.outer is None else "answer",
        "to": str(target),
        "source_port": sport,
        "port": dport,
        "length": len(payload),
        "headers": [f"{outer} {len(payload) + 8} bytes", *lines],
        **_bytes(payload, TUNNEL_HEADERS if tunnel else 0),
    }


def _frame(tables: LiveTables, kind: str, position: int, frame: Frame) -> dict[str, Any]:
    vnet, data = frame
    tap = tables.ports[position].ethernet is not None
    lines = headers.frame_lines(data) if tap else headers.ip_lines(data)
    if vnet.gso_type:
        lines = [f"a superframe, in segments of {vnet.gso_size} bytes", *lines]
    return {
        "kind": kind, "to": tables.ports[position].name, "length": len(data), "headers": lines,
        **_bytes(data, 14 if tap else 0),
    }  # fmt: skip


def _bytes(data: bytes, skip: int) -> dict[str, Any]:
    return {"headers_length": headers.headers_length(data, skip), "hex": data[:MOST_BYTES].hex()}
