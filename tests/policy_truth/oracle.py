"""NetworkPolicy v1 read aloud: slow, plain, and sharing no code with the engine. A pod to itself is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any


@dataclass(frozen=True)
class End:
    """One pod with its namespace's labels; `ports` is {name: (protocol, number)}."""

    namespace: str
    labels: dict[str, str]
    namespace_labels: dict[str, str]
    address: str
    ports: dict[str, tuple[str, int]]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """NotIn matches labels without the key; an empty value is not a missing key."""
    for key, value in selector.get("matchLabels", {}).items():
        if key not in labels or labels[key] != value:
            return False
    for want in selector.get("matchExpressions", []):
        key, there = want["key"], want["key"] in labels
        answers = {
            "In": there and labels[key] in want.get("values", []),
            "NotIn": not there or labels[key] not in want.get("values", []),
            "Exists": there,
            "DoesNotExist": not there,
        }
        if not answers[want["operator"]]:
            return False
    return True


def peer_matches(peer: dict[str, Any], home: str, other: End) -> bool:
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ip_address(other.address)
        inside = address in ip_network(block["cidr"], strict=False)
        return inside and not any(address in ip_network(cut, strict=False) for cut in block.get("except", []))
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], other.namespace_labels):
            return False
    elif other.namespace != home:
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def port_matches(entry: dict[str, Any], destination: End, protocol: str, port: int) -> bool:
    if entry.get("protocol", "TCP") != protocol:
        return False
    wanted = entry.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return destination.ports.get(wanted) == (protocol, port)
    return wanted <= port <= entry.get("endPort", wanted)


def types_of(spec: dict[str, Any]) -> list[str]:
    return spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]


def side_allows(policies: list[dict[str, Any]], side: str, ends: tuple[End, End], protocol: str, port: int) -> bool:
    source, destination = ends
    own, other = (destination, source) if side == "Ingress" else (source, destination)
    isolated = False
    for policy in policies:
        home, spec = policy["metadata"]["namespace"], policy["spec"]
        if home != own.namespace or side not in types_of(spec) or not selects(spec["podSelector"], own.labels):
            continue
        isolated = True
        for rule in spec.get(side.lower()) or []:
            peers, ports = rule.get("from" if side == "Ingress" else "to"), rule.get("ports")
            if (not peers or any(peer_matches(p, home, other) for p in peers)) and (
                not ports or any(port_matches(p, destination, protocol, port) for p in ports)
            ):
                return True
    return not isolated


def allowed(policies: list[dict[str, Any]], source: End, destination: End, protocol: str, port: int) -> bool:
    if source.address == destination.address:
        return True
    return all(side_allows(policies, side, (source, destination), protocol, port) for side in ("Egress", "Ingress"))
