"""Network policy: objects of three APIs in, one immutable table out, a verdict for every new flow. Pure, no I/O.

    dict --parse--> Policy, Tier, NetSet --Cluster--> stages, sets, address table --> PolicySnapshot --judge--> verdict

Theory of operation. Kubernetes' NetworkPolicy, ClusterNetworkPolicy and Calico's policies are read into one form
(`rules`): tiers of policies of rules. Tiers are asked in order (Admin, Calico's by order with Kubernetes' policies in
its tier `default`, Baseline); in each the first matching rule decides or passes on, and behind the last one a flow is
allowed. A tier in which no policy selects the pod is not asked. Every peer of a rule is a *set* of addresses with a
number (`sets`); pods that no selector can tell apart are one *group* (`groups`). The address table (`addresses`) maps
an address to the sets it is in; a tier for one kind of endpoint is a *stage* (`stages`). `judge` intersects the two.
A change goes from `population` and `store` over `membership` (who is selected, who is in which set) and `endpoints`
(stages) to `table` (entries of addresses), each of which touches only what depends on it.

Rules that hold whatever policies say: a pod reaches itself; a node reaches its own pods; pods in the host's network are
their node (no policy selects them, no selector of pods means them). Replies are the flow table's. A rule without
ports is about every protocol, ICMP included; a rule with ports about those protocols alone, so an isolated pod's ICMP
needs a rule without ports (or Calico's ICMP rule). ipBlock and networks see the addresses on the wire, of pods too.

Fail closed: an invalid object is refused with the field and the reason and the last good one stays (`store`); what a
ClusterNetworkPolicy says that is not supported (domain names) makes an Accept rule match nothing and another rule deny
everything; a Calico tier that does not exist denies at its end. `PolicySnapshot.knows` says whether an address is
that of a pod it was compiled for: one it does not know is judged as if outside (selectors do not mean it, blocks do,
no rules of its own), so a port's owner must ask first.

Limits. 20,000 objects, 65,536 distinct peers, 500,000 traffic ranges in one tier of an endpoint, 8,000,000 set
memberships: beyond, `Cluster.snapshot` raises PolicyError. Log rules decide nothing and are not counted. Not
supported and refused: Calico's HTTP, Services, labels of service accounts, host endpoints, named ports of sources and
in notPorts. Of two pods with one address the one told last counts. Sources: Kubernetes `networking/v1`,
network-policy-api `v1alpha2`, Calico `v3`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabric.policy.cluster import Cluster, compile_policies
    from fabric.policy.errors import PolicyError
    from fabric.policy.explanation import Explanation, explain
    from fabric.policy.judge import PolicySnapshot
    from fabric.policy.model import Namespace, Node, Pod

__all__ = [
    "Cluster",
    "Explanation",
    "Namespace",
    "Node",
    "Pod",
    "PolicyError",
    "PolicySnapshot",
    "compile_policies",
    "explain",
]
_PLACES = {
    "Cluster": "cluster",
    "compile_policies": "cluster",
    "PolicyError": "errors",
    "Explanation": "explanation",
    "explain": "explanation",
    "PolicySnapshot": "judge",
    "Namespace": "model",
    "Node": "model",
    "Pod": "model",
}


def __getattr__(name: str) -> object:
    """Load what is asked for only then: the data path needs `judge`, and starts without the compiler (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return found
