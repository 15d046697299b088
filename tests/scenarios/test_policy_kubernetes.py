"""Two nodes of a Kubernetes cluster, with the role of docs/kubernetes: what is in the API decides what passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fabric.lab import Lab
from tests.apiserver import process as apiserver
from tests.apiserver.process import ApiServer
from tests.fabric.store import etcd_server
from tests.scenarios.policy_lab import PolicyLab, policy
from tests.scenarios.relay import Relay, relaying
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
RBAC = Path(__file__).parents[2] / "docs" / "kubernetes" / "rbac.yaml"
NODES = ("node1", "node2")
PODS = "/api/v1/namespaces/default/pods"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"


@dataclass
class Cluster:
    policed: PolicyLab
    api: ApiServer
    relay: Relay

    def create_pod(self, name: str) -> None:
        """As the scheduler and the kubelet have it."""
        document: dict[str, Any] = {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"pod": name}},
            "spec": {"nodeName": name.partition("-")[0]}, "status": {"podIPs": [{"ip": self.policed.ip(name)}]},
        }  # fmt: skip
        self.api.create(document, path=PODS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("kube")
    with (
        etcd_server.running(directory / "etcd") as etcd,
        apiserver.running(directory / "api", etcd, f"--rbac={RBAC}") as api,
        apiserver.running(directory / "admin", etcd) as admin,
    ):
        admin.create(*(apiserver.node(name, f"10.244.{number}.0/24") for number, name in enumerate(NODES, 1)))
        words = ("--kube-subnet-mgr", f"--kube-api-url={api.url}")
        lab = Lab(nodes=2, pods=1, pod_kind="tun", reserve=False, daemon_args=words)
        with relaying(api.port, [f"fablab-{name}" for name in NODES]) as relay, lab:
            yield Cluster(PolicyLab(lab, directory), admin, relay)


def test_pods_are_closed_until_their_objects_are_there_and_then_as_policies_say(cluster: Cluster) -> None:
    policed, source, target = cluster.policed, "node1-pod1", "node2-pod1"
    assert not policed.passes(source, target)
    for name in (source, target):
        cluster.create_pod(name)
    wait_for(lambda: policed.passes(source, target), "the pods are open")
    cluster.api.create(policy("web", target=target), path=POLICIES)
    wait_for(lambda: not policed.passes(source, target), "the policy holds")
    assert policed.passes(target, source)
    cluster.api.ask("DELETE", f"{POLICIES}/web")
    wait_for(lambda: policed.passes(source, target), "the policy is gone")


def test_a_restart_without_the_api_keeps_the_policies(cluster: Cluster) -> None:
    policed, source, target = cluster.policed, "node1-pod1", "node2-pod1"
    cluster.api.create(policy("web", target=target), path=POLICIES)
    wait_for(lambda: not policed.passes(source, target), "the policy holds")
    wait_for(lambda: "default/web" in policed.remembered("node2"), "saved")
    cluster.relay.cut("fablab-node2")
    policed.lab.restart_daemon("node2")
    assert policed.lab.control("node2", "status")["policy"]["snapshot"] > 0
    assert not policed.passes(source, target)
    assert policed.passes(target, source)
