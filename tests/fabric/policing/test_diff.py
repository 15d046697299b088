"""Staged policies, and which live flows a change would cut."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import pytest

from fabric.policing import answers, diff, objects
from fabric.policing.compiler import Compiler
from fabric.policy import PolicyError
from tests.fabric.policing.recorder import network_policy, pod
from tests.fabric.policing.test_compiler import PODS, world


def staged(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "metadata": {**value["metadata"], "annotations": {"podfabric.io/staged": "true", "a": "b"}}}


def choosing(value: dict[str, Any], choice: str) -> dict[str, Any]:
    return {**value, "metadata": {**value["metadata"], "annotations": {"podfabric.io/established": choice}}}


def flow(source: str, target: str, protocol: int = 6, dport: int = 80, **more: Any) -> dict[str, Any]:
    return {"protocol": protocol, "source": source, "sport": 40_000, "destination": target, "dport": dport,
            "state": "established", "allowed": True, **more}  # fmt: skip


FLOWS = [
    flow("10.244.2.6", "10.244.1.5"),
    flow("198.51.100.7", "10.244.1.5"),
    flow("198.51.100.7", "10.244.1.5", 1, 777),
    flow("10.244.1.5", "10.244.2.6"),
    flow("198.51.100.8", "10.244.1.5", allowed=False),
    flow("10.244.1.5", "10.96.0.1"),
]


def compiled(*values: Mapping[str, Any]) -> Compiler:
    compiler = Compiler("n1")
    compiler.compile(world(*PODS, *values))
    return compiler


def test_a_staged_policy_is_not_enforced_but_checked_and_listed() -> None:
    inputs = world(*PODS, staged(network_policy("all")), staged(network_policy("bad", ingress=3)))
    outcome = Compiler("n1").compile(inputs)
    assert outcome.snapshot is not None
    assert outcome.snapshot.allowed("198.51.100.7", "10.244.1.5", "TCP", 80)
    states = {item["name"]: item["state"] for item in answers.listing(outcome, inputs.objects)}
    assert states == {"all": "staged", "bad": "refused"}


def test_a_policy_goes_from_staged_to_enforced_and_back() -> None:
    compiler = Compiler("n1")
    seen = []
    for value in (network_policy("all"), staged(network_policy("all")), network_policy("all")):
        snapshot = compiler.compile(world(*PODS, value)).snapshot
        assert snapshot is not None
        seen.append(snapshot.allowed("198.51.100.7", "10.244.1.5", "TCP", 80))
    assert seen == [False, True, False]
    compiler.compile(world(*PODS, staged(network_policy("all"))))
    outcome = compiler.compile(world(*PODS))
    assert (outcome.staged, [key for key in outcome.accepted if "Policy" in key]) == ({}, [])


def test_the_flows_that_a_policy_would_cut() -> None:
    rule = {"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}
    changes = diff.changes_of([staged(network_policy("all", ingress=[rule]))])
    found = diff.difference(compiled().known(), changes, FLOWS, [])
    assert (found["flows"], found["cut"], found["kept"]) == (6, 2, 0)
    assert found["changes"] == ["NetworkPolicy shop/all"]
    assert found["shown"][0] == {
        "protocol": "TCP", "source": "198.51.100.7", "source_pod": "", "destination": "10.244.1.5",
        "destination_pod": "shop/web", "port": 80, "state": "established",
        "rule": "end of tier default, ingress: no rule of NetworkPolicy shop/all matched", "fate": "cut",
    }  # fmt: skip
    assert (found["shown"][1]["protocol"], found["shown"][1]["port"]) == ("ICMP", None)


def test_what_becomes_of_a_flow_is_the_choice_of_who_refuses_it() -> None:
    """A kept one is no news where it was kept before."""
    known = compiled(choosing(network_policy("other", podSelector={"matchLabels": {"app": "nobody"}}), "reset")).known()
    for choice, fate in (("keep", "kept"), ("re-evaluate", "cut"), ("reset", "reset")):
        changes = diff.changes_of([choosing(network_policy("all"), choice)])
        found = diff.difference(known, changes, FLOWS, [])
        assert {item["fate"] for item in found["shown"]} == {fate}
        assert (found["cut"], found["kept"]) == ((0, 3) if fate == "kept" else (3, 0))
        before = [{**each, "standing": "kept"} for each in FLOWS]
        assert len(diff.difference(known, changes, before, [])["shown"]) == (0 if fate == "kept" else 3)


def test_what_is_cut_is_shown_before_what_is_kept() -> None:
    out = network_policy("out", policyTypes=["Egress"])
    changes = diff.changes_of([choosing(network_policy("all"), "keep"), out])
    found = diff.difference(compiled().known(), changes, FLOWS, [ip_network("10.96.0.0/12")])
    assert [item["fate"] for item in found["shown"]] == ["cut", "kept", "kept", "kept"]


def test_what_goes_to_a_service_is_not_looked_at() -> None:
    changes = diff.changes_of([network_policy("out", policyTypes=["Egress"])])
    found = diff.difference(compiled().known(), changes, FLOWS, [ip_network("10.96.0.0/12")])
    assert [item["destination"] for item in found["shown"]] == ["10.244.2.6"]


def test_a_change_may_replace_a_policy_or_bring_a_pod() -> None:
    compiler = compiled(network_policy("all", ingress=[{}]))
    assert diff.difference(compiler.known(), diff.changes_of([network_policy("all")]), FLOWS, [])["cut"] == 3
    assert diff.difference(compiler.known(), diff.changes_of([pod("new", "10.244.1.9")]), FLOWS, [])["cut"] == 0
    assert compiler.compile(world(*PODS)).snapshot is not None  # what is in force was left alone


def test_an_invalid_change_is_refused_with_its_field() -> None:
    with pytest.raises(PolicyError, match=r"NetworkPolicy shop/all: spec\.ingress: is a number"):
        diff.difference(compiled().known(), diff.changes_of([network_policy("all", ingress=3)]), FLOWS, [])
    with pytest.raises(PolicyError, match="apiVersion"):
        diff.changes_of([3])
    assert objects.is_staged({"metadata": 3}) is False
