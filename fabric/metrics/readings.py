"""The daemon's reports as readings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fabric.metrics import counters
from fabric.metrics.families import Reading
from fabric.metrics.policy import PolicyReport


@dataclass(frozen=True, slots=True)
class Reports:
    """What the daemon says about itself (`fabric.daemon.report`), and `now` in Unix seconds."""

    status: Mapping[str, Any]
    peers: Sequence[Mapping[str, Any]]
    pods: Sequence[Mapping[str, Any]]
    counters: Mapping[str, int]
    policy: PolicyReport | None
    now: float


def read(reports: Reports) -> Iterator[Reading]:
    """Every reading there is, those of one family in an order that stays."""
    yield from _node(reports)
    yield from _parts(reports)
    yield from _peers(reports.peers)
    yield from _pods(reports.pods)
    yield from counters.read(reports.counters)
    if reports.policy is not None:
        yield from _policy(reports.policy)


def _node(reports: Reports) -> Iterator[Reading]:
    status = reports.status
    backend = status["backend"]
    kind = backend["type"] + (" (kernel)" if backend["kernel"] else "")
    labels = (status["version"], status["node"], status["interface"], kind, status["device"])
    yield Reading("info", labels, 1)
    yield Reading("ready", (), float(status["ready"]))
    yield Reading("start_time_seconds", (), round(reports.now - status["uptime"], 3))
    yield Reading("mtu_bytes", (), status["mtu"])
    if status["lease"]["expires"] is not None:
        yield Reading("lease_expiry_timestamp_seconds", (), status["lease"]["expires"])


def _parts(reports: Reports) -> Iterator[Reading]:
    status, dataplane, store = reports.status, reports.status["dataplane"], reports.status["store"]
    for part in ("health", "kernel", "firewall"):
        yield Reading("problems", (part,), len(status[part]["problems"]))
    yield Reading("problems", ("pods",), sum(1 for pod in reports.pods if pod["problem"]))
    for task, alive in status["tasks"].items():
        yield Reading("task_alive", (task,), float(alive))
    for thread, alive in dataplane.get("threads", {}).items():
        yield Reading("thread_alive", (thread,), float(alive))
    for name, used in dataplane.get("offloads", {}).items():
        yield Reading("offload", (name,), float(used))
    if "generation" in dataplane:
        yield Reading("snapshot_generation", (), dataplane["generation"])
    yield Reading("store_available", (store["kind"],), float(store["available"]))
    if store["revision"] is not None:
        yield Reading("store_revision", (), store["revision"])
    yield Reading("store_malformed", (), store["malformed"])


def _peers(peers: Sequence[Mapping[str, Any]]) -> Iterator[Reading]:
    states = Counter({"used": 0, "remembered": 0, "quarantined": 0, "malformed": 0})
    for peer in sorted(peers, key=lambda peer: str(peer["key"])):
        states[peer["state"]] += 1
        public = ",".join(peer["public"])
        yield Reading("peer_info", (peer["key"], peer.get("node", ""), public, peer["way"], peer["state"]), 1)
        if peer.get("expires") is not None:
            yield Reading("peer_lease_expiry_timestamp_seconds", (peer["key"],), peer["expires"])
        yield from _carried("peer", "packets", peer["key"], peer.get("traffic"))
    for state, count in states.items():
        yield Reading("peers", (state,), count)


def _pods(pods: Sequence[Mapping[str, Any]]) -> Iterator[Reading]:
    kinds = Counter({"tun": 0, "tap": 0, "veth": 0, "bridge": 0})
    for item in pods:
        kinds[item["kind"]] += 1
        pod = item["pod"]
        labels = (item["name"], pod["namespace"], pod["name"], item["kind"], ",".join(item["addresses"]))
        yield Reading("pod_info", labels, 1)
        yield Reading("pod_problem", (item["name"],), float(bool(item["problem"])))
        traffic = item.get("traffic")
        yield from _carried("pod", "frames", item["name"], traffic)
        if traffic is not None:
            yield Reading("pod_drops", (item["name"],), traffic["drops"])
    for kind, count in kinds.items():
        yield Reading("pods", (kind,), count)


def _carried(what: str, unit: str, name: str, counts: Mapping[str, int] | None) -> Iterator[Reading]:
    """What came from a peer or a port's pod and went to it; None where that passes no worker."""
    if counts is None:
        return
    for each in (unit, "bytes"):
        for direction in ("from", "to"):
            yield Reading(f"{what}_{each}", (name, direction), counts[f"{each}_{direction}"])


def _policy(policy: PolicyReport) -> Iterator[Reading]:
    yield Reading("policy_snapshot", (), policy.snapshot)
    yield Reading("policy_objects", ("in_force",), policy.objects)
    yield Reading("policy_objects", ("refused",), policy.refused)
    yield Reading("policy_objects", ("staged",), policy.staged)
    yield Reading("policy_rules", (), len(policy.rules))
    for rule, hits in policy.rules:
        yield Reading("policy_rule_hits", (rule,), hits)
    for rule, action, hits, changes in policy.staged_rules:
        yield Reading("policy_staged_hits", (rule, action), hits)
        yield Reading("policy_staged_changes", (rule, action), changes)
    yield Reading("problems", ("policy",), policy.problems)
    if policy.programming is not None:
        yield Reading("programming_duration_seconds", ("policy",), policy.programming)
