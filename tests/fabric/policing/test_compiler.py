"""From worlds to snapshots: what changes, what is refused and kept, and the answers for people."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import pytest

from fabric.policing import answers, hits, objects
from fabric.policing.compiler import Compiler
from fabric.policing.documents import Given, parse_documents
from fabric.policing.world import World
from tests.fabric.policing.recorder import network_policy, pod
from tests.fabric.policing.test_world import OWN, endpoint, lease

PODS = (pod("web", "10.244.1.5", app="web"), pod("db", "10.244.2.6", "10.244.2.0-24", app="db"))
ALLOW = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: db}}}]
    ports: [{port: 80}]
"""


def world(*values: Mapping[str, Any] | Given, **more: Any) -> World:
    givens = [value if isinstance(value, Given) else Given(value) for value in values]
    found = {}
    for given in givens:
        key, value = objects.normal(given.value)
        found[key] = Given(value, given.file, given.line, given.lines, given.alone)
    return World(OWN, found, leases=(lease(1), lease(2)), **more)


def test_a_policy_comes_changes_and_goes() -> None:
    compiler = Compiler("n1")
    first = compiler.compile(world(*PODS)).snapshot
    assert first is not None
    assert first.allowed("10.244.2.6", "10.244.1.5", "TCP", 80)
    denied = compiler.compile(world(*PODS, network_policy("all"))).snapshot
    assert denied is not None
    assert denied.number > first.number
    assert not denied.allowed("10.244.2.6", "10.244.1.5", "TCP", 80)
    again = compiler.compile(world(*PODS, network_policy("all"))).snapshot
    assert again is denied  # nothing to do
    last = compiler.compile(world(*PODS)).snapshot
    assert last is not None
    assert last.allowed("10.244.2.6", "10.244.1.5", "TCP", 80)


def test_all_addresses_of_the_own_node_reach_its_pods() -> None:
    snapshot = Compiler("n1").compile(world(*PODS, network_policy("all"))).snapshot
    assert snapshot is not None
    reach = {a: snapshot.allowed(a, "10.244.1.5", "TCP", 80) for a in ("192.0.2.1", "10.244.1.0", "10.244.1.1")}
    assert reach == dict.fromkeys(reach, True)
    assert not snapshot.allowed("192.0.2.2", "10.244.1.5", "TCP", 80)


def test_an_endpoint_is_known_without_any_object() -> None:
    compiler = Compiler("n1")
    snapshot = compiler.compile(world(endpoints=(endpoint("p1", "10.244.1.7", "new", "shop"),))).snapshot
    assert snapshot is not None
    assert snapshot.knows("10.244.1.7")
    snapshot = compiler.compile(world()).snapshot
    assert snapshot is not None
    assert not snapshot.knows("10.244.1.7")


def test_an_invalid_object_is_refused_with_its_field_and_the_last_good_one_stays() -> None:
    compiler = Compiler("n1")
    bad = network_policy("all", ingress=[{"ports": [{"port": 0}]}])
    key, _ = objects.normal(bad)
    outcome = compiler.compile(world(*PODS, bad))
    assert outcome.refused == {key: "spec.ingress[0].ports[0].port: is 0, not in 1..65535"}
    assert key not in outcome.accepted
    compiler.compile(world(*PODS, network_policy("all")))
    outcome = compiler.compile(world(*PODS, bad))
    assert key in outcome.refused
    assert outcome.accepted[key].value == network_policy("all")
    assert outcome.snapshot is not None
    assert not outcome.snapshot.allowed("10.244.2.6", "10.244.1.5", "TCP", 80)
    assert compiler.compile(world(*PODS)).refused == {}


def test_the_last_good_one_may_be_of_an_earlier_run() -> None:
    key, good = objects.normal(network_policy("all"))
    gone, _ = objects.normal(network_policy("gone"))
    compiler = Compiler("n1", {key: Given(good), gone: Given(network_policy("gone"))})
    outcome = compiler.compile(world(*PODS, network_policy("all", ingress=3)))
    assert set(outcome.accepted) & {key, gone} == {key}
    assert outcome.refused.keys() == {key}


def test_an_invalid_pod_or_one_of_another_kind_is_refused_alone() -> None:
    outcome = Compiler("n1").compile(
        world(*PODS, {**pod("odd", "x")}, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}})
    )
    assert set(outcome.refused) == {"v1/Pod/shop/odd", "apps/v1/Deployment//d"}
    assert outcome.snapshot is not None
    assert outcome.snapshot.knows("10.244.1.5")


def test_the_list_has_policies_with_state_and_place() -> None:
    given = parse_documents(ALLOW.encode(), "web.yaml")[0]
    inputs = world(*PODS, given, network_policy("bad", ingress=3))
    found = answers.listing(Compiler("n1").compile(inputs), inputs.objects)
    assert [(item["name"], item["state"], item["place"]) for item in found] == [
        ("allow", "in force", "web.yaml:1"), ("bad", "refused", "")
    ]  # fmt: skip
    assert found[1]["reason"] == "spec.ingress: is a number, not a list"


def explained(source: str, target: str, port: str, *more: Mapping[str, Any]) -> dict[str, Any]:
    compiler = Compiler("n1")
    compiler.compile(world(*PODS, parse_documents(ALLOW.encode(), "web.yaml")[0], *more))
    return answers.explanation(compiler.known(), source, target, port)


@pytest.mark.parametrize(
    ("source", "target", "port", "allowed", "place"),
    [
        ("shop/db", "shop/web", "80", True, "web.yaml:7"),
        ("10.244.2.6", "10.244.1.5", "80/tcp", True, "web.yaml:7"),
        ("shop/db", "shop/web", "80/udp", False, ""),
        ("192.0.2.1", "shop/web", "81", True, ""),
        ("198.51.100.7", "shop/web", "icmp", False, ""),
        ("shop/web", "shop/db", "5432", True, ""),
    ],
)
def test_explanations(source: str, target: str, port: str, allowed: bool, place: str) -> None:
    found = explained(source, target, port)
    assert (found["allowed"], found["place"]) == (allowed, place)


def test_a_services_address_is_pointed_out() -> None:
    compiler = Compiler("n1")
    compiler.compile(world(*PODS))
    services = [ip_network("10.96.0.0/12")]
    notes = [answers.explanation(compiler.known(), "shop/web", target, "80", services)["note"]
             for target in ("10.96.0.10", "10.244.2.6")]  # fmt: skip
    assert notes == [answers.SERVICE, ""]


def test_both_ends_are_explained_wherever_they_are() -> None:
    egress = network_policy("db-out", podSelector={"matchLabels": {"app": "db"}}, policyTypes=["Egress"])
    found = explained("shop/db", "shop/web", "80", egress)
    assert not found["allowed"]
    assert [(t["direction"], t["tier"], t["action"]) for t in found["tiers"]] == [("egress", "default", "denied")]
    assert found["source"] == {"address": "10.244.2.6", "what": "pod shop/db", "node": "10.244.2.0-24", "here": False}
    assert found["target"]["here"]


@pytest.mark.parametrize(
    ("source", "target", "port", "reason"),
    [
        ("shop/none", "shop/web", "80", "no pod 'shop/none'"),
        ("shop/db", "2001:db8::1", "80", "no addresses of one family"),
        ("shop/db", "shop/web", "0", "is no port"),
        ("shop/db", "shop/web", "80/ipx", "is no port"),
        ("shop/db", "shop/web", "tcp", "is no port"),
    ],
)
def test_questions_without_an_answer(source: str, target: str, port: str, reason: str) -> None:
    with pytest.raises(answers.QuestionError, match=reason):
        explained(source, target, port)


def test_hits_are_sorted_and_have_their_place() -> None:
    given = parse_documents(ALLOW.encode(), "web.yaml")[0]
    outcome = Compiler("n1").compile(world(given, network_policy("other", egress=[{}, {"ports": [{"port": 1}]}])))
    known = hits.Rules()
    rules = known.of(outcome.accepted)
    assert known.of(outcome.accepted) is rules
    assert [(item.policy, item.rule, item.direction, item.action) for item in rules] == [
        ("NetworkPolicy shop/allow", "spec.ingress[0]", "ingress", "allow"),
        ("NetworkPolicy shop/other", "spec.egress[0]", "egress", "allow"),
        ("NetworkPolicy shop/other", "spec.egress[1]", "egress", "allow"),
    ]
    rule = "NetworkPolicy shop/allow spec.ingress[0]"
    end = "end of tier default, ingress: no rule matched"
    found = answers.hits({end: 2, rule: 5}, rules)
    assert found[:2] == [
        {"rule": rule, "hits": 5, "place": "web.yaml:7", "staged": False},
        {"rule": end, "hits": 2, "place": "", "staged": False},
    ]
    assert [item["hits"] for item in found[2:]] == [0, 0]
