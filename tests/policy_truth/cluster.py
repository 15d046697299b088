"""The 92 sub-tests of ClusterNetworkPolicy's conformance suite, as lines of changes and probes with their verdicts.

Source: kubernetes-sigs/network-policy-api 0eec1b0e5fa92715b4c0f4c48d3c8d2913ed2159, conformance/tests and
conformance/base: policies and verdicts are upstream's. Four namespaces of two pods each, by their first letter
(gryffindor, hufflepuff, ravenclaw, slytherin), and `f`, two pods in the host's network.

Policies are *ladders*: a direction of a subject towards a first, a second and a third namespace. In order: all of the
first accepted, then denied, then (tier Admin) passed on; ports of the second denied, then (Admin) passed on; ports of
the third accepted, the rest of it denied. The lines of a group are played in order on one cluster:
`g0>h1 tcp/80 yes` is a probe; changes are `swap WAY I J` (two rules of it), `name WAY I PORT` (a named port instead),
`action WAY I ACTION`, `front PODS` (accept them first), `house NAMESPACE LABEL`, `priority N` and `drop` (of the
NetworkPolicy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HOUSES = {"g": "gryffindor", "h": "hufflepuff", "r": "ravenclaw", "s": "slytherin", "f": "forbidden-forrest"}
PREFIX = "network-policy-conformance-"
NAME, HOUSE = "kubernetes.io/metadata.name", "conformance-house"
ANYWHERE = ["0.0.0.0/0", "::/0"]
WAYS = ("ingress", "egress")
SIDES = {"ingress": "from", "egress": "to"}
Object = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """`lines`: a name and the steps of each sub-test."""

    name: str
    objects: list[Object]
    lines: list[tuple[str, str]]


def named(letter: str) -> Object:
    return {"namespaces": {"matchLabels": {NAME: PREFIX + HOUSES[letter]}}}


def housed(letter: str) -> Object:
    labels = {"matchLabels": {HOUSE: HOUSES[letter]}}
    return {"pods": {"namespaceSelector": labels, "podSelector": labels}}


def labelled(letter: str) -> Object:
    return {"namespaces": {"matchLabels": {HOUSE: HOUSES[letter]}}}


def policy(tier: str, name: str, priority: int, subject: Object, **rules: list[Object]) -> Object:
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": tier, "priority": priority, "subject": subject, **rules},
    }


def rule(way: str, action: str, *peers: Object, on: str = "") -> Object:
    """`on`: "tcp/80 udp/53"; empty: all protocols."""
    protocols = [
        {protocol: {"destinationPort": {"number": int(number)}}}
        for protocol, _, number in (word.partition("/") for word in on.split())
    ]
    return {"action": action, SIDES[way]: list(peers), **({"protocols": protocols} if on else {})}


def ladder(tier: str, way: str, towards: str, second: str, third: str) -> list[Object]:
    one, two, three = map(named, towards)
    steps = [("Accept", one, ""), ("Deny", one, ""), ("Pass", one, ""), ("Deny", two, second), ("Pass", two, second),
             ("Accept", three, third), ("Deny", three, "")]  # fmt: skip
    return [rule(way, action, peer, on=on) for action, peer, on in steps if (tier, action) != ("Baseline", "Pass")]


# What is seen on a ladder: all of the first, ports of the third, the first after a swap, ports of the second; then for
# the Admin tier: the first passed on, the second passed on.
SEEN = {
    "egress sctp": [
        "r0>g0 sctp/9003 yes; r1>g0 sctp/9005 yes", "r0>h1 sctp/9003 yes; r1>h1 sctp/9005 no",
        "r0>g1 sctp/9003 no; r1>g1 sctp/9005 no", "r0>s0 sctp/9003 no; r1>s0 sctp/9005 yes",
        "r0>g1 sctp/9003 yes; r1>g1 sctp/9005 yes", "r0>s0 sctp/9003 yes; r1>s0 sctp/9005 yes",
    ],
    "egress tcp": [
        "g0>r0 tcp/80 yes; g1>r0 tcp/8080 yes", "g0>h1 tcp/8080 yes; g1>h1 tcp/80 no",
        "g0>r1 tcp/80 no; g1>r1 tcp/8080 no", "g0>s0 tcp/80 no; g1>s0 tcp/8080 yes",
        "g0>r0 tcp/80 yes; g1>r0 tcp/8080 yes", "g0>s0 tcp/80 yes; g1>s0 tcp/8080 yes",
    ],
    "egress udp": [
        "h0>r0 udp/53 yes; h1>r0 udp/5353 yes", "h0>g1 udp/53 yes; h1>g1 udp/5353 no",
        "h0>r1 udp/53 no; h1>r1 udp/5353 no", "h0>s0 udp/5353 no; h1>s0 udp/53 yes",
        "h0>r1 udp/5353 yes; h1>r1 udp/53 yes", "h0>s0 udp/5353 yes; h1>s0 udp/53 yes",
    ],
    "ingress sctp": [
        "g0>r0 sctp/9003 yes; g1>r0 sctp/9005 yes", "h0>r1 sctp/9003 yes; h1>r1 sctp/9005 no",
        "g0>r1 sctp/9003 no; g1>r1 sctp/9005 no", "s0>r0 sctp/9003 no; s1>r0 sctp/9005 yes",
        "g0>r1 sctp/9003 yes; g1>r1 sctp/9005 yes", "s0>r0 sctp/9003 yes; s1>r0 sctp/9005 yes",
    ],
    "ingress tcp": [
        "r0>g0 tcp/80 yes; r1>g0 tcp/8080 yes", "h0>g1 tcp/80 yes; h1>g1 tcp/8080 no",
        "r0>g1 tcp/80 no; r1>g1 tcp/8080 no", "s0>g0 tcp/80 no; s1>g0 tcp/8080 yes",
        "r0>g0 tcp/80 yes; r1>g0 tcp/8080 yes", "s0>g0 tcp/80 yes; s1>g0 tcp/8080 yes",
    ],
    "ingress udp": [
        "r0>h0 udp/53 yes; r1>h0 udp/5353 yes", "g0>h1 udp/53 yes; g1>h1 udp/5353 no",
        "r0>h1 udp/53 no; r1>h1 udp/5353 no", "s0>h0 udp/5353 no; s1>h0 udp/53 yes",
        "r0>h1 udp/5353 yes; r1>h1 udp/53 yes", "s0>h0 udp/5353 yes; s1>h0 udp/53 yes",
    ],
    "gress": [
        "g0>r0 tcp/80 yes; g1>r0 udp/53 yes; g0>r0 sctp/9003 yes; r0>g0 tcp/80 yes; r1>g0 udp/53 yes; "
        "r1>g0 sctp/9003 yes",
        "g0>h1 tcp/8080 yes; g1>h1 tcp/80 no; g0>h1 udp/5353 yes; g1>h1 udp/53 no; g0>h1 sctp/9003 yes; "
        "g1>h1 sctp/9005 no; h0>g1 tcp/80 yes; h1>g1 tcp/8080 no; h0>g1 udp/5353 yes; h1>g1 udp/53 no; "
        "h0>g1 sctp/9003 yes; h1>g1 sctp/9005 no",
        "g0>r1 tcp/80 no; g1>r1 udp/53 no; g0>r1 sctp/9003 no; r0>g1 tcp/80 no; r1>g1 udp/53 no; r1>g1 sctp/9003 no",
        "g0>s0 tcp/80 no; g1>s0 tcp/8080 yes; g0>s0 udp/53 no; g1>s0 udp/5353 yes; g0>s0 sctp/9003 no; "
        "g1>s0 sctp/9005 yes; s0>g0 tcp/80 no; s1>g0 tcp/8080 yes; s0>g0 udp/53 no; s1>g0 udp/5353 yes; "
        "s0>g0 sctp/9003 no; s1>g0 sctp/9005 yes",
        "g0>r0 tcp/80 yes; g0>r0 udp/5353 yes; g0>r0 sctp/9003 yes; r0>g0 tcp/80 yes; r1>g0 udp/53 yes; "
        "r1>g0 sctp/9003 yes",
        "g0>s0 tcp/80 yes; g1>s0 tcp/8080 yes; g0>s0 udp/53 yes; g1>s0 udp/5353 yes; g0>s0 sctp/9003 yes; "
        "g1>s0 sctp/9005 yes; s0>g0 tcp/80 yes; s1>g0 tcp/8080 yes; s0>g0 udp/53 yes; s1>g0 udp/5353 yes; "
        "s0>g0 sctp/9003 yes; s1>g0 sctp/9005 yes",
    ],
}  # fmt: skip
SIX = ("accept", "accept at ports", "deny", "deny at ports", "pass", "pass at ports")
SWAPS = ("", "", "0 1", "", "0 2", "3 4")
LADDERS: dict[str, tuple[str, str, str, str]] = {
    "egress tcp": ("g", "rsh", "tcp/80", "tcp/8080"), "ingress tcp": ("g", "rsh", "tcp/80", "tcp/80"),
    "egress udp": ("h", "rsg", "udp/5353", "udp/53"), "ingress udp": ("h", "rsg", "udp/5353", "udp/53"),
    "egress sctp": ("r", "gsh", "sctp/9003", "sctp/9003"), "ingress sctp": ("r", "gsh", "sctp/9003", "sctp/9003"),
}  # fmt: skip
MIXED = "tcp/80 udp/53 sctp/9003"


def ladder_policy(tier: str, name: str) -> Object:
    """The policy of a ladder by its name; the combined one has both directions."""
    if name == "gress":
        thirds = {"ingress": "tcp/80 udp/5353 sctp/9003", "egress": "tcp/8080 udp/5353 sctp/9003"}
        rules = {way: ladder(tier, way, "rsh", MIXED, third) for way, third in thirds.items()}
        return policy(tier, "ladder", 15, named("g"), **rules)
    subject, towards, second, third = LADDERS[name]
    way = name.split()[0]
    return policy(tier, "ladder", 8, named(subject), **{way: ladder(tier, way, towards, second, third)})


def ladder_group(tier: str, name: str) -> Group:
    lines = []
    for title, swap, seen in list(zip(SIX, SWAPS, SEEN[name], strict=True))[: 6 if tier == "Admin" else 4]:
        ways = [way for way in WAYS if way in name or name == "gress"] if swap else []
        lines.append((title, "; ".join([*(f"swap {way} {swap}" for way in ways), seen])))
    return Group(f"{tier} {name}", [ladder_policy(tier, name)], lines)


def inline_networks(tier: str) -> Group:
    subject = housed("g") if tier == "Admin" else named("g")
    rules = [rule("egress", "Accept", housed("s")), rule("egress", "Deny", {"networks": ANYWHERE})]

    def all_three(server: str, verdict: str) -> str:
        return "; ".join(f"g1>{server} {traffic} {verdict}" for traffic in MIXED.split())

    deny = [all_three("r0", "no"), all_three("h0", "no"), all_three("s0", "yes"), "house s denied",
            all_three("s0", "no"), "house s slytherin", all_three("s0", "yes")]  # fmt: skip
    accept = ["front r0 h0", all_three("r0", "yes"), all_three("h0", "yes"), all_three("r1", "no"),
              all_three("h1", "no")]  # fmt: skip
    lines = [("deny", "; ".join(deny)), ("accept", "; ".join(accept))]
    return Group(f"{tier} networks", [policy(tier, "networks", 85, subject, egress=rules)], lines)


NODES = {"nodes": {"matchLabels": {"kubernetes.io/os": "linux"}}}
ADMIN_NODES = [
    rule("egress", "Accept", NODES, on="tcp/36363"),
    rule("egress", "Pass", NODES, on="udp/34346"),
    rule("egress", "Deny", housed("s"), NODES, {"networks": ANYWHERE}),
]
BASELINE_NODES = [
    {**rule("egress", "Accept", NODES), "protocols": [{"tcp": {"destinationPort": {"range": {"start": 36363,
                                                                                             "end": 36364}}}}]},
    rule("egress", "Deny", NODES, {"networks": ANYWHERE}),
]  # fmt: skip
"""Upstream's ports of the host are a setting; these are ours."""


def both_ways(tier: str, name: str, priority: int, action: str, peer: Any) -> Object:
    subject, other = peer("g"), peer("s")
    return policy(tier, name, priority, subject, **{way: [rule(way, action, other)] for way in WAYS})


IN, OUT = "s0>g0 tcp/80 {0}; s1>g0 tcp/8080 {0}", "g0>s0 tcp/80 {0}; g1>s0 tcp/8080 {0}"
SLYTHERIN = {"namespaceSelector": {"matchLabels": {HOUSE: "slytherin"}}}
BETWEEN: Object = {
    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
    "metadata": {"name": "between", "namespace": PREFIX + "gryffindor"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [SLYTHERIN]}],
             "egress": [{"to": [SLYTHERIN]}]},
}  # fmt: skip

GROUPS: list[Group] = [
    *(ladder_group(tier, name) for tier in ("Admin", "Baseline") for name in SEEN),
    *(inline_networks(tier) for tier in ("Admin", "Baseline")),
    Group("Admin egress named port", [ladder_policy("Admin", "egress tcp")],
          [("accept", "name egress 5 web; g0>h1 tcp/80 yes; g1>h1 tcp/8080 no")]),
    Group("Admin ingress named port", [ladder_policy("Admin", "ingress udp")],
          [("accept", "name ingress 5 dns; g0>h1 udp/53 yes; g1>h1 udp/5353 no")]),
    Group("Baseline egress named port", [ladder_policy("Baseline", "egress udp")],
          [("accept", "name egress 3 dns; h0>g1 udp/53 yes; h1>g1 udp/5353 no")]),
    Group("Baseline ingress named port", [ladder_policy("Baseline", "ingress tcp")],
          [("accept", "name ingress 3 web; h0>g1 tcp/80 yes; h1>g1 tcp/8080 no")]),
    Group("Admin nodes", [policy("Admin", "nodes", 75, housed("g"), egress=ADMIN_NODES)],
          [("accept", "g1>f1 tcp/36363 yes"), ("pass", "g1>f1 udp/34346 yes"),
           ("deny", "g1>f1 tcp/36364 no; g1>f1 udp/34347 no; g1>f1 sctp/35356 no")]),
    Group("Baseline nodes", [policy("Baseline", "nodes", 10, named("g"), egress=BASELINE_NODES)],
          [("accept", "g0>f1 tcp/36363 yes; g1>f1 tcp/36364 yes"),
           ("deny", "g1>f1 udp/34347 no; g1>f1 sctp/35356 no")]),
    Group("Admin with NetworkPolicy and Baseline",
          [both_ways("Admin", "first", 10, "Deny", labelled), BETWEEN,
           both_ways("Baseline", "default", 10, "Deny", labelled)],
          [("denied in", IN.format("no")), ("denied out", OUT.format("no")),
           ("passed in to the NetworkPolicy", f"action ingress 0 Pass; {IN.format('yes')}"),
           ("passed out to the NetworkPolicy", f"action egress 0 Pass; {OUT.format('yes')}"),
           ("passed in to the baseline", f"drop; {IN.format('no')}"),
           ("passed out to the baseline", OUT.format("no"))]),
    Group("Admin priority",
          [both_ways("Admin", "moves", 60, "Pass", housed), both_ways("Admin", "stays", 50, "Deny", housed),
           both_ways("Baseline", "default", 10, "Accept", housed)],
          [("denied in", IN.format("no")), ("denied out", OUT.format("no")),
           ("overtaken", f"priority 40; {IN.format('yes')}; {OUT.format('yes')}")]),
]  # fmt: skip
