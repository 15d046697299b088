"""Policy as the rest of the daemon sees it. A daemon without policy imports nothing of it but this."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fabric.errors import DataplaneError, FabricError

if TYPE_CHECKING:
    from fabric.daemon.control import Descriptors, Method
    from fabric.daemon.node import Node
    from fabric.daemon.pods import Pods
    from fabric.policing.keeper import PolicyKeeper

log = logging.getLogger("fabric.policy")
METHODS = ("policy.list", "policy.explain", "policy.diff", "policy.hits", "policy.denied", "policy.apply",
           "policy.delete")  # fmt: skip
ADD_SECONDS = 1.0
"""How long an ADD waits until the new pod's policy is in force; the pod is closed until then."""


class PolicyOffError(FabricError):
    """This daemon enforces no policy."""

    def __init__(self) -> None:
        flags = "--policy-dir or --store-policy, in Kubernetes with --kube-policy"
        super().__init__(f"this daemon enforces no policy: start it with {flags}")


async def wanted(node: Node) -> tuple[str, ...]:
    """The kinds of sources that this node takes policies from, before it has a lease; none: no policy."""
    options = node.options
    found = ["directory"] if options.policy.directory else []
    if options.policy.kube == "on":
        found.append("kubernetes")
    elif options.policy.kube == "auto" and options.flow_table:
        from fabric.policing.setup import may_read_policies

        if await may_read_policies(node):
            found.append("kubernetes")
    return tuple(found + (["store"] if options.policy.store else []))


def make_keeper(node: Node) -> PolicyKeeper | None:
    """The keeper of a node that has its lease; None where no policy is wanted."""
    if not node.policy_sources:
        return None
    from fabric.policing.setup import make_keeper

    return make_keeper(node)


def methods(node: Node) -> Mapping[str, Method]:
    """The control socket's methods."""
    return {name: _method(node, name) for name in METHODS}


def _method(node: Node, name: str) -> Method:
    def answer(params: dict[str, Any], passed: object) -> Any:
        if node.policy is None:
            raise PolicyOffError
        from fabric.policing.methods import METHODS

        return METHODS[name](node.policy, params)

    return answer


def add_port(node: Node, pods: Pods, params: Mapping[str, Any], passed: Descriptors) -> Any:
    """`port.add`: the record, then its policy, then the port: no packet meets rules of another pod of this address.

    After ADD_SECONDS the port is made all the same if it is closed without its policy, and refused if it is not.
    """
    keeper = node.policy
    if keeper is None:
        return pods.add_port(params, passed)

    async def later() -> Any:
        known = pods.record_port(params)
        endpoint = known.endpoint
        try:
            if not await keeper.knows(endpoint.addresses, ADD_SECONDS):
                if keeper.takes_for_another(endpoint.addresses):
                    raise DataplaneError(f"port {endpoint.name}: its policy is not in force yet: try again")
                log.warning("policy: %s stays closed for now: its pod's policy is not known yet", endpoint.name)
        except BaseException:
            pods.withdraw_port(known)
            raise
        return pods.make_port(known, passed)

    return later()


def add_endpoint(node: Node, params: Mapping[str, Any]) -> Any:
    """`endpoint.add`, answered when the pod's policy is in force, at the latest after ADD_SECONDS."""
    keeper, result = node.policy, node.pods.add_endpoint(params)
    if keeper is None:
        return result

    async def later() -> Any:
        name = result["name"]
        addresses = [address for item in node.pods.records() if item.name == name for address in item.addresses]
        if not await keeper.knows(addresses, ADD_SECONDS):
            log.warning("policy: %s stays closed for now: its pod's policy is not known yet", name)
        return result

    return later()


def status(keeper: PolicyKeeper | None) -> dict[str, Any]:
    """For `fabricctl status`."""
    if keeper is None:
        return {"sources": [], "problems": []}
    from fabric.policing.methods import status

    return status(keeper)
