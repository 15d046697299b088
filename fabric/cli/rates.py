"""What changed between two looks at a daemon: the content of `fabricctl top`. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from fabric.who import Names, name_of_pod

RATES = (
    "egress_packets", "egress_bytes", "ingress_packets", "ingress_bytes", "send_calls", "write_calls",
    "receive_overflows", "node_port_overflows", "flow_inserted",
)  # fmt: skip
DROP = "drop_"


@dataclass(frozen=True, slots=True)
class Look:
    """The daemon's answers at `time` (monotonic seconds). `flows` are connections, `all_flows` says whether these are
    all there are."""

    time: float
    status: Mapping[str, Any]
    counters: Mapping[str, int]
    peers: Sequence[Mapping[str, Any]]
    pods: Sequence[Mapping[str, Any]]
    flows: Sequence[Mapping[str, Any]]
    all_flows: bool


def view(before: Look, after: Look) -> dict[str, Any]:
    """Rates per second between the two, and what there is now."""
    seconds = max(after.time - before.time, 1e-3)
    restarted = after.status["pid"] != before.status["pid"]
    earlier: Mapping[str, int] = {} if restarted else before.counters

    def rate(name: str) -> float:
        return round(max(0, after.counters.get(name, 0) - earlier.get(name, 0)) / seconds, 1)

    drops = {name.removeprefix(DROP): rate(name) for name in after.counters if name.startswith(DROP)}
    names = Names(after.pods, after.peers)
    by_pod, by_peer = _owners(after.flows, names)
    traffic = {item["name"]: item.get("traffic") for item in before.pods}
    carried = {peer["key"]: peer.get("traffic") for peer in before.peers}
    status = after.status
    problems = [line for part in ("health", "kernel", "firewall") for line in status[part]["problems"]]
    return {
        "node": status["node"],
        "version": status["version"],
        "ready": status["ready"],
        "uptime": status["uptime"],
        "seconds": round(seconds, 3),
        "store": {name: status["store"][name] for name in ("kind", "available")},
        "problems": problems,
        "rates": {name: rate(name) for name in RATES},
        "drops": {name: value for name, value in sorted(drops.items(), key=lambda item: -item[1]) if value},
        "flows": {
            "tracked": after.counters.get("flows", 0),
            "looked_at": len(after.flows),
            "all": after.all_flows,
            "states": dict(Counter(flow["state"] for flow in after.flows).most_common()),
            "protocols": dict(Counter(flow["protocol"] for flow in after.flows).most_common()),
        },
        "peers": [
            {"node": _peer(peer), "state": peer["state"], "way": peer["way"], "subnets": list(peer["subnets"]),
             "flows": by_peer[_peer(peer)],
             "rates": _rates(carried.get(peer["key"]), peer.get("traffic"), seconds)}
            for peer in after.peers
        ],
        "pods": [
            {"name": name_of_pod(item), "kind": item["kind"], "addresses": list(item["addresses"]),
             "problem": item["problem"], "flows": by_pod[name_of_pod(item)],
             "rates": _rates(traffic.get(item["name"]), item.get("traffic"), seconds)}
            for item in after.pods
        ],
    }  # fmt: skip


def _rates(
    before: Mapping[str, int] | None, after: Mapping[str, int] | None, seconds: float
) -> dict[str, float] | None:
    """What a port's pod or a peer sent and got per second (`from` it, `to` it), and a port's drops; None where that is
    not counted."""
    if after is None:
        return None
    return {name: round(max(0, value - (before or {}).get(name, 0)) / seconds, 1) for name, value in after.items()}


def _peer(peer: Mapping[str, Any]) -> str:
    return str(peer.get("node") or ", ".join(peer["public"]) or peer["key"])


def _owners(flows: Iterable[Mapping[str, Any]], names: Names) -> tuple[Counter[str], Counter[str]]:
    """Connections by pod of this node, and by the node behind which an end is."""
    pods: Counter[str] = Counter()
    peers: Counter[str] = Counter()
    for flow in flows:
        ends = [ip_address(flow[end]) for end in ("source", "destination")]
        pods.update({name for end in ends if (name := names.pod(end))})
        peers.update({name for end in ends if (name := names.peer(end))})
    return pods, peers
