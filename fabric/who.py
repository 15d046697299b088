"""Which pod, which peer: what a person types, against what the daemon knows; and back, names for addresses. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Object = Mapping[str, Any]


class UnknownNameError(ValueError):
    """Nothing has that name; the text is for people."""


def name_of_pod(item: Object) -> str:
    """`namespace/name`, or what there is instead of it."""
    pod = item["pod"]
    if pod["name"]:
        return f"{pod['namespace']}/{pod['name']}" if pod["namespace"] else str(pod["name"])
    return str(pod["container_id"] or item["name"])


def pods_named(pods: Sequence[Object], text: str) -> list[Object]:
    """The interfaces of the pod `text`: `namespace/name`, name, address, port, or the start of its container's id.

    Raises UnknownNameError.
    """
    found = [
        item
        for item in pods
        if text in (name_of_pod(item), item["pod"]["name"], item["name"], *item["addresses"])
        or (len(text) >= 8 and item["pod"]["container_id"].startswith(text))
    ]
    if not found:
        raise UnknownNameError(f"no pod {text} on this node: see fabricctl pods")
    return found


def peers_named(peers: Sequence[Object], text: str) -> list[Object]:
    """The peers `text`: node's name, public address, subnet, or lease key. Raises UnknownNameError."""
    found = [
        peer for peer in peers if text in (peer.get("node"), peer["key"], *peer["public"], *peer["subnets"])
    ]
    if not found:
        raise UnknownNameError(f"no peer {text}: see fabricctl peers")
    return found


class Names:
    """Names for addresses: this node's pods, and the nodes behind which others are."""

    def __init__(self, pods: Sequence[Object], peers: Sequence[Object]) -> None:
        self._pods = {ip_address(text): name_of_pod(item) for item in pods for text in item["addresses"]}
        self._peers = [
            (ip_network(subnet), str(peer.get("node") or ", ".join(peer["public"])))
            for peer in peers
            for subnet in peer["subnets"]
        ]
        self._known: dict[Address, str] = {}

    def pod(self, address: Address) -> str:
        """The pod of this node that has the address, or ""."""
        return self._pods.get(address, "")

    def peer(self, address: Address) -> str:
        """The node behind which it is, or ""."""
        if address not in self._known:
            self._known[address] = next((name for network, name in self._peers if address in network), "")
        return self._known[address]


def addresses(items: Sequence[Object]) -> frozenset[Address]:
    """All addresses of these interfaces."""
    return frozenset(ip_address(text) for item in items for text in item["addresses"])


def subnets(peers: Sequence[Object]) -> tuple[Network, ...]:
    """All prefixes of these peers."""
    return tuple(ip_network(text) for peer in peers for text in peer["subnets"])


def publics(peers: Sequence[Object]) -> tuple[Address, ...]:
    """All public addresses of these peers."""
    return tuple(ip_address(text) for peer in peers for text in peer["public"])
