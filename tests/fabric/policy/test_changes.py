"""One change at a time: what is kept says what a fresh start says, and a failed snapshot leaves nothing behind."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.policy import Cluster, Namespace, Node, Pod, PolicyError, compile_policies
from fabric.policy.model import Address
from fabric.policy.parse import object_key
from tests.fabric.policy.worlds import NETS, World

POOL = [ip_address(f"10.244.0.{i}") for i in range(6)] + [ip_address(f"2001:db8::{i}") for i in range(6)]
NODE_POOL = [ip_address("192.0.2.1"), ip_address("192.0.2.2"), ip_address("2001:db8:9::1")]
OUTSIDE = [ip_address("198.51.100.7"), ip_address("2001:db8:1::1")]
SELECTORS = ("app == 'a'", "role != 'b'", "has(app)", "all()", "role in {'a', ''}")


class Told:
    """A cluster that is told of one random change after another, and everything that was told, in order."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, host_pods=True)
        self.random: Random = self.world.random
        self.cluster = Cluster(lambda pod: pod.node == "n1")
        self.pods: dict[tuple[str, str], Pod] = {}
        self.nodes: dict[str, Node] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.objects: dict[str, dict[str, Any]] = {}

    def change(self) -> None:
        self.random.choice(
            (self.set_pod, self.set_pod, self.delete_pod, self.set_node, self.delete_node, self.set_namespace,
             self.apply, self.apply, self.delete)
        )()  # fmt: skip

    def set_pod(self) -> None:
        r, template = self.random, self.world.pod(0)
        pool: list[Address] = NODE_POOL if template.host_network else POOL
        pod = Pod(
            template.namespace, r.choice("pqrst"), template.labels, tuple(r.sample(pool, r.randint(1, 2))),
            r.choice(("n1", "n2")), template.host_network, template.ports,
        )  # fmt: skip
        if self.pods.get(pod.key) != pod:
            self.pods.pop(pod.key, None)
            self.pods[pod.key] = pod
        self.cluster.set_pod(pod)

    def delete_pod(self) -> None:
        if self.pods:
            key = self.random.choice(list(self.pods))
            del self.pods[key]
            self.cluster.delete_pod(*key)

    def set_node(self) -> None:
        addresses = tuple(self.random.sample(NODE_POOL, 1))
        node = Node(self.random.choice(("n1", "n2")), self.world.labels(), addresses)
        if self.nodes.get(node.name) != node:
            self.nodes.pop(node.name, None)
            self.nodes[node.name] = node
        self.cluster.set_node(node)

    def delete_node(self) -> None:
        if self.nodes:
            name = self.random.choice(list(self.nodes))
            del self.nodes[name]
            self.cluster.delete_node(name)

    def set_namespace(self) -> None:
        namespace = Namespace(self.random.choice("xyz"), self.world.labels())
        self.namespaces[namespace.name] = namespace
        self.cluster.set_namespace(namespace)

    def apply(self) -> None:
        i = self.random.randint(0, 3)
        make = self.random.choice((self.world.network_policy, self.world.cluster_policy, self.calico, self.net_set))
        item = make(i)
        key = object_key(item)
        self.objects[key] = item
        assert self.cluster.apply(key, item).error is None

    def delete(self) -> None:
        if self.objects:
            key = self.random.choice(list(self.objects))
            del self.objects[key]
            self.cluster.apply(key, None)

    def calico(self, i: int) -> dict[str, Any]:
        """With rules about this end as well, so that addresses of one group differ."""
        r = self.random

        def entity() -> dict[str, Any]:
            return r.choice(({}, {"selector": r.choice(SELECTORS)}, {"notSelector": r.choice(SELECTORS)},
                             {"nets": [r.choice(NETS)]}, {"notNets": [r.choice(NETS)]}))  # fmt: skip

        def rules() -> list[dict[str, Any]]:
            return [
                {"action": r.choice(("Allow", "Deny", "Pass")), "source": entity(), "destination": entity()}
                for _ in range(r.randint(1, 2))
            ]

        spec = {"selector": r.choice(SELECTORS), "order": r.randint(0, 3), "ingress": rules(), "egress": rules()}
        return {**CALICO, "kind": "GlobalNetworkPolicy", "metadata": {"name": f"g{i}"}, "spec": spec}

    def net_set(self, i: int) -> dict[str, Any]:
        metadata = {"name": f"s{i}", "labels": self.world.labels()}
        spec = {"nets": [self.random.choice(NETS)]}
        return {**CALICO, "kind": "GlobalNetworkSet", "metadata": metadata, "spec": spec}

    def compare(self, questions: int) -> None:
        live = self.cluster.snapshot()
        fresh = compile_policies(
            self.objects.values(), self.pods.values(), self.namespaces.values(), self.nodes.values(),
            lambda pod: pod.node == "n1",
        )  # fmt: skip
        for _ in range(questions):
            family = self.random.choice((4, 6))
            ends = [a for a in (*POOL, *NODE_POOL, *OUTSIDE) if a.version == family]
            ask = self.random.choice(ends), self.random.choice(ends), self.random.choice(("TCP", "UDP")), 80
            assert live.knows(ask[0]) == fresh.knows(ask[0])
            assert [(d, action) for d, _, _, action in live.trace(*ask)] == [
                (d, action) for d, _, _, action in fresh.trace(*ask)
            ], ask
            assert live.allowed(*ask) == fresh.allowed(*ask), ask


CALICO = {"apiVersion": "projectcalico.org/v3"}


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_each_change_leads_to_what_a_fresh_start_says(seed: int) -> None:
    told = Told(seed)
    for _ in range(30):
        told.change()
        told.compare(15)


def network_policy(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "x"}}
    return {**kind, "spec": {"podSelector": {}, "ingress": rules}}


def test_a_failed_snapshot_leaves_nothing_behind() -> None:
    cluster = Cluster()
    cluster.set_pod(Pod("x", "a", {"app": "a"}, (ip_address("10.244.0.1"),)))
    cluster.set_pod(Pod("x", "b", {"app": "b"}, (ip_address("10.244.0.2"),)))
    cluster.apply("small", network_policy("small", [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}]))
    first = cluster.snapshot()
    used = len(cluster.endpoints.membership.sets.uses)
    peers = [{"podSelector": {"matchLabels": {"app": str(i)}}} for i in range(1_000)]
    ports = [{"port": 2 * i + 1} for i in range(600)]
    cluster.apply("huge", network_policy("huge", [{"from": peers, "ports": ports}]))
    for _ in range(2):
        with pytest.raises(PolicyError, match="traffic ranges"):
            cluster.snapshot()
        assert len(cluster.endpoints.membership.sets.uses) <= used
    cluster.apply("huge", None)
    last = cluster.snapshot()
    assert len(cluster.endpoints.membership.sets.uses) == used
    for snapshot in (first, last):
        assert snapshot.allowed("10.244.0.1", "10.244.0.2", "TCP", 80)
        assert not snapshot.allowed("198.51.100.7", "10.244.0.2", "TCP", 80)


@pytest.mark.slow
def test_what_changes_and_goes_is_not_kept() -> None:
    """After a thousand pods and policies have come and gone, as many sets, stages and entries are there as before."""
    cluster = Cluster()
    cluster.set_pod(Pod("x", "a", {"app": "a"}, (ip_address("10.244.0.1"),)))
    cluster.snapshot()
    sizes = []
    for i in range(1_000):
        label = {"matchLabels": {"app": f"a{i}"}}
        cluster.set_pod(Pod("x", "b", {"app": f"a{i}"}, (ip_address("10.244.1.0") + i,)))
        peers = [{"podSelector": label}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]
        cluster.apply("p", network_policy("p", [{"from": peers}]))
        cluster.snapshot()
        table = cluster.table
        sizes.append((len(table.entries.words), len(table.entries.sets.items), len(table.stages.pool.items)))
    assert max(sizes) == max(sizes[:10])
    assert len(cluster.endpoints.stages) <= 2
    assert len(cluster.endpoints.membership.sets.uses) <= 3


def test_a_number_of_a_rule_that_is_long_gone_names_no_other() -> None:
    cluster = Cluster()
    cluster.set_pod(Pod("x", "a", {}, (ip_address("10.244.0.1"),)))
    cluster.apply("stays", network_policy("stays", [{"ports": [{"port": 80}]}]))
    stays = cluster.snapshot().verdict("198.51.100.7", "10.244.0.1", "TCP", 80)[2]
    cluster.apply("q", network_policy("q", [{"ports": [{"port": 1}]}, {"ports": [{"port": 2}]}]))
    gone = cluster.snapshot().verdict("198.51.100.7", "10.244.0.1", "TCP", 2)[2]
    assert stays is not None
    assert gone is not None
    assert cluster.snapshot().describe(gone) == "NetworkPolicy x/q spec.ingress[1]"
    for i in range(1_002):
        cluster.apply("q", network_policy("q", [{"ports": [{"port": i + 3}]}]))
    snapshot = cluster.snapshot()
    assert snapshot.describe(gone) == "unknown rule"
    assert snapshot.describe(stays) == "NetworkPolicy x/stays spec.ingress[0]"
