"""Two nodes of a Kubernetes cluster, with the role of docs/kubernetes: what is in the API decides what passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenarios.kube_lab import KubeLab, kube_lab
from tests.scenarios.policy_lab import policy
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeLab]:
    with kube_lab(tmp_path_factory.mktemp("kube")) as made:
        yield made


def test_pods_are_closed_until_their_objects_are_there_and_then_as_policies_say(cluster: KubeLab) -> None:
    policed, source, target = cluster.policed, "node1-pod1", "node2-pod1"
    assert not policed.passes(source, target)
    for name in (source, target):
        cluster.create_pod(name)
    wait_for(lambda: policed.passes(source, target), "the pods are open")
    cluster.create_policy(policy("web", target=target))
    wait_for(lambda: not policed.passes(source, target), "the policy holds")
    assert policed.passes(target, source)
    cluster.delete_policy("web")
    wait_for(lambda: policed.passes(source, target), "the policy is gone")


def test_a_restart_without_the_api_keeps_the_policies(cluster: KubeLab) -> None:
    policed, source, target = cluster.policed, "node1-pod1", "node2-pod1"
    cluster.create_policy(policy("web", target=target))
    wait_for(lambda: not policed.passes(source, target), "the policy holds")
    wait_for(lambda: "default/web" in policed.remembered("node2"), "saved")
    cluster.relay.cut("fablab-node2")
    policed.lab.restart_daemon("node2")
    assert policed.lab.control("node2", "status")["policy"]["snapshot"] > 0
    assert not policed.passes(source, target)
    assert policed.passes(target, source)
