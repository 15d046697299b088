"""The one form that every kind of policy is read into: tiers of policies, policies of rules, rules of matches.

A rule matches a flow of the pod it applies to when all of this holds: the other end is in one of `peers`, this end is
in `own`, and protocol and ports are in `traffic`. The first matching rule of a tier decides (`Action`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fabric.policy.fields import Network
from fabric.policy.selectors import Selector

POLICY_INGRESS = 0
POLICY_EGRESS = 1
DIRECTIONS = ("ingress", "egress")
PROTOCOLS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}
LAST_PORT = 65_535


class Action(IntEnum):
    DENY = 0
    ALLOW = 1
    PASS = 2
    """Go on with the next tier."""
    LOG = 3
    """Decides nothing; the rules after it do."""


class Established(IntEnum):
    """What becomes of a flow that was let begin when a policy comes to refuse it: the policy's own choice."""

    RE_EVALUATE = 0
    """It is cut, and nobody is told."""
    KEEP = 1
    """It goes on until it ends."""
    RESET = 2
    """It is cut, and its ends are told."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Pods (and Calico's network sets) by who they are. All conditions hold together.

    `namespace`: in this one. `namespaces`: in a namespace with such labels (so never in none). `scoped`: True for in
    any namespace, False for in none. `pods`: labels of the pod. `calico`: network sets are meant too, and the labels
    that Calico gives by itself are seen.
    """

    namespace: str | None = None
    namespaces: Selector | None = None
    scoped: bool | None = None
    pods: Selector | None = None
    accounts: frozenset[str] | None = None
    calico: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """A set of addresses: in `identity` or `nodes` if given, in `nets` if given, of `family` if given; not in
    `not_nets` and not in `not_identity`. With `port` only pods with that named port: (name, protocol, number).
    """

    identity: Identity | None = None
    nodes: Selector | None = None
    nets: tuple[Network, ...] | None = None
    not_nets: tuple[Network, ...] = ()
    not_identity: Identity | None = None
    family: int | None = None
    port: tuple[str, int, int] | None = None


EVERYWHERE = Peer()


@dataclass(frozen=True, slots=True)
class PortMatch:
    """`protocol` None is every protocol, then with all ports. `low`..`high` are ports, or type * 256 + code of ICMP.

    With `name` the number is that of the destination pod's port of this name (and protocol, if one is given).
    """

    protocol: int | None = None
    low: int = 0
    high: int = LAST_PORT
    name: str | None = None


ANY_TRAFFIC = (PortMatch(),)


@dataclass(frozen=True, slots=True)
class Traffic:
    """One of `matches` and none of `excluded`; `sources` are ranges of source ports, None for all."""

    matches: tuple[PortMatch, ...] = ANY_TRAFFIC
    excluded: tuple[PortMatch, ...] = ()
    sources: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    action: Action
    peers: tuple[Peer, ...] = (EVERYWHERE,)
    own: Peer = EVERYWHERE
    traffic: Traffic = Traffic()
    path: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tier:
    """`rank` orders the tiers of all kinds; `default` is what happens to a flow of a selected pod that no rule
    matched.
    """

    rank: tuple[int, float, str]
    default: Action
    name: str


@dataclass(frozen=True, slots=True)
class Policy:
    """`tier` is a Tier, or the name of one of Calico's. `order` sorts within the tier, ties go by name."""

    kind: str
    namespace: str
    name: str
    tier: Tier | str
    order: tuple[float, str]
    subject: Identity
    rules: tuple[tuple[Rule, ...] | None, tuple[Rule, ...] | None]
    """(ingress, egress); None: says nothing about that direction."""
    warnings: tuple[str, ...] = ()
    established: Established = Established.RE_EVALUATE
    staged: bool = False
    """It is not meant to be enforced yet: where it is compiled it is to see what it would do."""

    @property
    def title(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class NetSet:
    """Calico's NetworkSet (in a namespace) or GlobalNetworkSet (namespace empty)."""

    namespace: str
    name: str
    labels: tuple[tuple[str, str], ...]
    nets: tuple[Network, ...]


ADMIN = Tier((0, 0.0, ""), Action.PASS, "Admin")
BASELINE = Tier((2, 0.0, ""), Action.PASS, "Baseline")
KUBERNETES_ORDER = 1_000.0
DEFAULT_TIER_ORDER = 1_000_000.0
DEFAULT = Tier((1, DEFAULT_TIER_ORDER, "default"), Action.DENY, "default")
