"""API objects turned into what we keep of a Node, and that into a store entry.

Only the fields named here are decoded; the rest (images, conditions, managedFields: nine tenths of a Node) is skipped
in C without becoming objects. Items of a list are decoded one by one, so that one that is not as it should be is told
apart from the others. Source: Kubernetes API, `Node`, `NodeList`, `WatchEvent`, `Status` of v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Generic, TypeVar

import msgspec

from fabric import jsonsafe, leases
from fabric.store.base import Entry
from fabric.store.kube.annotate import MANAGED, MAX_DATA_BYTES, Names

Item = TypeVar("Item")
UNKNOWN_AGE = 1 << 61  # younger than any Node with a creationTimestamp
MAX_DIGITS = 20


class NodeError(ValueError):
    """A Node that cannot be used. The message is one line."""


class DecodeError(ValueError):
    """An answer of the API as a whole that is not what it should be. The message is one line."""


@dataclass(frozen=True, slots=True)
class Node:
    """What is kept of a Node. `version` is its resourceVersion as a number, 0 when it is none; `created` is Unix time
    in seconds; `annotations` holds flannel's only; `pod_cidrs` is the text of spec.podCIDRs, or of spec.podCIDR; `uid`
    tells an object from an earlier one of the same name."""

    name: str
    version: int
    created: int
    pod_cidrs: tuple[str, ...]
    annotations: Mapping[str, str]
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Bad:
    """An object that cannot be used: `problem` says why. `version` is its resourceVersion as a number; `uid` and
    `generation` are filled for policies, since people are told about these in the API."""

    name: str
    problem: str
    version: int = field(default=0, compare=False)
    uid: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A part of a list, of Nodes or others. `more` is the token for the next part, empty at the end; `bad` are items
    without use."""

    version: str
    more: str
    nodes: tuple[Item, ...]
    bad: tuple[Bad, ...] = ()


@dataclass(frozen=True, slots=True)
class Event(Generic[Item]):
    """A watch event, of a Node or another object: `kind` is ADDED, MODIFIED, DELETED or BOOKMARK; `version` the
    object's resourceVersion.

    `node` is None for a bookmark, and for an object that cannot be used: `problem` then says why, `name` whose it is,
    `uid` and `generation` are those of `Bad`.
    """

    kind: str
    version: str
    name: str = ""
    node: Item | None = None
    problem: str = ""
    uid: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """A `Status` object: an error in the API's words. `code` is that of HTTP, 0 when the object has none."""

    code: int
    reason: str
    message: str
    retry_after: float = 0.0


class _Meta(msgspec.Struct):
    name: str = ""
    resourceVersion: str = ""
    uid: str = ""
    creationTimestamp: str | None = None
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct):
    podCIDR: str | None = None
    podCIDRs: list[str] | None = None
    nodeName: str | None = None


class _Object(msgspec.Struct):
    metadata: _Meta
    spec: _Spec | None = None


class _Name(msgspec.Struct):
    name: str = ""
    resourceVersion: str = ""


class _Named(msgspec.Struct):
    metadata: _Name


class _ListMeta(msgspec.Struct):
    resourceVersion: str = ""
    more: str | None = msgspec.field(name="continue", default=None)


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Details(msgspec.Struct):
    retryAfterSeconds: float | None = None


class _Status(msgspec.Struct):
    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: _Details | None = None


_OBJECT = msgspec.json.Decoder(_Object)
_NAMED = msgspec.json.Decoder(_Named)
_LIST = msgspec.json.Decoder(_List)
_EVENT = msgspec.json.Decoder(_Event)
_STATUS = msgspec.json.Decoder(_Status)


def number(version: str) -> int:
    """A resourceVersion as a number, 0 when it is none. Comparable since Kubernetes 1.35, in fact since ever."""
    return int(version) if version.isascii() and version.isdigit() and len(version) <= MAX_DIGITS else 0


def split_list(data: bytes | bytearray) -> tuple[str, str, list[msgspec.Raw]]:
    """A page of any list: its version, the token for the rest, and the items. Raises DecodeError."""
    found = decode(_LIST, data)
    if not found.metadata.resourceVersion:
        raise DecodeError("the list has no resourceVersion")
    return found.metadata.resourceVersion, found.metadata.more or "", list(found.items or ())


def split_event(line: bytes | bytearray) -> tuple[str, msgspec.Raw] | Failure:
    """One line of any watch: what happened to which object. Raises DecodeError when it is no event."""
    found = decode(_EVENT, line)
    if found.type == "ERROR":
        return decode_status(found.object)
    if found.type not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
        raise DecodeError(f"unknown watch event {found.type[:40]!r}")
    return found.type, found.object


def decode_list(data: bytes | bytearray, names: Names) -> Page[Node]:
    """A page of a NodeList. Raises DecodeError when it is no list; items that are bad are put aside."""
    version, more, items = split_list(data)
    nodes: list[Node] = []
    bad: list[Bad] = []
    for item in items:
        try:
            nodes.append(_node(item, names))
        except (DecodeError, NodeError) as error:
            bad.append(Bad(_name(item), str(error)))
    return Page(version, more, tuple(nodes), tuple(bad))


def decode_node(data: bytes | bytearray, names: Names) -> Node:
    """One Node. Raises DecodeError."""
    try:
        return _node(data, names)
    except NodeError as error:
        raise DecodeError(str(error)) from None


def decode_event(line: bytes | bytearray, names: Names) -> Event[Node] | Failure:
    """One line of a watch. Raises DecodeError when it is no event."""
    found = split_event(line)
    if isinstance(found, Failure):
        return found
    kind, item = found
    if kind == "BOOKMARK":
        return Event("BOOKMARK", version_of(item))
    try:
        node = _node(item, names)
    except (DecodeError, NodeError) as error:
        return Event(kind, _version(item), _name(item), None, str(error))
    return Event(kind, str(node.version or _version(item)), node.name, node)


def decode_status(data: bytes | bytearray | msgspec.Raw) -> Failure:
    """A Status object; never raises, since what is wrong with it matters less than what it is about."""
    try:
        found = decode(_STATUS, data)
    except DecodeError:
        return Failure(0, "", "")
    details = found.details
    seconds = details.retryAfterSeconds if details else None
    return Failure(found.code or 0, found.reason or "", " ".join((found.message or "")[:300].split()), seconds or 0.0)


def decode_pod_node(data: bytes | bytearray) -> str:
    """The name of the node on which a Pod runs, empty when it has none yet. Raises DecodeError."""
    spec = decode(_OBJECT, data).spec
    return (spec.nodeName or "") if spec else ""


def pod_subnets(node: Node) -> tuple[IPv4Network | None, IPv6Network | None]:
    """The node's podCIDRs, both None when none is assigned yet. Raises NodeError with flannel's message."""
    mixed = f'node "{node.name}" pod cidrs should be IPv4/IPv6 only or dualstack'
    found: dict[int, IPv4Network | IPv6Network] = {}
    if len(node.pod_cidrs) > 2:
        raise NodeError(mixed)
    for text in node.pod_cidrs:
        try:
            network = ip_network(text, strict=False)
            if "/" not in text or "%" in text:
                raise ValueError("not a prefix")
        except ValueError:
            raise NodeError(f'node "{node.name}" has a pod cidr that is none: {text[:60]!r}') from None
        if network.version in found:
            raise NodeError(mixed)
        found[network.version] = network
    v4, v6 = found.get(4), found.get(6)
    return v4 if isinstance(v4, IPv4Network) else None, v6 if isinstance(v6, IPv6Network) else None


def is_managed(node: Node, names: Names) -> bool:
    """Whether flannel, or we, manage the node's subnet."""
    return node.annotations.get(names.managed) == MANAGED


def entry_of(node: Node, names: Names, prefix: str) -> Entry | None:
    """The lease of a managed node as an entry under `prefix`; None as long as it has no podCIDR. Raises NodeError.

    Annotations that cannot be read become a value that `leases.parse` refuses with the reason, so that the node keeps
    its last good lease.
    """
    subnet, ipv6_subnet = pod_subnets(node)
    if subnet is None and ipv6_subnet is None:
        return None
    key = leases.key_of(subnet, ipv6_subnet, node.name)
    try:
        leases.parse_key(key)
    except leases.LeaseFormatError as error:
        raise NodeError(f"node {node.name[:80]!r} has no usable pod cidr: {error}") from None
    return Entry(prefix + key, _value(node, names), node.created, node.version)


def _value(node: Node, names: Names) -> bytes:
    """LeaseAttrs JSON; what the annotations say, not what it means."""
    found = node.annotations
    if not found.get(names.public_ip) and not found.get(names.public_ipv6):
        return leases.unreadable(f"annotation {names.public_ip} is missing")
    fields: dict[str, Any] = {
        "PublicIP": found.get(names.public_ip, ""),
        "PublicIPv6": found.get(names.public_ipv6) or None,
    }
    if found.get(names.backend_type):
        fields["BackendType"] = found[names.backend_type]
    for name, known_as in ((names.backend_data, "BackendData"), (names.backend_v6_data, "BackendV6Data")):
        text = found.get(name)
        if not text or text == "null":
            continue
        try:
            fields[known_as] = jsonsafe.loads(text, max_bytes=MAX_DATA_BYTES)
        except jsonsafe.JsonError as error:
            return leases.unreadable(f"annotation {name} is not valid JSON: {error}")
    return jsonsafe.dumps(fields).encode("utf-8", "surrogatepass")


def _node(data: bytes | bytearray | msgspec.Raw, names: Names) -> Node:
    found = decode(_OBJECT, data)
    meta, spec = found.metadata, found.spec
    if not meta.name:
        raise NodeError("a Node without a name")
    cidrs = (spec.podCIDRs or ([spec.podCIDR] if spec.podCIDR else [])) if spec else []
    given = meta.annotations or {}
    kept = {name: given[name] for name in names.all() if name in given} if given else {}
    return Node(meta.name, number(meta.resourceVersion), _age(meta.creationTimestamp), tuple(cidrs), kept, meta.uid)


def _age(text: str | None) -> int:
    try:
        return int(datetime.fromisoformat(text or "").timestamp())
    except (ValueError, OverflowError):
        return UNKNOWN_AGE


def _name(data: msgspec.Raw) -> str:
    try:
        return str(decode(_NAMED, data).metadata.name)
    except DecodeError:
        return ""


def version_of(data: msgspec.Raw) -> str:
    """An object's resourceVersion. Raises DecodeError."""
    return str(decode(_NAMED, data).metadata.resourceVersion)


def _version(data: msgspec.Raw) -> str:
    try:
        return version_of(data)
    except DecodeError:
        return ""


def decode(decoder: Any, data: bytes | bytearray | msgspec.Raw) -> Any:
    """What a msgspec decoder makes of `data`. Raises DecodeError."""
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise DecodeError(" ".join(str(error).split())[:200]) from None
    except (RecursionError, UnicodeDecodeError) as error:
        raise DecodeError(f"cannot be decoded: {type(error).__name__}") from None
