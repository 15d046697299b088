"""Connections out of the daemon's flow table: page by page, those that were asked for, with names. No terminal here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from fabric.control_client import ControlClient
from fabric.who import Address, Names, Network

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which connections: with an end among `pods`, an end inside `peers`, of this protocol. None: all."""

    pods: frozenset[Address] | None = None
    peers: tuple[Network, ...] | None = None
    protocol: str | None = None

    def has(self, flow: dict[str, Any]) -> bool:
        """Whether this is one."""
        ends = ip_address(flow["source"]), ip_address(flow["destination"])
        if self.protocol is not None and flow["protocol"] != self.protocol:
            return False
        if self.pods is not None and not any(end in self.pods for end in ends):
            return False
        return self.peers is None or any(end in network for end in ends for network in self.peers)


def protocol_name(number: int) -> str:
    """`tcp`, or the number where there is no name."""
    return PROTOCOLS.get(number, str(number))


def pages(client: ControlClient) -> Iterator[dict[str, Any]]:
    """Every connection there is, asked for page by page. Raises what the client raises."""
    cursor: int | None = 0
    while cursor is not None:
        page = client.ask("flows", {"cursor": cursor, "limit": PAGE})
        for flow in page["flows"]:
            flow["protocol"] = protocol_name(flow["protocol"])
            yield flow
        cursor = page["next"]


def chosen(flows: Iterator[dict[str, Any]], wanted: Wanted, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """At most `limit` connections of those wanted, and whether there may be more."""
    found: list[dict[str, Any]] = []
    for flow in flows:
        if wanted.has(flow):
            if len(found) == limit:
                return found, True
            found.append(flow)
    return found, False


def with_names(flows: Sequence[dict[str, Any]], names: Names) -> list[dict[str, Any]]:
    """The same with `source_name` and `destination_name`: a pod of this node, else the node behind which it is."""
    return [
        {
            **flow,
            **{
                f"{end}_name": names.pod(address) or names.peer(address)
                for end in ("source", "destination")
                for address in (ip_address(flow[end]),)
            },
        }
        for flow in flows
    ]
