"""Tables of objects: what is refused and why, and what Calico's rules say."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from fabric.policy import Cluster, Namespace, Node, Pod, PolicyError, compile_policies, explain
from fabric.policy.grammar import parse_selector
from fabric.policy.parse import parse_object

PODS = [
    Pod("x", name, {"app": name}, (ip_address(f"10.244.0.{i}"),), "n1", ports={"http": ("TCP", 8080)})
    for i, name in enumerate(("web", "db", "job"), 1)
]
WEB, DB, JOB, OUTSIDE = "10.244.0.1", "10.244.0.2", "10.244.0.3", "198.51.100.9"


def calico(kind: str, name: str, spec: dict[str, Any], namespace: str = "", **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}


def kubernetes(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": "x"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"ingress": [{"ports": [{"endPort": 9}]}]}, "spec.ingress[0].ports[0].endPort"),
        ({"ingress": [{"ports": [{"port": 80, "endPort": 79}]}]}, "spec.ingress[0].ports[0].endPort"),
        ({"ingress": [{"ports": [{"port": "a", "endPort": 79}]}]}, "spec.ingress[0].ports[0].endPort"),
        ({"ingress": [{"ports": [{"protocol": "ICMP"}]}]}, "spec.ingress[0].ports[0].protocol"),
        ({"ingress": [{"from": [{}]}]}, "spec.ingress[0].from[0]"),
        ({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]}, "spec.egress[0].to[0].ipBlock.cidr"),
        (
            {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}]},
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
            "spec.podSelector.matchExpressions[0].values",
        ),
        ({"policyTypes": ["Both"]}, "spec.policyTypes[0]"),
        ({"ingres": []}, "spec.ingres"),
    ],
)
def test_a_refusal_names_the_field(spec: dict[str, Any], path: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_object(kubernetes(spec))
    assert caught.value.path == path


def test_the_last_good_object_stays() -> None:
    cluster = Cluster()
    cluster.set_namespace(Namespace("x"))
    for pod in PODS:
        cluster.set_pod(pod)
    assert cluster.apply("p", kubernetes({"podSelector": {}})).error is None
    result = cluster.apply("p", kubernetes({"podSelector": {}, "ingress": [{"from": [{}]}]}))
    assert result.error is not None
    assert result.kept
    assert not cluster.snapshot().allowed(WEB, DB, "TCP", 80)
    cluster.apply("p", None)
    assert cluster.snapshot().allowed(WEB, DB, "TCP", 80)


LABELS = {"a": "1", "empty": "", "dns.name/x": "left-right"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("all()", True),
        ("", True),
        ("a == '1'", True),
        ("a != \"1\"", False),
        ("b != '1'", True),
        ("a in {'1', '2'}", True),
        ("b not in {'1'}", True),
        ("a not in {'1'}", False),
        ("has(empty) && !has(b)", True),
        ("b == '2' || a == '1' && has(empty)", True),
        ("!(a == '1' || b == '2')", False),
        ("dns.name/x contains 't-r'", True),
        ("dns.name/x starts with 'left'", True),
        ("dns.name/x ends with 'left'", False),
        ("global()", True),
    ],
)
def test_selector_expressions(text: str, wanted: bool) -> None:
    assert parse_selector(text, "spec.selector").matches(LABELS) is wanted


@pytest.mark.parametrize(
    "text", ["a ==", "a = '1'", "(a == '1'", "a == '1' b", "has()", "a in '1'", "(" * 40 + "all()" + ")" * 40]
)
def test_wrong_expressions_are_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        parse_selector(text, "spec.selector")


def rule(action: str, **more: Any) -> dict[str, Any]:
    return {"action": action, **more}


@pytest.mark.parametrize(
    ("ingress", "question", "wanted"),
    [
        ([rule("Allow", source={"selector": "app == 'web'"})], (WEB, DB, "TCP", 80), True),
        ([rule("Allow", source={"selector": "app == 'web'"})], (JOB, DB, "TCP", 80), False),
        ([rule("Deny", source={"selector": "app == 'web'"}), rule("Allow")], (WEB, DB, "TCP", 80), False),
        ([rule("Log"), rule("Allow")], (WEB, DB, "TCP", 80), True),
        ([rule("Pass")], (WEB, DB, "TCP", 80), True),
        ([rule("Allow", source={"notSelector": "app == 'web'"})], (WEB, DB, "TCP", 80), False),
        ([rule("Allow", source={"notSelector": "app == 'web'"})], (OUTSIDE, DB, "TCP", 80), True),
        ([rule("Allow", source={"notNets": ["198.51.100.0/24"]})], (OUTSIDE, DB, "TCP", 80), False),
        ([rule("Allow", source={"selector": "place == 'office'"})], (OUTSIDE, DB, "TCP", 80), True),
        ([rule("Allow", notProtocol="TCP")], (WEB, DB, "UDP", 80), True),
        ([rule("Allow", notProtocol="TCP")], (WEB, DB, "TCP", 80), False),
        ([rule("Allow", protocol="TCP", destination={"ports": ["79:81"]})], (WEB, DB, "TCP", 81), True),
        ([rule("Allow", protocol="TCP", destination={"ports": ["http"]})], (WEB, DB, "TCP", 8080), True),
        ([rule("Allow", protocol="TCP", destination={"notPorts": [80]})], (WEB, DB, "TCP", 80), False),
        ([rule("Allow", protocol="ICMP", icmp={"type": 8})], (WEB, DB, "ICMP", None), True),
        ([rule("Allow", protocol="ICMP", notICMP={"type": 8})], (WEB, DB, "ICMP", None), False),
        ([rule("Allow", destination={"selector": "app == 'web'"})], (WEB, DB, "TCP", 80), False),
        ([rule("Allow", ipVersion=6)], (WEB, DB, "TCP", 80), False),
    ],
)
def test_calico_rules(ingress: list[dict[str, Any]], question: tuple[str, str, str, int], wanted: bool) -> None:
    objects = [
        calico("GlobalNetworkPolicy", "g", {"selector": "app == 'db'", "order": 1, "ingress": ingress}),
        calico("GlobalNetworkSet", "s", {"nets": ["198.51.100.0/24"]}, place="office"),
    ]
    assert compile_policies(objects, PODS, [Namespace("x")], [Node("n1")]).allowed(*question) is wanted


def test_source_ports_and_tiers_in_order() -> None:
    """A tier before the default one passes one source port on, where Kubernetes' policy denies it."""
    rules = [rule("Pass", protocol="TCP", source={"ports": [7]}), rule("Allow")]
    early = {"tier": "early", "types": ["Ingress"], "ingress": rules}
    objects = [calico("Tier", "early", {"order": 5}), calico("GlobalNetworkPolicy", "g", early), kubernetes({})]
    snapshot = compile_policies(objects, PODS, [Namespace("x")], [])
    assert snapshot.verdict(WEB, DB, "TCP", 80, sport=8)[0]
    allowed, _, number = snapshot.verdict(WEB, DB, "TCP", 80, sport=7)
    assert not allowed
    assert number is not None
    assert snapshot.describe(number) == "end of tier default, ingress: no rule matched"


def test_an_explanation_names_the_rule_that_decided() -> None:
    spec = {"ingress": [{"ports": [{"port": 1}]}, {"ports": [{"port": 80}]}]}
    found = explain(compile_policies([kubernetes(spec)], PODS, [Namespace("x")], []), WEB, DB, "TCP", 80)
    assert found.allowed
    assert found.rule == "NetworkPolicy x/p spec.ingress[1]"
    assert found.lines()[0].startswith("ingress tier default (NetworkPolicy x/p): allowed by")


@pytest.mark.parametrize(("action", "wanted"), [("Accept", False), ("Deny", False)])
def test_domain_names_fail_closed(action: str, wanted: bool) -> None:
    named = {"action": action, "to": [{"domainNames": ["example.com"]}]}
    rules = [named, {"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]}]
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": rules}
    kind = {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy"}
    snapshot = compile_policies([{**kind, "metadata": {"name": "c"}, "spec": spec}], PODS, [Namespace("x")], [])
    assert snapshot.allowed(WEB, OUTSIDE, "TCP", 80) is wanted
