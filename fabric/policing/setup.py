"""The keeper of one node, put together from its options and its other parts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.policing import last_good
from fabric.policing.documents import Given
from fabric.policing.keeper import PolicyKeeper
from fabric.policing.source import PolicySource
from fabric.policing.world import OwnNode, World, lease_addresses

if TYPE_CHECKING:
    from fabric.daemon.node import Node
    from fabric.store.kube.api import Api

log = logging.getLogger("fabric.policy")


def make_keeper(node: Node) -> PolicyKeeper:
    """For a node that has its lease. Reads what an earlier run has left."""
    options = node.options
    name = node.cluster.own_lease.node or options.node_name

    def world(objects: Mapping[str, Given]) -> World:
        own = node.cluster.own_lease
        addresses = (*node.external.underlay, *node.external.public, *lease_addresses(own))
        return World(
            OwnNode(name, tuple(dict.fromkeys(addresses)), tuple(filter(None, (own.subnet, own.ipv6_subnet)))),
            objects,
            tuple(node.pods.records()),
            tuple(node.cluster.leases()),
            strict="kubernetes" in node.policy_sources,
        )

    return PolicyKeeper(
        make_sources(node, name), name, world, lambda: node.forwarding.dataplane, Path(options.state_dir),
        options.policy.services,
    )  # fmt: skip


def make_sources(node: Node, name: str) -> list[PolicySource]:
    """By what is wanted on the node of this name; of two objects with one name the later source's counts."""
    found: list[PolicySource] = []
    if "kubernetes" in node.policy_sources:
        from fabric.policing.kube_source import KubePolicySource

        found.append(KubePolicySource(_api(node), name))
    if "directory" in node.policy_sources:
        from fabric.policing.directory import PolicyDirectory

        found.append(PolicyDirectory(Path(node.options.policy.directory)))
    if "store" in node.policy_sources:
        from fabric.policing.store_source import StorePolicySource

        source = node.cluster.source
        prefix = source.prefix.removesuffix("subnets/") + "policy/"
        found.append(StorePolicySource(node.cluster.store, prefix, source.kind, source.url))
    return found


async def may_read_policies(node: Node) -> bool:
    """`--kube-policy auto`: whether the API lets us read policies.

    A cluster whose policies this node has enforced is believed to mean it: a role that was taken away, or an API that
    does not answer, does not open the pods. An API that never answered us counts as one that does let us.
    """
    from fabric.policing.kube_source import allowed, source_title

    api = _api(node)
    answer = await allowed(api)
    state_dir = Path(node.options.state_dir)
    known = last_good.load(state_dir)
    if answer or source_title(api) in known:
        return True
    if answer is None:
        return not (state_dir / last_good.NAME).exists()
    log.warning("policies of the Kubernetes API are not enforced, our role may not read them: "
                "apply docs/kubernetes/rbac.yaml, or give --kube-policy off")  # fmt: skip
    try:
        last_good.save(state_dir, last_good.render(known))
    except OSError as error:
        log.warning("--state-dir %s cannot be written: %s", state_dir, error.strerror)
    return False


def _api(node: Node) -> Api:
    from fabric.daemon.sources import KubeSource
    from fabric.store.kube.api import Api

    source = node.cluster.source
    assert isinstance(source, KubeSource)
    return Api(source.access, source.names)
