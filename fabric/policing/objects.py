"""The objects around policies: what names them, and Pod, Namespace and Node as the compiler wants them. Pure.

Of a Pod: labels, `spec.nodeName`, `hostNetwork`, `serviceAccountName`, named container ports, `status.podIPs`; one that
has ended (phase Succeeded or Failed) has no address any more. Of a Node: labels and `status.addresses` that are IPs.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from fabric.policy import Namespace, Node, Pod, PolicyError
from fabric.policy.fields import Fields
from fabric.policy.model import Address
from fabric.policy.parse import STAGED
from fabric.policy.rules import LAST_PORT

IN_NAMESPACE = ("NetworkPolicy", "NetworkSet", "Pod")
AROUND = ("Pod", "Namespace", "Node")
DEFAULT_NAMESPACE = "default"


def normal(value: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The key `apiVersion/kind/namespace/name`, and the object with its namespace written out.

    Raises PolicyError where a part is missing.
    """
    top = Fields(value, "")
    metadata = top.child("metadata")
    version, kind, name = top.text("apiVersion"), top.text("kind"), metadata.text("name")
    namespace = metadata.text("namespace", "")
    if kind in IN_NAMESPACE and not namespace:
        namespace = DEFAULT_NAMESPACE
        value = {**value, "metadata": {**metadata.value, "namespace": namespace}}
    elif kind not in IN_NAMESPACE and namespace:
        namespace = ""
    return "/".join((version, kind, namespace, name)), value


def title(key: str) -> str:
    """`NetworkPolicy default/web`, as explanations name it, from a key."""
    kind, namespace, name = key.rsplit("/", 3)[1:]
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def is_staged(value: Mapping[str, Any]) -> bool:
    """Whether a policy is only to be looked at, not enforced: annotation `podfabric.io/staged: "true"`."""
    metadata = value.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, Mapping) else None
    return isinstance(annotations, Mapping) and annotations.get(STAGED) == "true"


def is_around(key: str) -> bool:
    """Whether this is the key of a Pod, Namespace or Node, rather than of a policy."""
    version, kind = key.split("/", 2)[:2]
    return version == "v1" and kind in AROUND


def read_around(value: Mapping[str, Any]) -> Pod | Namespace | Node:
    """A Pod, Namespace or Node. Raises PolicyError."""
    top = Fields(value, "")
    metadata = top.child("metadata")
    name, labels = metadata.text("name"), metadata.labels("labels")
    kind = top.text("kind")
    if kind == "Namespace":
        return Namespace(name, labels)
    if kind == "Node":
        return Node(name, labels, _node_addresses(top))
    return _pod(top, metadata.text("namespace"), name, labels)


def _pod(top: Fields, namespace: str, name: str, labels: Mapping[str, str]) -> Pod:
    spec, status = top.child("spec"), top.child("status")
    host_network = spec.value.get("hostNetwork")
    if host_network not in (None, True, False):
        raise PolicyError(spec.at("hostNetwork"), "is not true or false")
    ended = status.text("phase", "") in ("Succeeded", "Failed")
    return Pod(
        namespace,
        name,
        labels,
        () if ended else _pod_addresses(status),
        spec.text("nodeName", ""),
        bool(host_network),
        _named_ports(spec),
        spec.text("serviceAccountName", "") or "default",
    )


def _pod_addresses(status: Fields) -> tuple[Address, ...]:
    texts = [(item.at("ip"), item.text("ip")) for item in status.children("podIPs")]
    if not texts and status.text("podIP", ""):
        texts = [(status.at("podIP"), status.text("podIP"))]
    return tuple(_address(text, path) for path, text in texts)


def _node_addresses(top: Fields) -> tuple[Address, ...]:
    given = top.child("status").children("addresses")
    ips = (item for item in given if item.text("type", "") in ("InternalIP", "ExternalIP"))
    return tuple(_address(item.text("address"), item.at("address")) for item in ips)


def _address(text: str, path: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise PolicyError(path, f"is {text[:60]!r}, not an IP address") from None


def _named_ports(spec: Fields) -> dict[str, tuple[str, int]]:
    """By name; of two ports with one name the first counts. Init containers may be sidecars that serve."""
    found: dict[str, tuple[str, int]] = {}
    for container in [*spec.children("containers"), *spec.children("initContainers")]:
        for port in container.children("ports"):
            name = port.text("name", "")
            if name:
                protocol = port.choice("protocol", "TCP", "UDP", "SCTP", default="TCP")
                found.setdefault(name, (protocol, port.number("containerPort", 1, LAST_PORT)))
    return found
