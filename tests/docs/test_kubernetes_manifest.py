"""The role in docs/kubernetes is flannel's and what policy needs, no more and no less. That it is enough:
test_kube_lease.py and test_kube_source.py."""

from pathlib import Path

import yaml

MANIFEST = Path(__file__).parents[2] / "docs" / "kubernetes" / "rbac.yaml"


def test_the_role_has_exactly_these_rules_and_is_bound_to_our_account() -> None:
    documents = {item["kind"]: item for item in yaml.safe_load_all(MANIFEST.read_text())}
    assert sorted(documents) == ["ClusterRole", "ClusterRoleBinding", "ServiceAccount"]
    rules = {
        (group, resource): sorted(rule["verbs"])
        for rule in documents["ClusterRole"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert rules == {
        ("", "pods"): ["get", "list", "watch"],
        ("", "nodes"): ["get", "list", "watch"],
        ("", "nodes/status"): ["patch"],
        ("", "namespaces"): ["list", "watch"],
        ("", "events"): ["create"],
        ("networking.k8s.io", "networkpolicies"): ["list", "watch"],
        ("policy.networking.k8s.io", "clusternetworkpolicies"): ["list", "watch"],
    }
    assert all(rule.keys() == {"apiGroups", "resources", "verbs"} for rule in documents["ClusterRole"]["rules"])
    binding, account = documents["ClusterRoleBinding"], documents["ServiceAccount"]["metadata"]
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                                  "name": documents["ClusterRole"]["metadata"]["name"]}  # fmt: skip
    subject = {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    assert binding["subjects"] == [subject]
