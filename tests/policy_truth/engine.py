"""The engine under test as the tables of pods see it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from fabric.policy import Cluster, Namespace, Pod
from fabric.policy.parse import object_key
from tests.policy_truth.oracle import End
from tests.policy_truth.runner import World

Ask = Callable[[End, End, str, int], bool]


class Engine:
    """One cluster through all steps of a case, told of each change as a node's daemon is."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.objects: dict[str, Any] = {}
        self.pods: set[tuple[str, str]] = set()
        self.namespaces: set[str] = set()

    def ask(self, world: World) -> Ask:
        """A judge of this moment of `world`, asked by address alone, as the data path asks."""
        self._become(world)
        snapshot = self.cluster.snapshot()
        return lambda source, destination, protocol, port: snapshot.allowed(
            source.address, destination.address, protocol, port
        )

    def _become(self, world: World) -> None:
        objects = {object_key(item): item for item in world.policies.values()}
        for key in [*objects, *(self.objects.keys() - objects)]:
            result = self.cluster.apply(key, objects.get(key))
            assert result.error is None, result.error
        pods = pods_of(world.ends())
        for name, labels in world.namespaces.items():
            self.cluster.set_namespace(Namespace(name, dict(labels)))
        for pod in pods:
            self.cluster.set_pod(pod)
        for gone in self.pods - {pod.key for pod in pods}:
            self.cluster.delete_pod(*gone)
        for name in self.namespaces - world.namespaces.keys():
            self.cluster.delete_namespace(name)
        self.objects, self.namespaces = objects, set(world.namespaces)
        self.pods = {pod.key for pod in pods}


def pods_of(ends: dict[str, End]) -> list[Pod]:
    return [
        Pod(end.namespace, key.partition("/")[2], dict(end.labels), (ip_address(end.address),), ports=end.ports)
        for key, end in ends.items()
    ]
