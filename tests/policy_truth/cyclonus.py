"""The 230 cases of Cyclonus, built from tables of what varies around one base policy.

Source: mattfenwick/cyclonus 12f646fbd7d348dedb538e4bb7f076e4d927d7a6, pkg/generator (MIT); groups, counts and tags are
upstream's. Its expected values are computed by a matcher with known errors, so none are taken over: they stand in
`cyclonus_tables.py`, by hand. A step of a case is (changes, probe): changes as `runner.World.play` takes them, probe
None for every pod to every pod on both ports of all three protocols (486 cells), or one (protocol, port).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tests.policy_truth.e2e import A, apply, ns, port, within

NAMESPACES = {name: {"ns": name} for name in "xyz"}
ADDRESSES = {
    "x/a": "10.244.1.10", "x/b": "10.244.1.20", "y/a": "10.244.1.30", "z/b": "10.244.1.40", "y-2/a": "10.244.1.50",
    "w/a": "10.244.1.60", "x/c": "10.244.2.10", "z/a": "10.244.2.17", "z/c": "10.244.2.18", "y/b": "10.244.2.20",
    "y/c": "10.244.2.30", "x/d": "10.244.2.40", "y-2/b": "10.244.2.50",
}  # fmt: skip
PODS = [f"{space}/{pod}" for space in "xyz" for pod in "abc"]
ABOUT_Z_C = {"cidr": "10.244.2.0/24"}
ABOUT_Z_C_BUT_ITS_28 = {**ABOUT_Z_C, "except": ["10.244.2.16/28"]}
"""Upstream takes the networks from the address that z/c got; ours is fixed so that each holds some of the pods."""

Objects = list[dict[str, Any]]
Step = tuple[list[tuple[Any, ...]], tuple[str, int] | None]
DIRECTIONS = ("ingress", "egress")
PARENTS = {
    "action": "create-policy delete-policy update-policy create-pod delete-pod set-pod-labels create-namespace "
    "delete-namespace set-namespace-labels",
    "target": "target-namespace target-pod-selector",
    "direction": "ingress egress",
    "rule": "deny-all allow-all any-peer any-port-protocol multi-peer multi-port/protocol",
    "peer-pods": "all-pods pods-by-label all-namespaces namespaces-by-label policy-namespace "
    "namespaces-by-default-label",
    "peer-ipblock": "ip-block-no-except ip-block-with-except",
    "port": "any-port numbered-port named-port end-port",
    "protocol": "tcp udp sctp",
    "miscellaneous": "pathological conflict example upstream-e2e",
}


@dataclass(frozen=True)
class Case:
    group: str
    name: str
    own_tags: str
    steps: list[Step]

    @property
    def tags(self) -> set[str]:
        """With each tag its parent."""
        own = set(self.own_tags.split())
        return own | {parent for parent, children in PARENTS.items() if own & set(children.split())}


def pods(*names: str) -> dict[str, Any]:
    return within("pod", *names)


def spaces(*names: str) -> dict[str, Any]:
    return within("ns", *names)


def labels(**given: str) -> dict[str, Any]:
    return {"matchLabels": given}


FROM = {"namespaceSelector": spaces("x", "y"), "podSelector": pods("b", "c")}
TO = {"namespaceSelector": spaces("y", "z"), "podSelector": pods("a", "b")}
DNS = {"ports": [port(53, "UDP"), port(53)]}


def base(home: str = "x", target: dict[str, Any] = A, **changed: Objects) -> tuple[Any, ...]:
    """The base policy; `ingress` and `egress` replace all its rules of that direction."""
    rules: dict[str, Objects] = {
        "ingress": [{"from": [FROM], "ports": [port(80)]}],
        "egress": [{"to": [TO], "ports": [port(80)]}, DNS],
    }
    return apply("base", target, home, **{**rules, **changed})


def peers(direction: str, *given: dict[str, Any]) -> tuple[Any, ...]:
    """The base policy with other peers in the first rule of a direction."""
    if direction == "ingress":
        return base(ingress=[{"from": list(given), "ports": [port(80)]}])
    return base(egress=[{"to": list(given), "ports": [port(80)]}, DNS])


def ports(direction: str, *given: dict[str, Any]) -> tuple[Any, ...]:
    if direction == "ingress":
        return base(ingress=[{"from": [FROM], "ports": list(given)}])
    return base(egress=[{"to": [TO], "ports": list(given)}, DNS])


def once(*changes: tuple[Any, ...]) -> list[Step]:
    return [(list(changes), None)]


# -- who may be at the other end: (name, tags, peer)

PEERS: list[tuple[str, str, dict[str, Any]]] = [
    ("own namespace", "policy-namespace all-pods", {"podSelector": {}}),
    ("c of own namespace", "policy-namespace pods-by-label", {"podSelector": labels(pod="c")}),
    ("every namespace", "all-namespaces all-pods", {"namespaceSelector": {}}),
    ("every pod of every namespace", "all-namespaces all-pods", {"namespaceSelector": {}, "podSelector": {}}),
    ("c of every namespace", "all-namespaces pods-by-label",
     {"namespaceSelector": {}, "podSelector": labels(pod="c")}),
    ("x", "namespaces-by-label all-pods", {"namespaceSelector": labels(ns="x")}),
    ("every pod of x", "namespaces-by-label all-pods", {"namespaceSelector": labels(ns="x"), "podSelector": {}}),
    ("c of x", "namespaces-by-label pods-by-label",
     {"namespaceSelector": labels(ns="x"), "podSelector": labels(pod="c")}),
    ("block", "ip-block-no-except", {"ipBlock": ABOUT_Z_C}),
    ("block with a hole", "ip-block-with-except", {"ipBlock": ABOUT_Z_C_BUT_ITS_28}),
]  # fmt: skip

# -- ports: what stands in the entry, and its tags

SINGLE_PORTS: list[dict[str, Any]] = [
    {**({"protocol": by} if by else {}), **({"port": number} if number else {})}
    for by in ("", "TCP", "UDP", "SCTP")
    for number in (0, 80, 81)
]
SINGLE_PORTS += [port(f"serve-{n}-{by.lower()}", by) for by in ("TCP", "UDP", "SCTP") for n in (80, 81)]
SINGLE_PORTS += [{**port(53, by), "endPort": last} for by in ("TCP", "UDP", "SCTP") for last in (80, 84)]
ODD_PORTS = [
    ("a name of another protocol", port("serve-81-udp")), ("a name nobody has", port("serve-7981-udp")),
    ("a number nobody serves", port(7981)),
]  # fmt: skip
PORT_PAIRS: list[list[dict[str, Any]]] = [
    [{}, {"port": 80}],
    [{}, {"port": "serve-80-tcp"}],
    [{}, {"protocol": "UDP"}],
    [{"port": 80}, {"port": 81}],
    [{"port": 80}, {"port": "serve-81-tcp"}],
    [{"port": 80}, port("serve-81-udp", "UDP")],
    [port(80, "UDP"), port("serve-81-udp", "UDP")],
]


def port_tags(*entries: dict[str, Any]) -> str:
    found = []
    for entry in entries:
        kind = {type(None): "any-port", int: "numbered-port", str: "named-port"}[type(entry.get("port"))]
        found += [kind, entry.get("protocol", "").lower(), "end-port" if "endPort" in entry else ""]
    return " ".join(found)


def spelled(entry: dict[str, Any]) -> str:
    return "/".join(str(entry[key]) for key in ("protocol", "port", "endPort") if key in entry) or "empty"


# -- the groups

def targets() -> Iterator[Case]:
    for home in "xyz":
        yield Case("targets", f"a of {home}", "target-namespace", once(base(home)))
    for name, selector in (("every pod", {}), ("a", A), ("a and b", pods("a", "b"))):
        yield Case("targets", f"selector: {name} of x", "target-pod-selector", once(base(target=selector)))


def rules() -> Iterator[Case]:
    for way in DIRECTIONS:
        for name, tag, every in (("none", "deny-all", False), ("all", "allow-all", True)):
            changed: Objects = [{}] if every else []
            policy = base(ingress=changed) if way == "ingress" else base(egress=changed)
            yield Case("rules", f"{way}: {name}", f"{way} {tag}", once(policy))


def peer_cases() -> Iterator[Case]:
    for way in DIRECTIONS:
        yield Case("peers", f"{way}: no peer given", f"{way} any-peer", once(peers(way)))
        for name, tags, peer in PEERS:
            yield Case("peers", f"{way}: {name}", f"{way} {tags}", once(peers(way, peer)))
        for (first, tags, peer), (second, more, other) in combinations(PEERS, 2):
            both = f"{way} multi-peer {tags} {more}"
            yield Case("peers", f"{way}: {first}, {second}", both, once(peers(way, peer, other)))


def port_cases() -> Iterator[Case]:
    for way in DIRECTIONS:
        yield Case("ports", f"{way}: no port given", f"{way} any-port-protocol", once(ports(way)))
        for entry in SINGLE_PORTS:
            yield Case("ports", f"{way}: {spelled(entry)}", f"{way} {port_tags(entry)}", once(ports(way, entry)))
        for name, entry in ODD_PORTS:
            tags = f"{way} pathological {port_tags(entry)}"
            yield Case("ports", f"{way}: {name}", tags, once(ports(way, entry)))
        for pair in PORT_PAIRS:
            name = f"{way}: {', '.join(map(spelled, pair))}"
            yield Case("ports", name, f"{way} multi-port/protocol {port_tags(*pair)}", once(ports(way, *pair)))


def actions() -> Iterator[Case]:
    def case(name: str, tags: str, *steps: list[tuple[Any, ...]]) -> Case:
        return Case("actions", name, tags, [(step, None) for step in steps])

    marked = {"podSelector": labels(new="abc"), "namespaceSelector": spaces("y", "z")}
    yield case("a policy comes and goes", "create-policy delete-policy", [base()], [("delete", "x", "base")])
    yield case("a policy changes", "create-policy update-policy",
               [base()], [ports("ingress", port("serve-81-udp", "UDP"))])  # fmt: skip
    yield case("a namespace comes and goes", "create-namespace delete-namespace", [base()],
               [("set-namespace", "y-2", {"ns": "y"}), ("set-pod", "y-2/a", {"pod": "a"}),
                ("set-pod", "y-2/b", {"pod": "b"})], [("delete-namespace", "y-2")])  # fmt: skip
    yield case("a namespace gets the label and loses it", "set-namespace-labels",
               [peers("ingress", {"namespaceSelector": labels(new="qrs")})],
               [("set-namespace", "y", {"ns": "y", "new": "qrs"})], [("set-namespace", "y", {"ns": "y"})])  # fmt: skip
    yield case("a pod comes and goes", "create-pod delete-pod",
               [base()], [("set-pod", "x/d", {"pod": "d"})], [("delete-pod", "x/d")])  # fmt: skip
    yield case("a pod gets the label and loses it", "set-pod-labels", [peers("ingress", marked)],
               [("set-pod", "y/b", {"pod": "b", "new": "abc"})], [("set-pod", "y/b", {"pod": "b"})])  # fmt: skip


EVERYBODY: dict[str, Any] = {"namespaceSelector": {}}
ANY_ADDRESS, NO_ADDRESS = {"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "0.0.0.0/31"}}
NOBODY = {"namespaceSelector": labels(never="qrs")}
X_B, Y_C = ("x", labels(pod="b")), ("y", labels(pod="c"))
END = {"ingress": "from", "egress": "to"}


def conflicts() -> Iterator[Case]:
    """Policies that want opposite things. With egress rules there is always one more policy, for DNS of x/b."""

    def case(name: str, tags: str, *policies: tuple[tuple[str, dict[str, Any]], str, Objects]) -> Case:
        changes = [
            apply(f"p{i}", pod, home, **{way: given}) for i, ((home, pod), way, given) in enumerate(policies)
        ]
        if any(way == "egress" for _, way, _ in policies):
            changes.append(apply("dns", X_B[1], X_B[0], egress=[DNS]))
        return Case("conflicts", name, f"conflict {tags}", once(*changes))

    everything: Objects = [{}]
    yield case("nothing out of x/b, all into y/c", "deny-all allow-all ingress egress",
               (X_B, "egress", []), (Y_C, "ingress", everything))  # fmt: skip
    yield case("all out of x/b, nothing into y/c", "deny-all allow-all ingress egress",
               (X_B, "egress", everything), (Y_C, "ingress", []))  # fmt: skip
    for way, end in (("egress", X_B), ("ingress", Y_C)):
        yield case(f"{way}: nothing + all", f"deny-all allow-all {way}", (end, way, []), (end, way, everything))
    for way in ("egress", "ingress"):
        def only(peer: dict[str, Any], way: str = way) -> tuple[tuple[str, dict[str, Any]], str, Objects]:
            return X_B, way, [{END[way]: [peer]}]

        every = f"all-pods all-namespaces {way}"
        yield case(f"{way}: nothing + every pod", f"deny-all {every}", (X_B, way, []), only(EVERYBODY))
        yield case(f"{way}: nothing + every address", f"deny-all {way}", (X_B, way, []), only(ANY_ADDRESS))
        yield case(f"{way}: no address + every pod", every, only(NO_ADDRESS), only(EVERYBODY))
        yield case(f"{way}: no pod + every address", way, only(NOBODY), only(ANY_ADDRESS))
        yield case(f"{way}: no address", way, only(NO_ADDRESS))
        yield case(f"{way}: no pod", way, only(NOBODY))


def namespaces() -> Iterator[Case]:
    for way in DIRECTIONS:
        tags = f"namespaces-by-default-label {way}"
        yield Case("namespaces", f"{way}: z by its name", tags, once(peers(way, {"namespaceSelector": ns("z")})))


def example() -> Iterator[Case]:
    changes: list[list[tuple[Any, ...]]] = [
        [apply("p", {}, ingress=[{"ports": [{"port": "serve-81-tcp"}]}])],
        [("set-namespace", "w", {"ns": "w"}), ("set-pod", "w/a", {"pod": "a"})],
        [("delete-pod", "w/a")],
        [("delete-namespace", "w")],
        [],
    ]
    steps: list[Step] = [(step, None) for step in changes]
    yield Case("example", "one named port, others come and go", "example", [*steps, *[([], ("TCP", 81))] * 2])


def upstream() -> Iterator[Case]:
    """Thirteen of Kubernetes' own e2e cases (`e2e.py`) with Cyclonus' probes, labels and DNS rules."""

    def case(name: str, tags: str, *steps: list[tuple[Any, ...]]) -> Case:
        return Case("upstream", name, f"upstream-e2e {tags}", [(step, None) for step in steps])

    y_on = {n: [{"from": [{"namespaceSelector": labels(ns="y")}], "ports": [port(n)]}] for n in (80, 81)}
    x_a = [{"from": [{"namespaceSelector": labels(ns="x"), "podSelector": A}]}]
    y_a = {"to": [{"namespaceSelector": labels(ns="y"), "podSelector": A}]}
    not_x = {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["x"]}]}
    others = [{"from": [{"namespaceSelector": not_x, "podSelector": pods("b", "c")}]}]
    two = {"podSelector": labels(pod="b", pod2="updated")}
    udp_dns = {"ports": [port(53, "UDP")]}
    yield case("nothing into x", "ingress deny-all", [apply("p", {}, ingress=[])])
    yield case("nothing into or out of x", "deny-all", [apply("p", {}, ingress=[], egress=[DNS])])
    yield case("b and c of other namespaces", "", [apply("p", A, ingress=others)])
    yield case("stacked", "", [apply("p81", A, ingress=y_on[81])], [], [apply("p80", A, ingress=y_on[80])])
    yield case("all into x", "allow-all", [apply("p", {}, ingress=[{}])], [])
    named: list[tuple[Any, ...]] = [apply("p", {}, ingress=[{"ports": [{"port": "serve-81-tcp"}]}])]
    yield Case("upstream", "one named port", "upstream-e2e ingress named-port", [(named, ("TCP", 81)), ([], None)])
    yield case("changed from all to nothing", "", [apply("p", {}, ingress=[{}])], [apply("p", {}, ingress=[])])
    yield case("namespace changes", "",
               [apply("p", A, ingress=[{"from": [{"namespaceSelector": labels(ns2="updated")}]}])],
               [("set-namespace", "y", {"ns": "y", "ns2": "updated"})])  # fmt: skip
    yield case("peer changes", "", [apply("p", A, ingress=[{"from": [two]}])],
               [("set-pod", "x/b", {"pod": "b", "pod2": "updated"})])  # fmt: skip
    yield case("target changes", "", [apply("p", labels(target="isolated"), ingress=[])],
               [("set-pod", "x/a", {"target": "isolated"})])  # fmt: skip
    yield case("both directions in one policy", "",
               [apply("p", A, ingress=[{"from": [{"podSelector": labels(pod="b")}]}],
                      egress=[{"ports": [{"port": 80}, port(53, "UDP")]}])], [])  # fmt: skip
    yield case("refused at the client", "conflict",
               [apply("p", A, egress=[y_a, udp_dns]), apply("a", A, "y", ingress=x_a),
                apply("b", labels(pod="b"), "y", ingress=x_a)])  # fmt: skip
    yield case("deleted", "deny-all delete-policy", [apply("p", {}, ingress=[], egress=[])], [("delete", "x", "p")])


CASES: list[Case] = [
    *targets(), *rules(), *peer_cases(), *port_cases(), *example(), *actions(), *conflicts(), *namespaces(),
    *upstream(),
]  # fmt: skip
