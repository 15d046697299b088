"""The API objects that policy needs, reduced to what it needs, and a table of those that exist now. Pure.

Of Pods: labels, node, hostNetwork, account, container ports, phase and addresses; of Namespaces and Nodes the labels,
of Nodes the addresses too; of policies the labels, our own annotations and the spec. The rest is skipped by the
decoder, so that what does not concern policy (a heartbeat, a condition) changes nothing. What is kept has the API's own
shape.
Source: Kubernetes API v1, networking.k8s.io/v1, policy.networking.k8s.io/v1alpha2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from fabric.store.kube import nodes
from fabric.store.kube.nodes import DecodeError, Event, Failure, Page

OURS = "podfabric.io/"
MAX_OBJECTS = 200_000


class _Meta(msgspec.Struct, omit_defaults=True):
    name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    resourceVersion: str = ""


class _Port(msgspec.Struct, omit_defaults=True):
    name: str | None = None
    containerPort: int | None = None
    protocol: str | None = None


class _Container(msgspec.Struct, omit_defaults=True):
    ports: list[_Port] | None = None


class _PodSpec(msgspec.Struct, omit_defaults=True):
    nodeName: str | None = None
    hostNetwork: bool | None = None
    serviceAccountName: str | None = None
    containers: list[_Container] | None = None
    initContainers: list[_Container] | None = None


class _Ip(msgspec.Struct, omit_defaults=True):
    ip: str = ""


class _PodStatus(msgspec.Struct, omit_defaults=True):
    phase: str | None = None
    podIP: str | None = None
    podIPs: list[_Ip] | None = None


class _Address(msgspec.Struct, omit_defaults=True):
    type: str = ""
    address: str = ""


class _NodeStatus(msgspec.Struct, omit_defaults=True):
    addresses: list[_Address] | None = None


class _Pod(msgspec.Struct, omit_defaults=True):
    metadata: _Meta
    spec: _PodSpec | None = None
    status: _PodStatus | None = None


class _Namespace(msgspec.Struct, omit_defaults=True):
    metadata: _Meta


class _Node(msgspec.Struct, omit_defaults=True):
    metadata: _Meta
    status: _NodeStatus | None = None


class _Policy(msgspec.Struct, omit_defaults=True):
    metadata: _Meta
    spec: Any = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of an object: `name` is `NAMESPACE/NAME`, `version` its resourceVersion as a number."""

    name: str
    version: int
    value: Mapping[str, Any]


class ObjectKind:
    """One kind of objects, a `Kind` of `fabric.store.kube.api`. `optional`: clusters without it are complete, too."""

    def __init__(self, path: str, version: str, kind: str, shape: type, optional: bool = False) -> None:
        self.path = path
        self.version = version
        self.kind = kind
        self.optional = optional
        self._decoder: Any = msgspec.json.Decoder(shape)

    def decode_list(self, data: bytes | bytearray) -> Page[Kept]:
        """A page of the list. Raises DecodeError; items that are bad are put aside."""
        version, more, items = nodes.split_list(data)
        found: list[Kept] = []
        bad: list[tuple[str, str]] = []
        for item in items:
            try:
                found.append(self._kept(item))
            except DecodeError as error:
                bad.append((_name(item), str(error)))
        return Page(version, more, tuple(found), tuple(bad))

    def decode_event(self, line: bytes | bytearray) -> Event[Kept] | Failure:
        """A line of the watch. Raises DecodeError."""
        found = nodes.split_event(line)
        if isinstance(found, Failure):
            return found
        kind, item = found
        version = nodes.version_of(item)
        if kind == "BOOKMARK":
            return Event("BOOKMARK", version)
        try:
            kept = self._kept(item)
        except DecodeError as error:
            return Event(kind, version, _name(item), None, str(error))
        return Event(kind, version, kept.name, kept)

    def _kept(self, item: msgspec.Raw) -> Kept:
        found = nodes.decode(self._decoder, item)
        value: dict[str, Any] = msgspec.to_builtins(found)
        metadata = value["metadata"]
        version = nodes.number(metadata.pop("resourceVersion", ""))
        given = metadata.pop("annotations", None) or {}
        ours = {name: text for name, text in given.items() if name.startswith(OURS)}
        if ours:
            metadata["annotations"] = ours
        if not metadata.get("name"):
            raise DecodeError(f"a {self.kind} without a name")
        name = f"{metadata.get('namespace', '')}/{metadata['name']}"
        return Kept(name, version, {"apiVersion": self.version, "kind": self.kind, **value})


def _name(item: msgspec.Raw) -> str:
    try:
        metadata = nodes.decode(_NAMED, item).metadata
    except DecodeError:
        return ""
    return f"{metadata.namespace}/{metadata.name}"


_NAMED: Any = msgspec.json.Decoder(_Namespace)
NETWORKING = "networking.k8s.io/v1"
CLUSTER = "policy.networking.k8s.io/v1alpha2"
KINDS = (
    ObjectKind("/api/v1/namespaces", "v1", "Namespace", _Namespace),
    ObjectKind("/api/v1/nodes", "v1", "Node", _Node),
    ObjectKind("/api/v1/pods", "v1", "Pod", _Pod),
    ObjectKind(f"/apis/{NETWORKING}/networkpolicies", NETWORKING, "NetworkPolicy", _Policy),
    ObjectKind(f"/apis/{CLUSTER}/clusternetworkpolicies", CLUSTER, "ClusterNetworkPolicy", _Policy, optional=True),
)


class ObjectTable:
    """The objects of one kind by name, kept current by lists and watch events: a `Table` of the reflector.

    Events are taken by each object's own version, so that duplicates and reordered ones end in the same table; names of
    deleted objects are kept until the next list for that. `number` grows with every change of `objects`.
    """

    def __init__(self, kind: str, limit: int = MAX_OBJECTS) -> None:
        self.number = 0
        self._kind = kind
        self._limit = limit
        self._rows: dict[str, Kept] = {}
        self._deleted: dict[str, int] = {}
        self._problems: dict[str, str] = {}
        self._news: list[str] = []

    def objects(self) -> Mapping[str, Kept]:
        """All by name; not to be changed."""
        return self._rows

    def problems(self) -> Mapping[str, str]:
        """Objects that cannot be read, with the reason; their last good values stay."""
        return self._problems

    def replace(self, found: Sequence[Kept], bad: Sequence[tuple[str, str]]) -> bool:
        """Take a complete list over; whether anything is different now."""
        before, self._rows, self._deleted = self._rows, {}, {}
        old_problems, self._problems = self._problems, {}
        for kept in found[: self._limit]:
            old = before.get(kept.name)
            self._rows[kept.name] = old if old is not None and old.value == kept.value else kept
        for name, problem in bad:
            if name in before:
                self._rows[name] = before[name]
            self._say(name, problem, old_problems)
        if len(found) > self._limit:
            self._say("", f"more than {self._limit}: the rest is not used", old_problems)
        changed = before.keys() != self._rows.keys() or any(row is not before[n] for n, row in self._rows.items())
        self.number += changed
        return changed

    def apply(self, event: Event[Kept]) -> bool:
        """Take one event over; whether anything is different now."""
        version, name = nodes.number(event.version), event.name
        old = self._rows.get(name)
        if version and version <= max(old.version if old else 0, self._deleted.get(name, 0)):
            return False
        if event.kind == "DELETED":
            self._deleted[name] = version
            self._problems.pop(name, None)
            changed = self._rows.pop(name, None) is not None
        elif event.node is None:
            self._say(name, event.problem, self._problems)
            return False
        else:
            self._problems.pop(name, None)
            changed = self._put(event.node, old)
        self.number += changed
        return changed

    def _put(self, kept: Kept, old: Kept | None) -> bool:
        if old is None and len(self._rows) >= self._limit:
            self._say("", f"more than {self._limit}: the rest is not used", self._problems)
            return False
        if old is not None and old.value == kept.value:
            self._rows[kept.name] = Kept(old.name, kept.version, old.value)
            return False
        self._rows[kept.name] = kept
        return True

    def complaints(self) -> list[str]:
        """What is newly wrong, one line each; a second call has none of these."""
        news, self._news = self._news, []
        return news

    def _say(self, name: str, problem: str, known: Mapping[str, str]) -> None:
        if known.get(name) != problem:
            what = f"{self._kind} {name[:120]!r} is not used" if name else f"{self._kind}s"
            self._news.append(f"{what}: {problem}")
        self._problems[name] = problem
