"""Which firewall rules a node has: a pure function from `TrafficState` to chains of rules.

Source: flannel `pkg/trafficmngr/iptables/iptables.go` (`masqRules`, `masqIP6Rules`, `forwardRules`). With *pod* for
this node's subnet and *net* for the whole pod network, a packet that leaves the node and is not yet translated meets,
in this order:

    1  mark 0x4000/0x4000                        left alone   kube-proxy translates it
    2  source in pod, destination in net         left alone   a pod here to any pod
    3  source in net, destination in pod         left alone   any pod to a pod here
    4  source outside net, destination in pod    left alone   outside to the node that owns the pod: needs no detour
    5  source in net, destination not multicast  masqueraded  a pod to the outside
    6  source outside net, destination in net    masqueraded  host or outside to a pod elsewhere: replies return here

This is the list of flannel's iptables mode. Its nftables mode has another rule 4 (source outside *pod*, destination in
*net*), which leaves nothing for rule 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_network

from fabric.model import Network

KUBE_PROXY_MARK = 0x4000
"""Bit of the packet mark by which kube-proxy asks its own chain to masquerade; value and mask."""
MULTICAST: dict[int, Network] = {4: ip_network("224.0.0.0/4"), 6: ip_network("ff00::/8")}

SRCNAT = 100
AFTER_SRCNAT = SRCNAT + 5
"""flannel appends to iptables' POSTROUTING, so whoever translates there (priority 100) comes first. A translation once
chosen is final for a connection, so a chain that is asked later gives the same precedence."""
FILTER = 0


class Verdict(Enum):
    """What a rule that matches does. RETURN leaves the packet to the chain's policy, which is to accept."""

    RETURN = "return"
    ACCEPT = "accept"
    MASQUERADE = "masquerade"
    MASQUERADE_RANDOM = "masquerade fully-random"


@dataclass(frozen=True, slots=True)
class Inside:
    """An address condition: in `prefix`, or with `negated` outside it."""

    prefix: Network
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """All conditions that are given must hold. `mark` is a bit of the packet mark; `comment` is shown by `nft list`."""

    verdict: Verdict
    comment: str
    source: Inside | None = None
    destination: Inside | None = None
    mark: int = 0


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain with policy accept: `type` and `hook` by nftables' names, rules in order."""

    name: str
    type: str
    hook: str
    priority: int
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class TrafficState:
    """What the rules follow from. `networks` are the pod networks, `subnets` this node's own, one per family at most.

    `ip_masq` is `--ip-masq`, `random_fully` the opposite of `--ip-masq-fully-random-disable`, `forward`
    `--iptables-forward-rules`. The default is a node that wants no rules: what an earlier run left is removed.
    """

    networks: tuple[Network, ...] = ()
    subnets: tuple[Network, ...] = ()
    ip_masq: bool = False
    random_fully: bool = True
    forward: bool = False


def chains(state: TrafficState) -> tuple[Chain, ...]:
    """The chains of our own table; none when nothing is wanted."""
    made = []
    masquerade = tuple(masquerade_rules(state))
    if masquerade:
        made.append(Chain("postrouting", "nat", "postrouting", AFTER_SRCNAT, masquerade))
    forward = tuple(rule for network in state.networks for rule in forward_rules(network)) if state.forward else ()
    if forward:
        made.append(Chain("forward", "filter", "forward", FILTER, forward))
    return tuple(made)


def masquerade_rules(state: TrafficState) -> Iterator[Rule]:
    """The list above: rule 1 once, the others for each family that has both a network and a subnet."""
    subnets = {subnet.version: subnet for subnet in state.subnets}
    pairs = [(network, subnets[network.version]) for network in state.networks if network.version in subnets]
    if not state.ip_masq or not pairs:
        return
    masquerade = Verdict.MASQUERADE_RANDOM if state.random_fully else Verdict.MASQUERADE
    yield Rule(Verdict.RETURN, "kube-proxy translates it", mark=KUBE_PROXY_MARK)
    for network, subnet in pairs:
        pod, net, other = Inside(subnet), Inside(network), Inside(network, negated=True)
        yield Rule(Verdict.RETURN, "a pod here to any pod", pod, net)
        yield Rule(Verdict.RETURN, "any pod to a pod here", net, pod)
        yield Rule(Verdict.RETURN, "outside to a pod here", other, pod)
        yield Rule(masquerade, "a pod to the outside", net, Inside(MULTICAST[network.version], negated=True))
        yield Rule(masquerade, "host or outside to a pod elsewhere", other, net)


def forward_rules(network: Network, comment: str = "") -> tuple[Rule, Rule]:
    """Everything from and to the pod network is forwarded; `comment` replaces the two usual ones."""
    return (
        Rule(Verdict.ACCEPT, comment or "from pods", source=Inside(network)),
        Rule(Verdict.ACCEPT, comment or "to pods", destination=Inside(network)),
    )
