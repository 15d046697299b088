"""The 48 NetworkPolicy cases of Kubernetes' e2e suite, expected tables by hand. How to read one: see the package."""

from __future__ import annotations

from typing import Any

from tests.policy_truth.runner import NAME

Step = tuple[Any, ...]
Case = tuple[str, str, list[Step]]
ADDRESSES = {f"{n}/{p}": f"10.244.{i}.{10 + j}" for i, n in enumerate("xyz") for j, p in enumerate("abc")}
A = {"matchLabels": {"pod": "a"}}
B = {"matchLabels": {"pod": "b"}}
NOT_X = {"matchExpressions": [{"key": NAME, "operator": "NotIn", "values": ["x"]}]}
NOT_Y = {"matchExpressions": [{"key": NAME, "operator": "NotIn", "values": ["y"]}]}


def ns(name: str) -> dict[str, Any]:
    return {"matchLabels": {NAME: name}}


def within(key: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": "In", "values": list(values)}]}


def apply(name: str, pods: dict[str, Any], home: str = "x", **rules: list[dict[str, Any]]) -> Step:
    spec = {"podSelector": pods, "policyTypes": [side.capitalize() for side in rules], **rules}
    meta = {"name": name, "namespace": home}
    return "apply", {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def source(*peers: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"from": list(peers), **more}]


def target(*peers: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"to": list(peers)}]


def port(number: int | str, protocol: str = "TCP") -> dict[str, Any]:
    return {"port": number, "protocol": protocol}


def expect(*exceptions: str, at: int = 80, by: str = "TCP") -> Step:
    """`"x>y/a no"` is an exception to allow: from namespace x to pod y/a, refused."""
    rows = [(pair.split(">")[0], pair.split(">")[1], word == "yes") for pair, word in map(str.split, exceptions)]
    return "expect", by, at, rows


def from_y_a(by: str) -> list[Step]:
    peer = {"namespaceSelector": ns("y"), "podSelector": A}
    return [apply("p", A, ingress=source(peer)), expect("*>x/a no", "y/a>x/a yes", by=by)]


def from_y_81(by: str) -> list[Step]:
    rule = source({"namespaceSelector": ns("y")}, ports=[port(81, by)])
    return [apply("p", A, ingress=rule), expect("x>x/a no", "z>x/a no", at=81, by=by)]


DENY = apply("deny", {}, ingress=[])
DENY_BOTH = apply("deny", {}, ingress=[], egress=[])
NOT_XZ = expect("x>x/a no", "z>x/a no")
ONLY_B = expect("*>x/a no", "x/b>x/a yes")
CLOSED_81 = expect("*>x/a no", at=81)
B_HOST = {"ipBlock": {"cidr": "10.244.0.11/32"}}
BUT_B = {"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.0.11/32"]}}
FROM_X_A = source({"namespaceSelector": ns("x"), "podSelector": A})
TO_Y_A = target({"namespaceSelector": ns("y"), "podSelector": A})
Y_ON = {n: source({"namespaceSelector": ns("y")}, ports=[port(n)]) for n in (80, 81)}
BE = "should enforce "
ALL_NS = "to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector"

CASES: list[Case] = [
    ("should support a 'default-deny-ingress' policy", "x/a x/b y/a y/b", [DENY, expect("*>x no")]),
    ("should support a 'default-deny-all' policy", "x/a x/b y/a", [DENY_BOTH, expect("*>x no", "x>* no")]),
    (BE + "policy to allow traffic from pods within server namespace based on PodSelector", "x/a x/b x/c y/a",
     [apply("p", A, ingress=source({"podSelector": B})), ONLY_B]),
    (BE + "policy to allow ingress traffic for a target", "x/a x/b y/a",
     [DENY,
      apply("p", A, ingress=source({"podSelector": {}, "namespaceSelector": {}})), expect("*>x/a yes", "*>x/b no")]),
    (BE + "policy to allow ingress traffic from pods in all namespaces", "x/a x/b y/a z/a",
     [apply("p", A, ingress=source({"namespaceSelector": {}})), expect()]),
    (BE + "policy to allow traffic only from a different namespace, based on NamespaceSelector", "x/a x/b y/a z/a",
     [apply("p", A, ingress=source({"namespaceSelector": ns("y")})), NOT_XZ]),
    (BE + "policy based on PodSelector with MatchExpressions", "x/a x/b y/a",
     [apply("p", A, ingress=source({"podSelector": within("pod", "b")})), ONLY_B]),
    (BE + "policy based on NamespaceSelector with MatchExpressions", "x/a x/b y/a z/a",
     [apply("p", A, ingress=source({"namespaceSelector": within(NAME, "y")})), NOT_XZ]),
    (BE + "policy based on PodSelector or NamespaceSelector", "x/a x/b x/c y/a",
     [apply("p", A, ingress=source({"namespaceSelector": NOT_X}, {"podSelector": B})), expect("x/c>x/a no")]),
    (BE + "policy based on PodSelector and NamespaceSelector", "x/a x/b y/a y/b z/b",
     [apply("p", A, ingress=source({"namespaceSelector": NOT_X, "podSelector": B})),
      expect("*>x/a no", "y/b>x/a yes", "z/b>x/a yes")]),
    (BE + "policy based on Multiple PodSelectors and NamespaceSelectors", "x/a x/b y/a y/b y/c",
     [apply("p", A, ingress=source({"namespaceSelector": NOT_X, "podSelector": within("pod", "b", "c")})),
      expect("x>x/a no", "y/a>x/a no")]),
    (BE + "policy based on any PodSelectors", "x/a x/b x/c",
     [apply("p", A, ingress=source({"podSelector": B}, {"podSelector": {"matchLabels": {"pod": "c"}}})),
      expect("*>x/a no", "x/b>x/a yes", "x/c>x/a yes")]),
    (BE + "policy " + ALL_NS, "x/a x/b y/a y/b z/a", from_y_a("TCP")),
    (BE + "policy based on Ports", "x/a x/b y/a y/b z/a", from_y_81("TCP")),
    (BE + "multiple, stacked policies with overlapping podSelectors", "x/a x/b y/a y/b z/a",
     [apply("p81", A, ingress=Y_ON[81]), expect("x>x/a no", "z>x/a no", at=81), expect("*>x/a no"),
      apply("p80", A, ingress=Y_ON[80]), NOT_XZ]),
    ("should support allow-all policy", "x/a x/b y/a", [apply("p", {}, ingress=[{}]), expect(), expect(at=81)]),
    ("should allow ingress access on one named port", "x/a x/b y/a",
     [apply("p", {}, ingress=[{"ports": [{"port": "serve-81-tcp"}]}]), expect(at=81), expect("*>x no")]),
    ("should allow ingress access from namespace on one named port", "x/a x/b y/a z/a",
     [apply("p", A, ingress=source({"namespaceSelector": ns("y")}, ports=[port("serve-80-tcp")])), NOT_XZ, CLOSED_81]),
    ("should allow egress access on one named port", "x/a y/a",
     [apply("p", {}, egress=[{"ports": [{"port": "serve-80-tcp"}]}]), expect(), expect("x>* no", at=81)]),
    (BE + "updated policy", "x/a y/a",
     [apply("p", {}, ingress=[{}]), expect(at=81), apply("p", {}, ingress=[]), expect("*>x no", at=81)]),
    ("should allow ingress access from updated namespace", "x/a y/a",
     [apply("p", A, ingress=source({"namespaceSelector": {"matchLabels": {"ns2": "updated"}}})), expect("*>x/a no"),
      ("label-namespace", "y", {"ns2": "updated"}), expect("*>x/a no", "y>* yes")]),
    ("should allow ingress access from updated pod", "x/a x/b",
     [apply("p", A, ingress=source({"podSelector": {"matchLabels": {"pod": "b", "pod2": "updated"}}})),
      expect("*>x/a no"), ("label-pod", "x/b", {"pod2": "updated"}), ONLY_B]),
    ("should deny ingress from pods on other namespaces", "x/a x/b y/a z/a",
     [apply("p", {}, ingress=source({"podSelector": {}})), expect("y>x no", "z>x no")]),
    ("should deny ingress access to updated pod", "x/a y/a",
     [apply("p", {"matchLabels": {"target": "isolated"}}, ingress=[]), expect(),
      ("label-pod", "x/a", {"target": "isolated"}), expect("*>x/a no")]),
    ("should deny egress from pods based on PodSelector",
     "x/a x/b y/a", [apply("p", A, egress=[]), expect("x/a>* no")]),
    ("should deny egress from all pods in a namespace", "x/a x/b y/a", [apply("p", {}, egress=[]), expect("x>* no")]),
    ("should work with Ingress, Egress specified together", "x/a x/b x/c y/a",
     [apply("p", A, ingress=source({"podSelector": B}), egress=[{"ports": [{"port": 80}]}]), ONLY_B,
      expect("*>x/a no", "x/a>* no", "x/b>x/a yes", at=81)]),
    ("should support denying of egress traffic on the client side (even if the server explicitly allows this traffic)",
     "x/a y/a y/b", [apply("p", A, egress=TO_Y_A),
      apply("a", A, "y", ingress=FROM_X_A), apply("b", B, "y", ingress=FROM_X_A),
      expect("x/a>* no", "*>y/a no", "x/a>y/a yes", "*>y/b no")]),
    (BE + "egress policy allowing traffic to a server in a different namespace based on "
     "PodSelector and NamespaceSelector",
     "x/a y/a y/b", [apply("p", A, egress=TO_Y_A), expect("x/a>* no", "x/a>y/a yes")]),
    (BE + "ingress policy allowing any port traffic to a server on a specific protocol", "x/a y/a",
     [apply("p", A, ingress=[{"ports": [{"protocol": "TCP"}]}]), expect(), expect("*>x/a no", by="UDP")]),
    (BE + "multiple ingress policies with ingress allow-all policy taking precedence", "x/a y/a",
     [apply("p", {}, ingress=[{"ports": [{"port": 80}]}]), expect("*>x no", at=81),
      apply("q", {}, ingress=[{}]), expect(at=81)]),
    (BE + "multiple egress policies with egress allow-all policy taking precedence", "x/a y/a",
     [apply("p", {}, egress=[{"ports": [{"port": 80}]}]), expect("x>* no", at=81),
      apply("q", {}, egress=[{}]), expect(at=81)]),
    ("should stop enforcing policies after they are deleted", "x/a y/a",
     [DENY_BOTH, expect("x>* no", "*>x no"), ("delete", "x", "deny"), expect()]),
    ("should allow egress access to server in CIDR block", "x/a y/a y/b",
     [apply("p", A, egress=target({"ipBlock": {"cidr": "10.244.1.11/32"}})), expect("x/a>* no", "x/a>y/b yes")]),
    (BE + "except clause while egress access to server in CIDR block", "x/a x/b x/c",
     [apply("p", A, egress=target(BUT_B)), expect("x/a>x/b no")]),
    ("should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed", "x/a x/b x/c",
     [apply("p", A, egress=target(BUT_B)), expect("x/a>x/b no"),
      apply("p", A, egress=target(B_HOST)), expect("x/a>* no", "x/a>x/b yes")]),
    (BE + "policies to check ingress and egress policies can be controlled independently based on PodSelector",
     "x/a x/b y/a",
     [apply("p", A, egress=[{}]), expect(), apply("q", A, ingress=[]), expect("*>x/a no")]),
    ("should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP', even if the plugin doesn't support SCTP",
     "x/a y/a",
     [DENY, apply("p", A, ingress=[{"ports": [port(81, "SCTP")]}]), expect("*>x no", at=81)]),
    ("should properly isolate pods that are selected by a policy allowing SCTP, "
     "even if the plugin doesn't support SCTP",
     "x/a y/a", [apply("p", A, ingress=[{"ports": [port(80, "SCTP")]}]), CLOSED_81]),
    ("should not allow access by TCP when a policy specifies only UDP", "x/a y/a",
     [apply("p", A, ingress=[{"ports": [port(81, "UDP")]}]), CLOSED_81]),
    (BE + "policy to allow traffic based on NamespaceSelector with MatchLabels using default ns label",
     "x/a x/b y/a z/a",
     [apply("p", A, ingress=source({"namespaceSelector": ns("y")})), NOT_XZ]),
    (BE + "policy based on NamespaceSelector with MatchExpressions using default ns label", "x/a x/b y/a z/a",
     [apply("p", A, egress=target({"namespaceSelector": NOT_Y})), expect("x/a>y no")]),
]
for _by, _pods in (("UDP", "x/a x/b y/a"), ("SCTP", "x/a x/b y/a")):
    CASES += [
        (f"{_by}: should support a 'default-deny-ingress' policy", "x/a x/b y/a y/b", [DENY, expect("*>x no", by=_by)]),
        (f"{_by}: {BE}policy based on Ports", "x/a x/b y/a z/a", from_y_81(_by)),
        (f"{_by}: {BE}policy {ALL_NS}", _pods, from_y_a(_by)),
    ]
