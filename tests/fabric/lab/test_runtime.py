"""The lab as a container runtime: what it writes and hands to the plugin. No root needed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from fabric.cni.config import load
from fabric.lab import plan, runtime
from fabric.lab.plan import LabError, Node, Options, Pod


def nodes() -> list[Node]:
    return plan.plan_nodes(Options(nodes=2, pods=2, kernel_peer=True, pod_kind="mixed"))


def paths_in(value: object) -> list[str]:
    """Every absolute path of a configuration."""
    if isinstance(value, dict):
        return [path for item in value.values() for path in paths_in(item)]
    return [value] if isinstance(value, str) and value.startswith("/") else []


def test_a_node_has_a_network_for_each_kind_of_its_pods(tmp_path: Path) -> None:
    fabric, kernel = nodes()
    for node in (fabric, kernel):
        runtime.install(node, tmp_path)
    assert sorted(path.name for path in (tmp_path / "node1/cni/net.d").iterdir()) == ["bridge.conflist", "tun.conflist"]
    assert [path.name for path in (tmp_path / "node2/cni/net.d").iterdir()] == ["bridge.conflist"]
    confs = [load(runtime.request(node, pod, tmp_path)) for node in (fabric, kernel) for pod in node.pods]
    assert [conf.type for conf in confs] == ["fabric-cni", "fabric-cni", "flannel", "flannel"]
    assert [conf.text("kind") for conf in confs[:2]] == ["bridge", "tun"]
    assert len({conf.name for conf in confs}) == 1, "reservations are shared"


@pytest.mark.parametrize("number", [0, 1])
def test_nothing_of_a_lab_lies_outside_of_its_directory(tmp_path: Path, number: int) -> None:
    node = nodes()[number]
    paths = paths_in(runtime.conflist(node, "bridge", tmp_path)["plugins"][0])
    paths += paths_in(runtime.conflist(node, "bridge", tmp_path)["plugins"][0]["ipam"])
    assert paths
    assert all(path.startswith(f"{tmp_path}/{node.name}/") for path in paths)


def test_the_environment_is_kubelets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNI_IFNAME", "of somebody else")
    found = runtime.environment("ADD", nodes()[0].pods[0])
    assert {name: value for name, value in found.items() if name.startswith("CNI_") and name != "CNI_PATH"} == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "node1-pod1",
        "CNI_NETNS": "/run/netns/fablab-node1-pod1",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=node1-pod1",
    }


@pytest.mark.parametrize(
    ("stdout", "stderr", "words"),
    [
        ('{"code": 11, "msg": "no daemon", "details": "start it"}', "", "no daemon: start it (code 11)"),
        ('{"code": 5, "msg": "full"}', "ignored", "full (code 5)"),
        ("", "Traceback\nImportError: gone\n", "ImportError: gone"),
        ("", "", "it ended with status 1"),
    ],
)
def test_an_error_is_one_line(stdout: str, stderr: str, words: str) -> None:
    done = subprocess.CompletedProcess(["fabric-cni"], 1, stdout, stderr)
    assert runtime.reason(json.loads(stdout) if stdout else None, done) == words


def test_one_pod_that_fails_does_not_keep_the_others_waiting() -> None:
    done = []

    def work(node: Node, pod: Pod) -> None:
        if pod.name == "node1-pod1":
            raise LabError(pod.name)
        done.append(pod.name)

    errors = runtime.for_each([(node, pod) for node in nodes() for pod in node.pods], work)
    assert [str(error) for error in errors] == ["node1-pod1"]
    assert sorted(done) == ["node1-pod2", "node2-pod1", "node2-pod2"]


def test_a_pod_without_network_is_one_line(tmp_path: Path) -> None:
    node = nodes()[0]
    with pytest.raises(LabError, match=r"node1-pod1 has no network: .*bridge\.conflist cannot be read"):
        runtime.add(node, node.pods[0], tmp_path)
    runtime.delete(node, node.pods[0], tmp_path)
