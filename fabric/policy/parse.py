"""From a decoded object to what it means here, by its apiVersion and kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fabric.policy.calico import read_calico_policy, read_net_set, read_tier
from fabric.policy.cluster_policy import read_cluster_policy
from fabric.policy.errors import PolicyError
from fabric.policy.fields import Fields
from fabric.policy.kubernetes import read_network_policy
from fabric.policy.rules import Established, NetSet, Policy, Tier

Parsed = Policy | Tier | NetSet
KUBERNETES = "networking.k8s.io/v1"
CLUSTER = "policy.networking.k8s.io/v1alpha2"
CALICO = ("projectcalico.org/v3", "crd.projectcalico.org/v1")
ESTABLISHED = "podfabric.io/established"
"""The annotation by which a policy chooses what becomes of established flows that it refuses."""
STAGED = "podfabric.io/staged"
"""The annotation by which a policy is only looked at (`"true"`)."""
CHOICES = {"keep": Established.KEEP, "re-evaluate": Established.RE_EVALUATE, "reset": Established.RESET}


def parse_object(value: Any) -> Parsed:
    """Raises PolicyError for anything that cannot be enforced exactly as written."""
    top = Fields(value, "")
    parsed = _parse_kind(top)
    annotations = top.child("metadata").child("annotations")
    if annotations.value.get(STAGED) == "true" and isinstance(parsed, Policy):
        parsed = replace(parsed, staged=True)
    if ESTABLISHED not in annotations:
        return parsed
    if not isinstance(parsed, Policy):
        raise PolicyError(annotations.at(ESTABLISHED), "is for policies: a tier or a network set refuses nothing")
    return replace(parsed, established=CHOICES[annotations.choice(ESTABLISHED, *CHOICES)])


def _parse_kind(top: Fields) -> Parsed:
    version, kind = top.text("apiVersion"), top.text("kind")
    metadata, spec = top.child("metadata"), top.child("spec")
    name, namespace = metadata.text("name"), metadata.text("namespace", "")
    if version == CLUSTER and kind == "ClusterNetworkPolicy":
        return read_cluster_policy(name, spec)
    if (version == KUBERNETES or version in CALICO) and kind in ("NetworkPolicy", "NetworkSet"):
        namespace = namespace or "default"
        if version == KUBERNETES and kind == "NetworkPolicy":
            return read_network_policy(namespace, name, spec)
        if version in CALICO:
            if kind == "NetworkPolicy":
                return read_calico_policy(namespace, name, spec)
            return read_net_set(namespace, name, metadata.labels("labels"), spec)
    if version in CALICO and kind == "GlobalNetworkPolicy":
        return read_calico_policy("", name, spec)
    if version in CALICO and kind == "Tier":
        return read_tier(name, spec)
    if version in CALICO and kind == "GlobalNetworkSet":
        return read_net_set("", name, metadata.labels("labels"), spec)
    raise PolicyError("kind", f"{kind} of {version} is not a policy that is enforced here")


def object_key(value: Any) -> str:
    """The object's own name: `apiVersion/kind/namespace/name`. Raises PolicyError where a part is missing."""
    top = Fields(value, "")
    metadata = top.child("metadata")
    return "/".join((top.text("apiVersion"), top.text("kind"), metadata.text("namespace", ""), metadata.text("name")))
