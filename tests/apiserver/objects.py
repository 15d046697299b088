"""API objects as JSON: patches, subresources, status answers. Source: Kubernetes API conventions, RFC 7386."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
MERGE_KEYS = {"conditions": "type", "addresses": "type", "taints": "key"}
MAX_ANNOTATIONS = 256 << 10


@dataclass(frozen=True)
class Resource:
    plural: str
    kind: str
    namespaced: bool = False
    short: str = ""
    version: str = "v1"

    @property
    def root(self) -> list[str]:
        """The first parts of its paths."""
        return ["api", "v1"] if self.version == "v1" else ["apis", *self.version.split("/")]


RESOURCES = {
    item.plural: item
    for item in (
        Resource("nodes", "Node", short="no"),
        Resource("pods", "Pod", namespaced=True, short="po"),
        Resource("namespaces", "Namespace", short="ns"),
        Resource("events", "Event", namespaced=True, short="ev"),
        Resource("networkpolicies", "NetworkPolicy", namespaced=True, short="netpol", version="networking.k8s.io/v1"),
        Resource(
            "clusternetworkpolicies", "ClusterNetworkPolicy", short="cnp", version="policy.networking.k8s.io/v1alpha2"
        ),
    )
}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after

    def status(self) -> Object:
        found = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        return found | ({"details": {"retryAfterSeconds": int(self.retry_after)}} if self.retry_after else {})


def expired(version: object = "") -> ApiError:
    return ApiError(410, "Expired", f"too old resource version: {version}" if version else "the provided continue "
                    "parameter is too old to display a consistent list")  # fmt: skip


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def strategic_merge(target: Any, patch: Any) -> Any:
    """As RFC 7386, but lists of objects with a merge key are merged by it."""
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        elif isinstance(value, list) and key in MERGE_KEYS:
            result[key] = _merge_list(result.get(key) or [], value, MERGE_KEYS[key])
        else:
            result[key] = strategic_merge(result.get(key), value)
    return result


def _merge_list(old: list[Object], patch: list[Object], key: str) -> list[Object]:
    result = {item.get(key): item for item in old}
    for item in patch:
        if item.get("$patch") == "delete":
            result.pop(item.get(key), None)
        else:
            result[item.get(key)] = strategic_merge(result.get(item.get(key)), item)
    return list(result.values())


def updated(resource: Resource, old: Object, new: Object, subresource: str) -> Object:
    """What is stored after an update: the main resource leaves the status alone, `status` everything but metadata
    and status (kubernetes `pkg/registry/core/node/strategy.go`). Raises ApiError."""
    result = copy.deepcopy(new)
    kept = "spec" if subresource == "status" else "status"
    result.pop(kept, None)
    if kept in old:
        result[kept] = old[kept]
    for name in ("name", "namespace", "uid", "creationTimestamp"):
        if name in old["metadata"]:
            result["metadata"][name] = old["metadata"][name]
    size = sum(len(name) + len(value) for name, value in (result["metadata"].get("annotations") or {}).items())
    if size > MAX_ANNOTATIONS:
        raise ApiError(422, "Invalid", f"metadata.annotations: Too long: must have at most {MAX_ANNOTATIONS} bytes")
    if resource.version != "v1":  # as NetworkPolicies and custom resources have it
        generation = old["metadata"].get("generation", 0) + (new.get("spec") != old.get("spec"))
        result["metadata"]["generation"] = generation
    result |= {"kind": resource.kind, "apiVersion": resource.version}
    return result


def selected(item: Object, selector: str) -> bool:
    """Whether the object has these fields (`fieldSelector`: `a.b=c,d=`); the real server takes few names, we take all.
    Raises ApiError."""
    for term in filter(None, selector.split(",")):
        name, equals, wanted = term.partition("=")
        if not equals or name.endswith("!"):
            raise ApiError(400, "BadRequest", f"field selector {term!r}: not understood")
        found: Any = item
        for part in name.split("."):
            found = found.get(part, {}) if isinstance(found, dict) else {}
        if (found or "") != wanted.removeprefix("="):
            return False
    return True


def shown(resource: Resource, stored: Object, version: int, in_list: bool = False) -> Object:
    """An object as clients see it; members of a list have no kind."""
    result = dict(stored)
    result["metadata"] = {**stored["metadata"], "resourceVersion": str(version)}
    if in_list:
        result.pop("kind", None), result.pop("apiVersion", None)
    else:
        result |= {"kind": resource.kind, "apiVersion": resource.version}
    return result


def discovery(path: str) -> Object | None:
    """The documents by which kubectl finds out what there is."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        versions = [{"groupVersion": v, "version": v.split("/")[1]} for v in _group_versions()]
        groups = [{"name": v["groupVersion"].split("/")[0], "versions": [v], "preferredVersion": v} for v in versions]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "/version":
        return {"major": "1", "minor": "20", "gitVersion": "v1.20.2", "gitCommit": "", "gitTreeState": "clean",
                "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": ""}  # fmt: skip
    for version in ("v1", *_group_versions()):
        if path.strip("/").split("/") != (["api", "v1"] if version == "v1" else ["apis", *version.split("/")]):
            continue
        found = []
        for item in (item for item in RESOURCES.values() if item.version == version):
            common = {"singularName": "", "namespaced": item.namespaced, "kind": item.kind}
            found.append({"name": item.plural, **common, "verbs": VERBS, "shortNames": [item.short]})
            found.append({"name": f"{item.plural}/status", **common, "verbs": ["get", "patch", "update"]})
        return {"kind": "APIResourceList", "groupVersion": version, "resources": found}
    return None


def _group_versions() -> list[str]:
    return sorted({item.version for item in RESOURCES.values()} - {"v1"})
