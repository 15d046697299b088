"""What becomes of flows under way: whose choice counts, for every place where a flow can be refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from fabric.policy import Cluster, Namespace, Node, Pod, PolicyError, compile_policies
from fabric.policy.parse import object_key, parse_object
from fabric.policy.rules import Established, Policy

KEEP, AGAIN, RESET = "keep", "re-evaluate", "reset"
NAMES = {Established.KEEP: KEEP, Established.RE_EVALUATE: AGAIN, Established.RESET: RESET, None: "allowed"}
PODS = [Pod("x", name, {"app": name}, (ip_address(f"10.244.0.{i}"),), "n1") for i, name in enumerate(("web", "db"), 1)]
WEB, DB = "10.244.0.1", "10.244.0.2"
Object = Mapping[str, Any]


def chosen(value: dict[str, Any], choice: str) -> dict[str, Any]:
    annotations = {"podfabric.io/established": choice} if choice else {}
    return {**value, "metadata": {**value["metadata"], "annotations": annotations}}


def kubernetes(name: str, choice: str, pod: str = "db", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "x"}
    body = {"podSelector": {"matchLabels": {"app": pod}}, **spec}
    return chosen(
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": body}, choice
    )


def admin(name: str, choice: str, **spec: Any) -> dict[str, Any]:
    body = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, **spec}
    kind = {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy"}
    return chosen({**kind, "metadata": {"name": name}, "spec": body}, choice)


def calico(kind: str, name: str, choice: str, spec: Object) -> dict[str, Any]:
    return chosen(
        {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec}, choice
    )


def fate(objects: Sequence[Object]) -> str:
    """Of a flow under way from web to port 80 of db."""
    snapshot = compile_policies(objects, PODS, [Namespace("x")], [Node("n1")])
    choice, egress, ingress = snapshot.established(WEB, DB, "TCP", 80)
    allowed = snapshot.allowed(WEB, DB, "TCP", 80)
    assert allowed == (choice is None)
    assert allowed or egress is not None or ingress is not None
    return NAMES[None if choice is None else Established(choice)]


@pytest.mark.parametrize(
    ("choices", "wanted"),
    [
        ([""], AGAIN), ([AGAIN], AGAIN), ([KEEP], KEEP), ([RESET], RESET), ([KEEP, KEEP], KEEP), ([KEEP, ""], AGAIN),
        ([KEEP, RESET], RESET), (["", RESET], RESET), ([RESET, KEEP, AGAIN], RESET),
    ],
)  # fmt: skip
def test_where_no_rule_lets_it_in_all_policies_of_the_pod_have_refused_it(choices: list[str], wanted: str) -> None:
    policies = [kubernetes(f"p{i}", choice) for i, choice in enumerate(choices)]
    assert fate(policies) == wanted
    assert fate([*policies, kubernetes("other", RESET, "web")]) == wanted, "it does not select db"
    assert fate([*policies, kubernetes("out", RESET, policyTypes=["Egress"])]) == wanted, "nor this direction"
    assert fate([*policies, kubernetes("in", KEEP, ingress=[{}])]) == "allowed"


@pytest.mark.parametrize("choice", [KEEP, AGAIN, RESET])
def test_a_rule_that_denies_has_its_policys_choice(choice: str) -> None:
    deny = [{"action": "Deny", "from": [{"namespaces": {}}]}]
    assert fate([admin("deny", choice, ingress=deny), kubernetes("in", RESET)]) == choice
    rule = {"action": "Deny", "protocol": "TCP", "destination": {"ports": [80]}}
    spec = {"selector": "app == 'db'", "order": 1, "ingress": [rule]}
    assert fate([calico("GlobalNetworkPolicy", "deny", choice, spec), kubernetes("in", "")]) == choice
    passes = [{"action": "Pass", "from": [{"namespaces": {}}]}]
    assert fate([admin("on", RESET, ingress=passes), kubernetes("in", choice)]) == choice


@pytest.mark.parametrize(
    ("out", "into", "wanted"),
    [
        (KEEP, KEEP, KEEP), (KEEP, RESET, RESET), (KEEP, AGAIN, AGAIN), (RESET, KEEP, RESET), (AGAIN, RESET, AGAIN),
        (RESET, AGAIN, RESET),
    ],
)  # fmt: skip
def test_one_end_that_keeps_it_does_not_bind_the_other(out: str, into: str, wanted: str) -> None:
    """The first end that does not keep it decides; egress is asked first."""
    policies = [kubernetes("out", out, "web", policyTypes=["Egress"]), kubernetes("into", into)]
    assert fate(policies) == wanted
    allowing = kubernetes("into", into, ingress=[{}])
    assert fate([policies[0], allowing]) == out
    snapshot = compile_policies([policies[0], allowing], PODS, [Namespace("x")], [Node("n1")])
    _, _, ingress = snapshot.established(WEB, DB, "TCP", 80)
    assert ingress is None, "a rule that allows has not refused it"


def test_a_choice_alone_is_a_change() -> None:
    cluster = Cluster()
    cluster.set_namespace(Namespace("x"))
    for pod in PODS:
        cluster.set_pod(pod)
    for choice in (KEEP, RESET, "", KEEP):
        value = kubernetes("p", choice)
        assert cluster.apply(object_key(value), value).error is None
        found, _, _ = cluster.snapshot().established(WEB, DB, "TCP", 80)
        assert found is not None
        assert NAMES[Established(found)] == (choice or AGAIN)


@pytest.mark.parametrize("choice", ["Keep", "", "drop", 3, ["keep"], {}])
def test_a_bad_choice_is_refused_with_its_field(choice: Any) -> None:
    value = kubernetes("p", "")
    value["metadata"]["annotations"]["podfabric.io/established"] = choice
    with pytest.raises(PolicyError) as caught:
        parse_object(value)
    assert caught.value.path == "metadata.annotations.podfabric.io/established"
    cluster = Cluster()
    good = kubernetes("p", KEEP)
    cluster.apply(object_key(good), good)
    result = cluster.apply(object_key(value), value)
    assert (result.error is not None, result.kept) == (True, True), "the last good one stays"


def test_annotations_of_others_are_theirs() -> None:
    value = kubernetes("p", "")
    value["metadata"]["annotations"] = {"podfabric.io/established": None, "a.b/c": "keep"}
    parsed = parse_object(value)
    assert isinstance(parsed, Policy)
    assert parsed.established == Established.RE_EVALUATE


@pytest.mark.parametrize(("kind", "spec"), [("Tier", {"order": 1}), ("GlobalNetworkSet", {"nets": []})])
def test_the_choice_is_a_policys(kind: str, spec: Object) -> None:
    with pytest.raises(PolicyError, match=r"podfabric\.io/established: is for policies"):
        parse_object(calico(kind, "t", KEEP, spec))
    parse_object(calico(kind, "t", "", spec))
