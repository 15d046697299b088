"""The calculation's inputs and outputs, and what both halves of it ask of a lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fabric.config import NetConf
from fabric.model import (
    Address,
    Encapsulation,
    ExtensionPeer,
    ForwardingState,
    KernelState,
    Lease,
    Network,
)

OnLink = Mapping[Address, str | None]
"""Peers' underlay addresses: the device on whose link one is, None for one behind a gateway. One that is missing has
not been looked up yet."""


@dataclass(frozen=True, slots=True)
class Node:
    """What this node is: its configuration, own lease, own underlay addresses and MTUs in bytes.

    `underlay` are the addresses we send from, `public` those that we publish (they differ behind a NAT); `device` is
    the node port's name, `interface` the underlay device's; `mtu` is the pods'. `unavailable` names the formats that
    the data path cannot speak now, with the reason (a port that somebody holds).
    """

    conf: NetConf
    lease: Lease
    underlay: tuple[Address, ...]
    public: tuple[Address, ...]
    device: str
    underlay_mtu: int
    mtu: int
    interface: str = ""
    unavailable: Mapping[Encapsulation, str] = field(default_factory=dict)

    def subnets(self, lease: Lease) -> list[tuple[int, Network]]:
        """The lease's subnets of the families that are on here, with their IP version."""
        pairs: tuple[tuple[int, Any, Network | None], ...] = (
            (4, self.conf.ipv4, lease.subnet),
            (6, self.conf.ipv6, lease.ipv6_subnet),
        )
        return [(version, subnet) for version, limits, subnet in pairs if limits is not None and subnet is not None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one lease. `way` says how it is reached, both families' ways with a slash between where they
    differ; it is empty when the lease is not used. `reason` is empty when all of it is used, else one line that says
    why not; both are set for a lease of two families of which one is reached."""

    lease: Lease
    reason: str
    way: str = ""

    @property
    def used(self) -> bool:
        """Whether any of its subnets is reached."""
        return bool(self.way)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that follows from the current inputs. `verdicts` has one entry per foreign lease, in key order.

    `formats_needed` are the formats the data path has to have sockets for: our own type's, and those of peers, also of
    such as are unreached because a format is unavailable. It is empty when nothing needs the data path. `asked` are
    the peers' addresses whose being on link matters: what `OnLink` has to answer. `extension` are the peers for the
    extension backend's commands, in key order.
    """

    forwarding: ForwardingState
    kernel: KernelState
    verdicts: tuple[Verdict, ...]
    formats_needed: frozenset[Encapsulation] = frozenset()
    asked: frozenset[Address] = frozenset()
    extension: tuple[ExtensionPeer, ...] = ()


def public_of(lease: Lease, version: int) -> Address | None:
    """The address that peers send to, of one IP version."""
    return lease.public_ip if version == 4 else lease.public_ipv6


def data_of(lease: Lease, version: int) -> Any:
    """The backend's data of one IP version."""
    return lease.backend_data if version == 4 else lease.backend_v6_data
