"""What an operator sees of network policy: the rule in a capture, in the metrics and in `doctor`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fabric.flag_table import FLAGS
from fabric.lab import Lab, measure
from tests.scenarios import inside
from tests.scenarios.policy_lab import pod_object
from tests.scenarios.test_capture import capture, comments, sender
from tests.scenarios.test_metrics import PORT, scrape
from tests.scenarios.waiting import wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(all(flag.name != "policy-dir" or flag.group == "later" for flag in FLAGS), reason="no policy"),
]
RULE = "NetworkPolicy default/web"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Pods on ports; node1's pod may be reached by nobody at all, and says so in the policy directory."""
    policies = tmp_path_factory.mktemp("policies")
    with Lab(nodes=2, pods=1, daemon_args=(f"--policy-dir={policies}", f"--metrics-port={PORT}")) as made:
        pods = [pod_object(pod) for pod in made.pods]
        policy = {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web"},
            "spec": {"podSelector": {"matchLabels": {"pod": "node1-pod1"}}, "policyTypes": ["Ingress"],
                     "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "nobody"}}}]}]},
        }  # fmt: skip
        Path(policies, "all.yaml").write_text(yaml.safe_dump_all([*pods, policy]))
        wait_for(lambda: made.control("node1", "status")["policy"].get("objects"), "the policy in force")
        yield made


def test_a_capture_names_the_rule(lab: Lab, tmp_path: Path) -> None:
    web, other = lab.nodes[0].pods[0], lab.nodes[1].pods[0]
    send = sender(other, measure.address(web, 4), 7000)
    found = capture(lab, tmp_path / "a", send, "--verdict", "dropped", "--inner", "udp port 7000", count=2)
    for comment in comments(found):
        assert comment.startswith("verdict: dropped; reason: policy_ingress (")
        assert "; rule: " in comment


def test_metrics(lab: Lab) -> None:
    web, other = lab.nodes[0].pods[0], lab.nodes[1].pods[0]
    before = scrape(lab, "node1")
    with inside.open_socket(other.netns, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (measure.address(web, 4), 7001))

    def dropped() -> Any:
        now = scrape(lab, "node1")
        name = ("podfabric_drops_total", "policy_ingress")
        return now[name] > before[name] and now

    now = wait_for(dropped, "the drop")
    assert now[("podfabric_policy_objects", "in_force")] >= 1
    assert now[("podfabric_policy_rules",)] >= 1
    assert now[("podfabric_programming_duration_seconds_count", "policy")] >= 1
    assert any(name[0] == "podfabric_pod_bytes_total" for name in now)
    assert [name for name in now if name[0] == "podfabric_counter_total"] == []


@pytest.mark.parametrize(
    ("source", "target", "names"),
    [("default/node2-pod1", "default/node1-pod1", ["policy"]), ("default/node1-pod1", "default/node2-pod1", [])],
)
def test_doctor(lab: Lab, source: str, target: str, names: list[str]) -> None:
    command = [
        "ip", "netns", "exec", lab.netns("node1"), sys.executable, "-m", "fabric.cli.main", "doctor", "--json",
        "--run-dir", str(lab.run_dir / "node1" / "run"), "--from", source, "--to", target, "--port", "7000/udp",
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(shown.stdout)["findings"]
    assert [finding["name"] for finding in found] == names, shown.stdout
    assert all(RULE in finding["text"] or "no rule" in finding["text"] for finding in found)
