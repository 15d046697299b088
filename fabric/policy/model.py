"""What policies are about: pods, namespaces and nodes. Immutable values; equality means "nothing to do"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address
NAME_LABEL = "kubernetes.io/metadata.name"
"""The label that the API server gives every namespace: its own name."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as policies see it. `ports` are its named container ports: {name: (protocol, number)}.

    A pod with `host_network` has its node's addresses: no policy selects it and no selector matches it as a peer.
    """

    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[Address, ...] = ()
    node: str = ""
    host_network: bool = False
    ports: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    service_account: str = "default"

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace; `kubernetes.io/metadata.name` is always among its labels as matched, given or not."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def matched_labels(self) -> dict[str, str]:
        return {**self.labels, NAME_LABEL: self.name}


@dataclass(frozen=True, slots=True)
class Node:
    """A node; traffic from any of its addresses to its own pods is always allowed."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[Address, ...] = ()
