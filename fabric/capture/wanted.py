"""What a person asked to see, as filter texts of pcap-filter(7): one for inner packets, one for outer ones. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Place = Literal["underlay", "node", "pods", "refused"]
PLACES: tuple[Place, ...] = ("underlay", "node", "pods", "refused")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`inner` and `outer` are a person's filters; `pods` and `peers` addresses and prefixes that an end must be in
    (None: any, else not empty), `publics` the public addresses of those peers. `reasons` are drop reasons, none for
    all. `verdict` "allowed" takes only what leaves the data path, "dropped" only what it refused."""

    inner: str = ""
    outer: str = ""
    pods: frozenset[Address] | None = None
    peers: tuple[Network, ...] | None = None
    publics: tuple[Address, ...] | None = None
    reasons: frozenset[str] = frozenset()
    verdict: Literal["", "allowed", "dropped"] = ""

    def places(self, asked: Sequence[Place]) -> frozenset[Place]:
        """Where to look: those asked for (none: all), as far as what is wanted can be there."""
        found = frozenset(asked or PLACES)
        if self.outer:
            found &= {"underlay"}
        if self.reasons or self.verdict == "dropped":
            return found & {"refused"}
        return found - {"refused"} if self.verdict == "allowed" else found

    def inner_text(self) -> str:
        """The filter for inner packets."""
        hosts = None if self.pods is None else [f"host {address}" for address in sorted(self.pods, key=str)]
        nets = None if self.peers is None else [f"net {network}" for network in self.peers]
        return _all(self.inner, _any(hosts), _any(nets))

    def outer_text(self, ports: Iterable[int]) -> str:
        """The filter for the underlay, whose tunnels are on these UDP ports."""
        hosts = None if self.publics is None else [f"host {address}" for address in self.publics]
        return _all(_any([f"udp port {port}" for port in ports]), self.outer, _any(hosts))


def _any(parts: Sequence[str] | None) -> str:
    """None wants everything."""
    return "" if parts is None else " or ".join(parts)


def _all(*parts: str) -> str:
    return " and ".join(f"({part})" for part in parts if part)


def tunnel_ports(status: Mapping[str, Any]) -> dict[str, int]:
    """The UDP ports of the formats that the data path speaks."""
    backend, formats = status["backend"], status["dataplane"].get("formats", [])
    own = {backend["type"]: backend["port"]} if backend["port"] else {}
    usual = {"vxlan": 8472, "udp": 8285}
    return own | {name: usual[name] for name in formats if name not in own and name in usual}
