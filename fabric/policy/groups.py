"""Pods that no policy can tell apart but by address: a group. Selectors are asked once for a group, not for each
pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fabric.policy.model import Pod
from fabric.policy.rules import PROTOCOLS, Identity, NetSet

CALICO_LABELS = {"projectcalico.org/orchestrator": "k8s"}


@dataclass(frozen=True, slots=True)
class GroupKey:
    namespace: str
    labels: frozenset[tuple[str, str]]
    ports: frozenset[tuple[str, int, int]]
    account: str


def group_key(pod: Pod) -> GroupKey:
    ports = frozenset((name, PROTOCOLS[protocol], number) for name, (protocol, number) in pod.ports.items())
    return GroupKey(pod.namespace, frozenset(pod.labels.items()), ports, pod.service_account)


@dataclass(slots=True)
class Group:
    """`sets`: the sets its pods are in by labels alone. `policies`: keys of the policies that apply to them. `local`:
    how many of them live on this node.
    """

    key: GroupKey
    labels: Mapping[str, str]
    calico_labels: Mapping[str, str]
    pods: set[tuple[str, str]] = field(default_factory=set)
    sets: set[int] = field(default_factory=set)
    policies: set[str] = field(default_factory=set)
    local: int = 0


def make_group(key: GroupKey) -> Group:
    labels = dict(key.labels)
    own = {"projectcalico.org/namespace": key.namespace, "projectcalico.org/serviceaccount": key.account}
    return Group(key, labels, {**labels, **CALICO_LABELS, **own})


def group_matches(identity: Identity, group: Group, namespace_labels: Mapping[str, str]) -> bool:
    """Whether `identity` means the pods of this group, whose namespace has these labels."""
    key = group.key
    if identity.namespace is not None and identity.namespace != key.namespace:
        return False
    if identity.scoped is False or (identity.accounts is not None and key.account not in identity.accounts):
        return False
    labels = group.calico_labels if identity.calico else group.labels
    if identity.pods is not None and not identity.pods.matches(labels):
        return False
    return identity.namespaces is None or identity.namespaces.matches(namespace_labels)


def net_set_matches(identity: Identity, given: NetSet, namespace_labels: Mapping[str, str]) -> bool:
    """The same for a network set; only Calico's selectors mean those, and it has no service account."""
    if not identity.calico or identity.accounts is not None:
        return False
    if identity.namespace is not None and identity.namespace != given.namespace:
        return False
    if identity.scoped is not None and identity.scoped != bool(given.namespace):
        return False
    labels = dict(given.labels)
    if given.namespace:
        labels["projectcalico.org/namespace"] = given.namespace
    if identity.pods is not None and not identity.pods.matches(labels):
        return False
    return identity.namespaces is None or identity.namespaces.matches(namespace_labels)
