"""Policy as the rest of the daemon sees it. A daemon without policy imports nothing of it but this."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fabric.errors import FabricError

if TYPE_CHECKING:
    from fabric.daemon.control import Method
    from fabric.daemon.node import Node
    from fabric.policing.keeper import PolicyKeeper

log = logging.getLogger("fabric.policy")
METHODS = ("policy.list", "policy.explain", "policy.diff", "policy.hits", "policy.apply", "policy.delete")
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


def in_force(node: Node, params: Mapping[str, Any], result: Any) -> Any:
    """`result`, when the policy of the endpoint that has just come is in force, at the latest after ADD_SECONDS."""
    keeper, name = node.policy, params.get("name")

    async def later() -> Any:
        assert keeper is not None
        addresses = [address for item in node.pods.records() if item.name == name for address in item.addresses]
        if not await keeper.knows(addresses, ADD_SECONDS):
            log.warning("policy: %s stays closed for now: its pod's policy is not known yet", name)
        return result

    return result if keeper is None else later()


def status(keeper: PolicyKeeper | None) -> dict[str, Any]:
    """For `fabricctl status`."""
    if keeper is None:
        return {"sources": [], "problems": []}
    from fabric.policing.methods import status

    return status(keeper)
