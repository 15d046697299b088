"""What compiling policy costs: from nothing, and for one change, with the interpreter's lock held all the time.

Pods in 100 namespaces on 100 nodes, a fifth of them of each of twenty applications; each policy selects one application
of one namespace, names four kinds of peers, named and numbered ports, and a network outside. Pure computation, no
daemon: `snapshot` is all that a node does between a change and the table that its workers read.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from resource import getpagesize
from statistics import median
from typing import Any

from fabric.policy import Cluster, Namespace, Node, Pod

SIZES = ((1_000, 50), (10_000, 500))
PLACES = 100
APPS = 20
REPEATS = 20
VERDICTS = 2_000_000


@dataclass(frozen=True)
class Row:
    """`own`: pods of this node. Times in seconds of the processor; `change` is the median of a kind of change."""

    pods: int
    policies: int
    own: int
    compile: float
    memory: int
    table: int
    changes: dict[str, float]
    verdict: float


def pod(number: int, *, namespace: int | None = None) -> Pod:
    labels = {"app": f"app{number // PLACES % APPS}", "version": f"v{number % 3}"}
    addresses = IPv4Address("10.244.0.0") + number + 1, IPv6Address("2001:db8::") + number + 1
    home, node = number % PLACES if namespace is None else namespace, number // PLACES % PLACES
    return Pod(f"ns{home}", f"p{number}", labels, addresses, f"n{node}", ports={"http": ("TCP", 8080)})


def policy(number: int, port: int = 9000) -> dict[str, Any]:
    def app(i: int) -> dict[str, Any]:
        return {"matchLabels": {"app": f"app{i % APPS}"}}

    team = {"namespaceSelector": {"matchLabels": {"team": f"t{number % 10}"}}}
    names = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ns1"}}, "podSelector": app(1)}
    spec = {
        "podSelector": app(number),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {
                "from": [*({"podSelector": app(number + i)} for i in range(3)), team],
                "ports": [{"port": "http"}, {"port": port}],
            }
        ],
        "egress": [
            {"to": [{"ipBlock": {"cidr": f"203.0.113.{number % 16 * 16}/28"}}], "ports": [{"port": 443}]},
            {"to": [names], "ports": [{"protocol": "UDP", "port": 53}]},
        ],
    }
    metadata = {"name": f"np{number}", "namespace": f"ns{number % PLACES}"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


def filled(pods: int, policies: int, local: Callable[[Pod], bool] | None) -> Cluster:
    cluster = Cluster(local)
    for i in range(PLACES):
        cluster.set_namespace(Namespace(f"ns{i}", {"team": f"t{i % 10}"}))
        cluster.set_node(Node(f"n{i}", {}, (IPv4Address("192.0.2.0") + i,)))
    for i in range(pods):
        cluster.set_pod(pod(i))
    for i in range(policies):
        result = cluster.apply(f"np{i}", policy(i))
        if result.error:
            raise result.error
    return cluster


def changes(cluster: Cluster, pods: int) -> dict[str, Callable[[int], object]]:
    """Of each kind, what the i-th one does."""
    return {
        "none": lambda i: None,
        "pod new": lambda i: cluster.set_pod(pod(pods + i, namespace=3)),
        "pod gone": lambda i: cluster.delete_pod("ns3", f"p{pods + i}"),
        "policy": lambda i: cluster.apply("np7", policy(7, 9001 + i)),
        "policy new": lambda i: cluster.apply("new", policy(33 + PLACES * i)),
        "policy gone": lambda i: cluster.apply("new", None),
        "namespace": lambda i: cluster.set_namespace(Namespace("ns9", {"team": f"t{i % 10}"})),
    }


def measure(pods: int, policies: int, *, everywhere: bool) -> Row:
    """One cluster, of which this node has one pod in a hundred, or all."""
    before = resident()
    start = time.process_time()
    cluster = filled(pods, policies, None if everywhere else lambda pod: pod.node == "n0")
    snapshot = cluster.snapshot()
    compiled = time.process_time() - start
    memory = resident() - before
    found: dict[str, float] = {}
    for name, change in changes(cluster, pods).items():
        times = []
        for i in range(REPEATS):
            start = time.process_time()
            change(i)
            snapshot = cluster.snapshot()
            times.append(time.process_time() - start)
        found[name] = median(times)
    start = time.process_time()
    snapshot.repeat(VERDICTS, "10.244.0.2", "10.244.0.1", "TCP", 8080)
    verdict = (time.process_time() - start) / VERDICTS
    own = sum(1 for item in cluster.population.pods.values() if cluster.population.local(item))
    table = sum(map(len, cluster.table.packed))
    return Row(pods, policies, own, compiled, memory, table, found, verdict)


def run() -> list[Row]:
    return [measure(*size, everywhere=everywhere) for size in SIZES for everywhere in (False, True)]


KINDS = ("none", "pod new", "pod gone", "policy", "policy new", "policy gone", "namespace")
HEAD = "   pods policies    own  compile    memory    table  verdict   ms for one change: " + " ".join(
    f"{kind:>11}" for kind in KINDS
)


def line(row: Row) -> str:
    kinds = " ".join(f"{row.changes[kind] * 1000:11.2f}" for kind in KINDS)
    return (
        f"{row.pods:7,} {row.policies:8,} {row.own:6,} {row.compile:6.2f} s {row.memory / 1e6:6.1f} MB"
        f" {row.table / 1e6:5.2f} MB {row.verdict * 1e9:5.0f} ns {'':21}{kinds}"
    )
