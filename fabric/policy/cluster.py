"""All inputs of policy, and what was compiled from them before: a change costs what it touches.

Kept between snapshots: groups of pods with the sets and policies they are in, sets with their ranges, compiled stages
by what they were compiled from, and the address table. A snapshot is a copy of the flat arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fabric.policy.endpoints import Endpoints
from fabric.policy.errors import PolicyError
from fabric.policy.judge import PolicySnapshot
from fabric.policy.model import Namespace, Node, Pod
from fabric.policy.parse import object_key
from fabric.policy.population import Population
from fabric.policy.rules import Policy
from fabric.policy.store import PolicyStore, Result
from fabric.policy.table import Table


class Cluster:
    """`local` says which pods live on this node: only their rules are compiled (default: all of them). It must say the
    same of a pod each time; objects given must not be changed afterwards.
    """

    def __init__(self, local: Callable[[Pod], bool] | None = None) -> None:
        self.store = PolicyStore()
        self.population = Population(local or (lambda pod: True))
        self.endpoints = Endpoints(self.population)
        self.table = Table(self.population, self.endpoints)
        self.number = 0

    def apply(self, key: str, value: Mapping[str, Any] | None) -> Result:
        """Add, change or (None) delete an object. An invalid one is not taken, and the last good one stays."""
        before = self.store.objects.get(key)
        result = self.store.apply(key, value)
        after = self.store.objects.get(key)
        if after != before:
            try:
                self._exchange(key, before, after)
            except PolicyError as error:
                self.store.put(key, before)
                return Result(error, before is not None)
        return result

    def _exchange(self, key: str, before: object, after: object) -> None:
        if isinstance(before, Policy) or isinstance(after, Policy):
            self.endpoints.set_policy(key, after if isinstance(after, Policy) else None)
        else:
            self.endpoints.set_other(self.store.tiers(), self.store.net_sets())

    def set_pod(self, pod: Pod) -> None:
        self.population.set_pod(pod)

    def delete_pod(self, namespace: str, name: str) -> None:
        self.population.delete_pod((namespace, name))

    def set_namespace(self, namespace: Namespace) -> None:
        self.endpoints.forget_groups(self.population.set_namespace(namespace))

    def delete_namespace(self, name: str) -> None:
        self.endpoints.forget_groups(self.population.set_namespace(Namespace(name)))

    def set_node(self, node: Node) -> None:
        self.population.set_node(node)

    def delete_node(self, name: str) -> None:
        self.population.delete_node(name)

    def snapshot(self) -> PolicySnapshot:
        """Everything as it is now. Raises PolicyError where a limit is passed; the snapshot before stays good."""
        self.number += 1
        return self.table.snapshot(self.number)


def compile_policies(
    objects: Iterable[Mapping[str, Any]],
    pods: Iterable[Pod],
    namespaces: Iterable[Namespace],
    nodes: Iterable[Node],
    local: Callable[[Pod], bool] | None = None,
) -> PolicySnapshot:
    """One snapshot of everything given. `local` says which pods live here (default: all). Raises PolicyError."""
    cluster = Cluster(local)
    for namespace in namespaces:
        cluster.set_namespace(namespace)
    for node in nodes:
        cluster.set_node(node)
    for pod in pods:
        cluster.set_pod(pod)
    for item in objects:
        result = cluster.apply(object_key(item), item)
        if result.error:
            raise result.error
    return cluster.snapshot()
