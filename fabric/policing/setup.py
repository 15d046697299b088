"""The keeper of one node, put together from its options and its other parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fabric.errors import StartError
from fabric.policing.documents import Given
from fabric.policing.keeper import PolicyDataplane, PolicyKeeper
from fabric.policing.source import PolicySource
from fabric.policing.world import OwnNode, World, lease_addresses

if TYPE_CHECKING:
    from fabric.daemon.node import Node


def make_keeper(node: Node) -> PolicyKeeper:
    """For a node that has its lease. Reads what an earlier run has left."""
    options = node.options
    if not hasattr(node.forwarding.dataplane, "set_policy"):
        raise StartError("the data path of this build enforces no policy: leave out --policy-dir")
    name = node.cluster.own_lease.node or options.node_name

    def world(objects: Mapping[str, Given]) -> World:
        own = node.cluster.own_lease
        addresses = (*node.external.underlay, *node.external.public, *lease_addresses(own))
        return World(
            OwnNode(name, tuple(dict.fromkeys(addresses))),
            objects,
            tuple(node.pods.records()),
            tuple(node.cluster.leases()),
        )

    def dataplane() -> PolicyDataplane:
        return cast(PolicyDataplane, node.forwarding.dataplane)

    return PolicyKeeper(make_sources(node), name, world, dataplane, Path(options.state_dir))


def make_sources(node: Node) -> list[PolicySource]:
    """By the options; of two objects with one name the later source's counts."""
    found: list[PolicySource] = []
    if node.options.policy.directory:
        from fabric.policing.directory import PolicyDirectory

        found.append(PolicyDirectory(Path(node.options.policy.directory)))
    return found
