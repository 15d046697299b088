"""The API objects that policy needs, reduced to what it needs, and a table of those that exist now. Pure.

Of Pods: labels, node, hostNetwork, account, container ports, phase and addresses; of Namespaces and Nodes the labels,
of Nodes the addresses too; of policies the labels, our own annotations and the spec, and beside these which object it
is. The rest is skipped by the decoder, so that what does not concern policy (a heartbeat, a condition) changes nothing.
What is kept has the API's own shape.
Source: Kubernetes API v1, networking.k8s.io/v1, policy.networking.k8s.io/v1alpha2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from fabric.store.kube import nodes
from fabric.store.kube.nodes import Bad, DecodeError, Event, Failure, Page

OURS = "podfabric.io/"
MAX_OBJECTS = 200_000


class _Meta(msgspec.Struct, omit_defaults=True):
    name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    resourceVersion: str = ""


class _PolicyMeta(_Meta, omit_defaults=True):
    uid: str = ""
    generation: int = 0


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
    metadata: _PolicyMeta
    spec: Any = None


class _Name(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resourceVersion: str = ""


class _Named(msgspec.Struct):
    metadata: _Name


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of an object: `name` is `NAMESPACE/NAME`, `version` its resourceVersion as a number.

    Of policies also `uid`, which tells an object from an earlier one of its name, and `generation`, which counts the
    changes of its spec. They are no part of `value`: what is equal there means the same to policy."""

    name: str
    version: int
    value: Mapping[str, Any]
    uid: str = ""
    generation: int = 0


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
        bad: list[Bad] = []
        for item in items:
            try:
                found.append(self._kept(item))
            except DecodeError as error:
                bad.append(_bad(item, str(error)))
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
            bad = _bad(item, str(error))
            return Event(kind, version, bad.name, None, bad.problem, bad.uid, bad.generation)
        return Event(kind, version, kept.name, kept)

    def _kept(self, item: msgspec.Raw) -> Kept:
        found = nodes.decode(self._decoder, item)
        value: dict[str, Any] = msgspec.to_builtins(found)
        metadata = value["metadata"]
        version = nodes.number(metadata.pop("resourceVersion", ""))
        uid, generation = metadata.pop("uid", ""), metadata.pop("generation", 0)
        given = metadata.pop("annotations", None) or {}
        ours = {name: text for name, text in given.items() if name.startswith(OURS)}
        if ours:
            metadata["annotations"] = ours
        if not metadata.get("name"):
            raise DecodeError(f"a {self.kind} without a name")
        name = f"{metadata.get('namespace', '')}/{metadata['name']}"
        return Kept(name, version, {"apiVersion": self.version, "kind": self.kind, **value}, uid, generation)


def _bad(item: msgspec.Raw, problem: str) -> Bad:
    try:
        found = nodes.decode(_NAMED, item).metadata
    except DecodeError:
        return Bad("", problem)
    version = nodes.number(found.resourceVersion)
    return Bad(f"{found.namespace}/{found.name}", problem, version, found.uid, found.generation)


_NAMED: Any = msgspec.json.Decoder(_Named)
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
        self._bad: dict[str, Bad] = {}
        self._news: list[str] = []

    def objects(self) -> Mapping[str, Kept]:
        """All by name; not to be changed."""
        return self._rows

    def problems(self) -> Mapping[str, str]:
        """Objects that cannot be read, with the reason; their last good values stay."""
        return {name: item.problem for name, item in self._bad.items()}

    def bad(self) -> Mapping[str, Bad]:
        """Objects that cannot be read, by name; under no name what is about all of them. Not to be changed."""
        return self._bad

    def replace(self, found: Sequence[Kept], bad: Sequence[Bad]) -> bool:
        """Take a complete list over; whether anything is different now."""
        before, self._rows, self._deleted = self._rows, {}, {}
        old_bad, self._bad = self._bad, {}
        for kept in found[: self._limit]:
            self._rows[kept.name] = _renewed(before.get(kept.name), kept)
        for item in bad:
            if item.name in before:
                self._rows[item.name] = before[item.name]
            self._say(item, old_bad)
        if len(found) > self._limit:
            self._say(self._too_many(), old_bad)
        changed = before.keys() != self._rows.keys() or any(_differs(before[n], row) for n, row in self._rows.items())
        self.number += changed
        return changed or old_bad != self._bad

    def apply(self, event: Event[Kept]) -> bool:
        """Take one event over; whether anything is different now."""
        version, name = nodes.number(event.version), event.name
        old = self._rows.get(name)
        if version and version <= max(old.version if old else 0, self._deleted.get(name, 0)):
            return False
        kept = None if event.kind == "DELETED" else event.node
        if kept is None and event.kind != "DELETED":
            return self._say(Bad(name, event.problem, version, event.uid, event.generation), self._bad)
        mended = self._bad.pop(name, None) is not None
        if kept is None:
            self._deleted[name] = version
            changed = self._rows.pop(name, None) is not None
        else:
            changed = self._put(kept, old)
        self.number += changed
        return changed or mended

    def _put(self, kept: Kept, old: Kept | None) -> bool:
        if old is None and len(self._rows) >= self._limit:
            return self._say(self._too_many(), self._bad)
        self._rows[kept.name] = row = _renewed(old, kept)
        return old is None or _differs(old, row)

    def complaints(self) -> list[str]:
        """What is newly wrong, one line each; a second call has none of these."""
        news, self._news = self._news, []
        return news

    def _too_many(self) -> Bad:
        return Bad("", f"more than {self._limit}: the rest is not used")

    def _say(self, item: Bad, known: Mapping[str, Bad]) -> bool:
        """Whether this is news to those who have seen `known`."""
        old = known.get(item.name)
        if old is None or old.problem != item.problem:
            what = f"{self._kind} {item.name[:120]!r} is not used" if item.name else f"{self._kind}s"
            self._news.append(f"{what}: {item.problem}")
        self._bad[item.name] = item
        return item != old


def _renewed(old: Kept | None, kept: Kept) -> Kept:
    """`kept`, with the very value of `old` where the two are equal: users compare by identity."""
    if old is None or old.value != kept.value:
        return kept
    return Kept(kept.name, kept.version, old.value, kept.uid, kept.generation)


def _differs(old: Kept, row: Kept) -> bool:
    """Whether the two mean something else, or are two objects."""
    return old.value is not row.value or old.uid != row.uid
