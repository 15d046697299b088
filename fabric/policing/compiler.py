"""From one World to the next snapshot: what differs is given to the policy engine, which keeps the rest.

One thread at a time may use it. What is refused does not come in; the last good object of that name stays, which may be
of an earlier run (`remembered`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fabric.policing import objects
from fabric.policing.documents import Given
from fabric.policing.world import PodKey, World, merged_nodes, merged_pods
from fabric.policy import Cluster, Namespace, Node, Pod, PolicyError, PolicySnapshot, compile_policies


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one compilation came to. `accepted`: what is in force, by key. `refused`: why a key's present object is not;
    `warnings`: what of an accepted one is not enforced. `problem`: why the snapshot is an old one."""

    snapshot: PolicySnapshot | None = None
    accepted: Mapping[str, Given] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    warnings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problem: str = ""


class Compiler:
    """Of the node named `own`, whose pods' rules are compiled."""

    def __init__(self, own: str, remembered: Mapping[str, Given] | None = None) -> None:
        self.own = own
        self.accepted: dict[str, Given] = {}
        self.refused: dict[str, str] = {}
        self.warnings: dict[str, tuple[str, ...]] = {}
        self.problem = ""
        self.snapshot: PolicySnapshot | None = None
        self._remembered = dict(remembered or {})
        self._cluster = Cluster(lambda pod: pod.node == own)
        self._seen: dict[str, Given] = {}
        self._around: dict[str, Pod | Namespace | Node] = {}
        self._told_pods: dict[PodKey, Pod] = {}
        self._told_nodes: dict[str, Node] = {}
        self._told_namespaces: dict[str, Namespace] = {}
        self._changes = 1

    def compile(self, world: World) -> Outcome:
        """Take `world` over. The outcome's snapshot is the same one as before where nothing was to be compiled."""
        self._take_objects(world.objects)
        self._take_people(world)
        if self._changes:
            try:
                self.snapshot = self._cluster.snapshot()
                self.problem = ""
                self._changes = 0
            except PolicyError as error:
                self.problem = f"nothing new is enforced, the last snapshot stays: {error}"
        return Outcome(self.snapshot, dict(self.accepted), dict(self.refused), self._warnings(), self.problem)

    def _warnings(self) -> dict[str, tuple[str, ...]]:
        return {key: lines for key, lines in self.warnings.items() if lines}

    def _take_objects(self, now: Mapping[str, Given]) -> None:
        for key in self._seen.keys() - now.keys():
            self._set(key, None)
        for key, given in now.items():
            before = self._seen.get(key)
            if given is before:
                continue
            if before is not None and before.value == given.value:
                if key in self.accepted and key not in self.refused:
                    self.accepted[key] = given  # it stands elsewhere in its file
                self._seen[key] = given
                continue
            self._set(key, given)
        # What was remembered counts for this run's first look only: what is absent then was removed meanwhile.
        self._remembered.clear()

    def _set(self, key: str, given: Given | None) -> None:
        self.refused.pop(key, None)
        if given is None:
            self._seen.pop(key, None)
            self.warnings.pop(key, None)
            if self.accepted.pop(key, None) is not None:
                self._enter(key, None)
            return
        self._seen[key] = given
        try:
            self.warnings[key] = self._enter(key, given.value)
            self.accepted[key] = given
        except PolicyError as error:
            self.refused[key] = str(error)
            old = self._remembered.get(key)
            if key not in self.accepted and old is not None:
                self._set_remembered(key, old)

    def _set_remembered(self, key: str, old: Given) -> None:
        try:
            self._enter(key, old.value)
            self.accepted[key] = old
        except PolicyError:
            return

    def _enter(self, key: str, value: Mapping[str, Any] | None) -> tuple[str, ...]:
        """Give one object, or that it is gone, to who wants it. Raises PolicyError."""
        if objects.is_around(key):
            old = self._around.pop(key, None)
            try:
                if value is not None:
                    self._around[key] = objects.read_around(value)
            except PolicyError:
                if old is not None:
                    self._around[key] = old
                raise
            return ()
        result = self._cluster.apply(key, value)
        if result.error is not None:
            raise result.error
        self._changes += 1
        return result.warnings

    def _take_people(self, world: World) -> None:
        around = self._around.values()
        namespaces = {item.name: item for item in around if isinstance(item, Namespace)}
        self._exchange(self._told_namespaces, namespaces, self._cluster.set_namespace, self._cluster.delete_namespace)
        self._told_namespaces = namespaces
        nodes = merged_nodes(world.own, (item for item in around if isinstance(item, Node)), world.leases)
        self._exchange(self._told_nodes, nodes, self._cluster.set_node, self._cluster.delete_node)
        self._told_nodes = nodes
        pods = merged_pods(world.own, {p.key: p for p in around if isinstance(p, Pod)}, world.endpoints)
        self._exchange(self._told_pods, pods, self._cluster.set_pod, lambda key: self._cluster.delete_pod(*key))
        self._told_pods = pods

    def _exchange(
        self, before: Mapping[Any, Any], now: Mapping[Any, Any], put: Callable[[Any], None], gone: Callable[[Any], None]
    ) -> None:
        for key in before.keys() - now.keys():
            gone(key)
            self._changes += 1
        for key, item in now.items():
            old = before.get(key)
            if old is not item and old != item:
                put(item)
                self._changes += 1

    # -- questions

    def pod(self, key: PodKey) -> Pod | None:
        """A pod as it was compiled."""
        return self._told_pods.get(key)

    def pod_at(self, address: str) -> Pod | None:
        """The pod that has this address."""
        for pod in self._told_pods.values():
            if not pod.host_network and address in map(str, pod.addresses):
                return pod
        return None

    def node_at(self, address: str) -> str:
        """The name of the node that has this address, empty when none has."""
        return next((n.name for n in self._told_nodes.values() if address in map(str, n.addresses)), "")

    def judge_for(self, keys: frozenset[PodKey]) -> PolicySnapshot:
        """A snapshot of what is in force in which the rules of these pods are compiled, wherever they live."""
        return compile_policies(
            [given.value for key, given in self.accepted.items() if not objects.is_around(key)],
            self._told_pods.values(),
            self._told_namespaces.values(),
            self._told_nodes.values(),
            lambda pod: pod.key in keys,
        )
