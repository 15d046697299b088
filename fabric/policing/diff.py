"""Which live flows a change of policy would refuse, and what would become of them, before it is made. Pure.

Flows are those of this node's flow table, each judged by its first packet's ends as the data path does: by what is in
force and by what would be. Not looked at are flows to Service addresses, whose real destination the table does not
have, flows that are denied already, and kept ones that stay so. What the table has of an ICMP flow is not its type: it
is taken for an echo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from fabric.model import Network
from fabric.policing import objects
from fabric.policing.compiler import Known
from fabric.policing.documents import Given
from fabric.policy import PolicySnapshot
from fabric.policy.rules import Established

MOST_SHOWN = 500
PORTLESS = (1, 58)
FATES = {Established.RE_EVALUATE: "cut", Established.RESET: "reset", Established.KEEP: "kept"}
"""What becomes of a flow: cut in silence, cut with its ends told, left alone."""
NAMES = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


def changes_of(values: Iterable[Any]) -> dict[str, Given]:
    """The objects of a change by key. Raises PolicyError."""
    given = (objects.normal(value if isinstance(value, Mapping) else {}) for value in values)
    return {key: Given(value) for key, value in given}


def difference(
    known: Known, changes: Mapping[str, Given], flows: Sequence[Mapping[str, Any]], services: Sequence[Network]
) -> dict[str, Any]:
    """The flows that `changes` would refuse, at most MOST_SHOWN of them described, kept ones last.

    `cut` counts those that would not go on, `kept` those that would. Raises PolicyError.
    """
    after = known.with_changes(changes)
    cut: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    for flow in flows:
        source, target = ip_address(flow["source"]), ip_address(flow["destination"])
        if not flow["allowed"] or any(target in network for network in services):
            continue
        protocol = int(flow["protocol"])
        portless = protocol in PORTLESS
        dport, sport = (None, 0) if portless else (int(flow["dport"]), int(flow["sport"]))
        choice, egress, ingress = after.established(source, target, protocol, dport, sport)
        if choice is None or (choice == Established.KEEP and flow.get("standing") == "kept"):
            continue
        rule = ingress if ingress is not None else egress
        item = {**_described(flow, protocol, dport, known, after, rule), "fate": FATES[Established(choice)]}
        (kept if choice == Established.KEEP else cut).append(item)
    return {"flows": len(flows), "cut": len(cut), "kept": len(kept), "changes": sorted(map(objects.title, changes)),
            "shown": [*cut, *kept][:MOST_SHOWN]}  # fmt: skip


def _described(
    flow: Mapping[str, Any],
    protocol: int,
    dport: int | None,
    known: Known,
    after: PolicySnapshot,
    rule: int | None,
) -> dict[str, Any]:
    return {
        "protocol": NAMES.get(protocol, str(protocol)),
        "source": flow["source"],
        "source_pod": _pod(known, str(flow["source"])),
        "destination": flow["destination"],
        "destination_pod": _pod(known, str(flow["destination"])),
        "port": dport,
        "state": flow.get("state", ""),
        "rule": "" if rule is None else after.describe(rule),
    }


def _pod(known: Known, address: str) -> str:
    pod = known.pod_at(address)
    return f"{pod.namespace}/{pod.name}" if pod is not None else ""
