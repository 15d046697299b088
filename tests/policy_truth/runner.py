"""Plays the steps of a case: the pods, namespaces and policies there are at each of its probes."""

from __future__ import annotations

from typing import Any

from tests.policy_truth.oracle import End

PROTOCOLS = ("TCP", "UDP", "SCTP")
PORTS = {f"serve-{n}-{p.lower()}": (p, n) for n in (80, 81) for p in PROTOCOLS}
NAME = "kubernetes.io/metadata.name"
"""The API server keeps this label on every namespace, whatever else is written to it."""
Object = dict[str, Any]


class World:
    """What a cluster holds; `play` changes it by one step. Pods are named "namespace/name"."""

    def __init__(self, addresses: dict[str, str], pods: list[str], namespaces: dict[str, dict[str, str]]) -> None:
        self.addresses = dict(addresses)
        self.pods = {pod: {"pod": pod.partition("/")[2]} for pod in pods}
        self.namespaces = {name: dict(labels) for name, labels in namespaces.items()}
        self.policies: dict[tuple[str, str], Object] = {}

    def play(self, kind: str, *args: Any) -> None:
        if kind == "apply":
            meta = args[0]["metadata"]
            self.policies[meta["namespace"], meta["name"]] = args[0]
        elif kind == "delete":
            del self.policies[args[0], args[1]]
        elif kind == "label-pod":
            self.pods[args[0]].update(args[1])
        elif kind == "label-namespace":
            self.namespaces[args[0]].update(args[1])
        elif kind == "set-pod":
            self.pods[args[0]] = dict(args[1])
        elif kind == "delete-pod":
            del self.pods[args[0]]
        elif kind == "set-namespace":
            self.namespaces[args[0]] = dict(args[1])
        elif kind == "delete-namespace":
            del self.namespaces[args[0]]
            self.pods = {pod: labels for pod, labels in self.pods.items() if not matches(args[0], pod)}
        else:
            raise ValueError(f"no such step: {kind}")

    def ends(self) -> dict[str, End]:
        ends = {}
        for pod, labels in self.pods.items():
            space = pod.partition("/")[0]
            above = {**self.namespaces[space], NAME: space}
            ends[pod] = End(space, labels, above, self.addresses[pod], PORTS)
        return ends


def expected(rows: list[tuple[str, str, bool]], source: str, destination: str) -> bool:
    """Allowed, unless an exception of the table says otherwise; the last one that matches wins."""
    answers = [answer for a, b, answer in rows if matches(a, source) and matches(b, destination)]
    return answers[-1] if answers else True


def matches(pattern: str, pod: str) -> bool:
    return pattern in ("*", pod, pod.split("/")[0])
