"""The conformance suite's verdicts against the naive evaluator and the engine, over IPv4 and over IPv6."""

from __future__ import annotations

from copy import deepcopy
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import pytest

from fabric.policy import Cluster, Namespace, Node, Pod
from fabric.policy.parse import object_key
from tests.fabric.policy.naive import Naive
from tests.policy_truth import cluster as suite

PORTS = {"web": ("TCP", 80), "dns": ("UDP", 53)}
NODES = [
    Node(f"n{i}", {"kubernetes.io/os": "linux"}, (IPv4Address(f"192.0.2.{i}"), IPv6Address(f"2001:db8:9::{i}")))
    for i in (1, 2)
]


def pods() -> dict[str, Pod]:
    """Of each namespace one pod on each of two nodes."""
    found = {}
    for row, (letter, house) in enumerate(suite.HOUSES.items()):
        for i in (0, 1):
            at = (IPv4Address(f"10.244.{i + 1}.{row + 1}"), IPv6Address(f"2001:db8:{i + 1}::{row + 1}"))
            host = letter == "f"
            addresses = NODES[i].addresses if host else at
            labels, home = {suite.HOUSE: house}, suite.PREFIX + house
            found[f"{letter}{i}"] = Pod(home, f"p{i}", labels, addresses, f"n{i + 1}", host, {} if host else PORTS)
    return found


class Play:
    """One group's cluster: the engine through all changes, and the plain objects for the naive evaluator."""

    def __init__(self, group: suite.Group, family: int) -> None:
        self.family = family
        self.pods = pods()
        self.houses = dict(suite.HOUSES)
        self.objects = [deepcopy(item) for item in group.objects]
        self.cluster = Cluster()
        for node in NODES:
            self.cluster.set_node(node)
        for pod in self.pods.values():
            self.cluster.set_pod(pod)
        self.tell()

    def namespaces(self) -> list[Namespace]:
        return [Namespace(suite.PREFIX + suite.HOUSES[key], {suite.HOUSE: house}) for key, house in self.houses.items()]

    def tell(self) -> None:
        for namespace in self.namespaces():
            self.cluster.set_namespace(namespace)
        for item in self.objects:
            result = self.cluster.apply(object_key(item), deepcopy(item))
            assert (result.error, result.warnings) == (None, ())
        self.snapshot = self.cluster.snapshot()

    def change(self, verb: str, *args: str) -> None:
        spec: dict[str, Any] = self.objects[0]["spec"]
        if verb == "swap":
            rules, i, j = spec[args[0]], int(args[1]), int(args[2])
            rules[i], rules[j] = rules[j], rules[i]
        elif verb == "name":
            spec[args[0]][int(args[1])]["protocols"] = [{"destinationNamedPort": args[2]}]
        elif verb == "action":
            spec[args[0]][int(args[1])]["action"] = args[2]
        elif verb == "front":
            nets = [str(ip_network(address)) for pod in args for address in self.pods[pod].addresses]
            spec["egress"].insert(0, suite.rule("egress", "Accept", {"networks": nets}))
        elif verb == "house":
            self.houses[args[0]] = args[1]
        elif verb == "priority":
            spec["priority"] = int(args[0])
        elif verb == "drop":
            self.cluster.apply(object_key(suite.BETWEEN), None)
            self.objects.remove(suite.BETWEEN)
        else:
            raise ValueError(f"no such change: {verb}")
        self.tell()

    def probe(self, ends: str, traffic: str, verdict: str) -> None:
        source, destination = (
            next(str(a) for a in self.pods[pod].addresses if a.version == self.family) for pod in ends.split(">")
        )
        protocol, _, port = traffic.partition("/")
        question = source, destination, protocol.upper(), int(port)
        naive = Naive(self.objects, self.pods.values(), self.namespaces(), NODES)
        assert naive.allowed(*question) == (verdict == "yes"), f"the text: {ends} {traffic}"
        assert self.snapshot.allowed(*question) == (verdict == "yes"), f"the engine: {ends} {traffic}"


def test_counts_are_upstreams() -> None:
    by_tier = {t: sum(len(g.lines) for g in suite.GROUPS if g.name.startswith(t)) for t in ("Admin", "Baseline")}
    assert by_tier == {"Admin": 58, "Baseline": 34}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("group", suite.GROUPS, ids=lambda group: group.name)
def test_verdicts_of_the_suite(group: suite.Group, family: int, subtests: Any) -> None:
    play = Play(group, family)
    for name, line in group.lines:
        with subtests.test(name):
            for step in line.split("; "):
                words = step.split()
                if ">" in words[0]:
                    play.probe(*words)
                else:
                    play.change(*words)
