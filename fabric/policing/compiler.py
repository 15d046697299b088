"""From one World to the next snapshot: what differs is given to the policy engine, which keeps the rest.

One thread at a time may use it. What is refused does not come in; the last good object of that name stays, which may be
of an earlier run (`remembered`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fabric.policing import objects
from fabric.policing.documents import Given
from fabric.policing.world import Endpoints, OwnNode, PodKey, World, merged_nodes
from fabric.policy import Cluster, Namespace, Node, Pod, PolicyError, PolicySnapshot, compile_policies
from fabric.policy.parse import parse_object


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one compilation came to. `accepted`: what is in force, by key; `staged`: what would be. `refused`: why a
    key's present object is not; `warnings`: what of an accepted one is not enforced. `problem`: why the snapshot is an
    old one, or there is none."""

    snapshot: PolicySnapshot | None = None
    accepted: Mapping[str, Given] = field(default_factory=dict)
    staged: Mapping[str, Given] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    warnings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problem: str = ""


class _Around:
    """Pods, namespaces and nodes as their objects say, and which of them have changed since `settle`."""

    def __init__(self) -> None:
        self.pods: dict[PodKey, Pod] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.nodes: dict[str, Node] = {}
        self.settle()

    def settle(self) -> None:
        self.pods_changed: set[PodKey] = set()
        self.namespaces_changed = self.nodes_changed = False

    def put(self, key: str, item: Pod | Namespace | Node | None) -> None:
        """One object is this now; None: it is gone."""
        kind, namespace, name = key.rsplit("/", 3)[1:]
        if kind == "Pod":
            self._exchange(self.pods, (namespace, name), item)
            self.pods_changed.add((namespace, name))
        elif kind == "Namespace":
            self._exchange(self.namespaces, name, item)
            self.namespaces_changed = True
        else:
            self._exchange(self.nodes, name, item)
            self.nodes_changed = True

    @staticmethod
    def _exchange(found: dict[Any, Any], key: PodKey | str, item: Any) -> None:
        if item is None:
            found.pop(key, None)
        else:
            found[key] = item


class Compiler:
    """Of the node named `own`, whose pods' rules are compiled. `as_enforced`: staged policies count as if they were in
    force."""

    def __init__(
        self, own: str, remembered: Mapping[str, Given] | None = None, *, as_enforced: bool = False
    ) -> None:
        self.own = own
        self.as_enforced = as_enforced
        self.accepted: dict[str, Given] = {}
        self.staged: dict[str, Given] = {}
        self.refused: dict[str, str] = {}
        self.warnings: dict[str, tuple[str, ...]] = {}
        self.problem = ""
        self.snapshot: PolicySnapshot | None = None
        self._remembered = dict(remembered or {})
        self._cluster = Cluster(lambda pod: pod.node == own)
        self._seen: dict[str, Given] = {}
        self._around = _Around()
        self._world: World | None = None
        self._endpoints = Endpoints(OwnNode(own), ())
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
                self.problem = str(error)
        warnings = {key: lines for key, lines in self.warnings.items() if lines}
        return Outcome(
            self.snapshot, dict(self.accepted), dict(self.staged), dict(self.refused), warnings, self.problem
        )

    def _take_objects(self, now: Mapping[str, Given]) -> None:
        for key in self._seen.keys() - now.keys():
            self._set(key, None)
        for key, given in now.items():
            before = self._seen.get(key)
            if given is before:
                continue
            if before is not None and before.value == given.value:
                for known in (self.accepted, self.staged):
                    if key in known and key not in self.refused:
                        known[key] = given  # it stands elsewhere in its file
                self._seen[key] = given
                continue
            self._set(key, given)
        # What was remembered counts for this run's first look only: what is absent then was removed meanwhile.
        self._remembered.clear()

    def _set(self, key: str, given: Given | None) -> None:
        self.refused.pop(key, None)
        if given is None:
            self._seen.pop(key, None)
            self._leave(key)
            self.staged.pop(key, None)
            return
        self._seen[key] = given
        try:
            if objects.is_staged(given.value) and not (self.as_enforced or objects.is_around(key)):
                parse_object(given.value)
                self._leave(key)
                self.staged[key] = given
            else:
                self.warnings[key] = self._enter(key, given.value)
                self.accepted[key] = given
                self.staged.pop(key, None)
        except PolicyError as error:
            self.refused[key] = str(error)
            old = self._remembered.get(key)
            if key not in self.accepted and key not in self.staged and old is not None:
                self._set_remembered(key, old)

    def _leave(self, key: str) -> None:
        """What was in force under this key is so no more."""
        self.warnings.pop(key, None)
        if self.accepted.pop(key, None) is not None:
            self._enter(key, None)

    def _set_remembered(self, key: str, old: Given) -> None:
        try:
            self._enter(key, old.value)
            self.accepted[key] = old
        except PolicyError:
            return

    def _enter(self, key: str, value: Mapping[str, Any] | None) -> tuple[str, ...]:
        """Give one object, or that it is gone, to who wants it. Raises PolicyError."""
        if objects.is_around(key):
            self._around.put(key, None if value is None else objects.read_around(value))
            return ()
        result = self._cluster.apply(key, value)
        if result.error is not None:
            raise result.error
        self._changes += 1
        return result.warnings

    def _take_people(self, world: World) -> None:
        """Only what can be different is looked at: of 10,000 pods one has changed, as a rule."""
        around, before = self._around, self._world
        if around.namespaces_changed:
            self._exchange(
                self._told_namespaces, dict(around.namespaces), self._cluster.set_namespace,
                self._cluster.delete_namespace,
            )  # fmt: skip
        if around.nodes_changed or before is None or (before.own, before.leases) != (world.own, world.leases):
            nodes = merged_nodes(world.own, around.nodes.values(), world.leases)
            self._exchange(self._told_nodes, nodes, self._cluster.set_node, self._cluster.delete_node)
        keys: set[PodKey] = around.pods_changed
        if before is None or (before.own, before.endpoints) != (world.own, world.endpoints):
            self._endpoints = Endpoints(world.own, world.endpoints, world.strict)
            keys = {*self._told_pods, *around.pods, *self._endpoints.keys()}
        for key in keys:
            self._take_pod(key, self._endpoints.merged(key, around.pods.get(key)))
        self._world = world
        around.settle()

    def _take_pod(self, key: PodKey, pod: Pod | None) -> None:
        old = self._told_pods.get(key)
        if pod == old:
            return
        self._changes += 1
        if pod is None:
            del self._told_pods[key]
            self._cluster.delete_pod(*key)
        else:
            self._told_pods[key] = pod
            self._cluster.set_pod(pod)

    def _exchange(
        self, told: dict[str, Any], now: Mapping[str, Any], put: Callable[[Any], None], gone: Callable[[str], None]
    ) -> None:
        """Bring what was told to `now`."""
        for key in told.keys() - now.keys():
            gone(key)
            del told[key]
            self._changes += 1
        for key, item in now.items():
            if told.get(key) != item:
                put(item)
                told[key] = item
                self._changes += 1

    def known(self) -> Known:
        """What is in force now, for questions; it does not change any more."""
        return Known(
            self.own,
            self._world or World(OwnNode(self.own)),
            dict(self.accepted),
            dict(self._told_pods),
            dict(self._told_namespaces),
            dict(self._told_nodes),
        )


@dataclass(frozen=True, slots=True)
class Known:
    """What was in force at one moment. Its methods may take a second in a large cluster, in any thread."""

    own: str
    world: World
    accepted: Mapping[str, Given]
    pods: Mapping[PodKey, Pod]
    namespaces: Mapping[str, Namespace]
    nodes: Mapping[str, Node]

    def pod_at(self, address: str) -> Pod | None:
        """The pod that has this address."""
        for pod in self.pods.values():
            if not pod.host_network and address in map(str, pod.addresses):
                return pod
        return None

    def node_at(self, address: str) -> str:
        """The name of the node that has this address, empty when none has."""
        return next((n.name for n in self.nodes.values() if address in map(str, n.addresses)), "")

    def with_changes(self, changes: Mapping[str, Given]) -> PolicySnapshot:
        """The snapshot of what is in force with `changes` on top, staged ones too. Raises PolicyError."""
        world = replace(self.world, objects={**self.accepted, **changes})
        outcome = Compiler(self.own, as_enforced=True).compile(world)
        for key, reason in outcome.refused.items():
            raise PolicyError(objects.title(key), reason)
        if outcome.snapshot is None:
            raise PolicyError("policies", outcome.problem)
        return outcome.snapshot

    def judge_for(self, keys: frozenset[PodKey]) -> PolicySnapshot:
        """A snapshot of what is in force in which the rules of these pods are compiled, wherever they live."""
        return compile_policies(
            [given.value for key, given in self.accepted.items() if not objects.is_around(key)],
            self.pods.values(),
            self.namespaces.values(),
            self.nodes.values(),
            lambda pod: pod.key in keys,
        )
