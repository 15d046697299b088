"""Two nodes with one --policy-dir: what is written there decides which packets of the pods arrive."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import yaml

from fabric.lab import Lab, measure
from tests.scenarios import inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
PODS = ("node1-pod1", "node1-pod2", "node2-pod1", "node2-pod2")
WEB = "node2-pod1"
PROBE_SECONDS = 0.15


class PolicyLab:
    """The lab and its policy directory."""

    def __init__(self, lab: Lab, policies: Path) -> None:
        self.lab = lab
        self.policies = policies

    def write(self, name: str, *values: Any) -> None:
        """A file by rename, then wait until both nodes judge by it."""
        before = [self.snapshot(node) for node in ("node1", "node2")]
        temporary = self.policies / ".new"
        temporary.write_text(yaml.safe_dump_all(values))
        temporary.rename(self.policies / name)
        wait_for(lambda: all(self.snapshot(n) > b for n, b in zip(("node1", "node2"), before, strict=True)), "compiled")

    def remove(self, name: str) -> None:
        before = [self.snapshot(node) for node in ("node1", "node2")]
        (self.policies / name).unlink()
        wait_for(lambda: all(self.snapshot(n) > b for n, b in zip(("node1", "node2"), before, strict=True)), "compiled")

    def snapshot(self, node: str) -> int:
        return int(self.lab.control(node, "policy.list")["snapshot"])

    def ip(self, name: str) -> str:
        return measure.address(self.lab.pod(name), 4)

    def passes(self, source: str, target: str, port: int = 7000) -> bool:
        """Whether a datagram of a new flow arrives; `source` is a pod, or a node with its node port's address."""
        place = self.lab.pod(source) if "pod" in source else self.lab.node(source)
        with (
            inside.open_udp(self.lab.pod(target).netns, self.ip(target), port) as receiver,
            inside.open_socket(place.netns, socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.settimeout(PROBE_SECONDS)
            for _ in range(2):  # the first may be the one that resolves the route
                sender.sendto(b"probe", (self.ip(target), port))
                try:
                    return bool(receiver.recv(100) == b"probe")
                except TimeoutError:
                    continue
            return False

    def ctl(self, node: str, *words: str) -> subprocess.CompletedProcess[str]:
        run_dir = self.lab.run_dir / node / "run"
        argv = [sys.executable, "-m", "fabric.cli.main", "policy", *words, "--run-dir", str(run_dir)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture(scope="module")
def policed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyLab]:
    policies = tmp_path_factory.mktemp("policies")
    with Lab(nodes=2, pods=2, pod_kind="tun", daemon_args=(f"--policy-dir={policies}",)) as lab:
        made = PolicyLab(lab, policies)
        pods = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"pod": name}},
             "status": {"podIPs": [{"ip": made.ip(name)}]}}
            for name in PODS
        ]  # fmt: skip
        made.write("pods.yaml", *pods)
        yield made


def policy(name: str, *sources: str, ports: tuple[int, ...] = ()) -> dict[str, Any]:
    """Only these pods may come in to WEB, to these ports (none: all)."""
    peers = [{"podSelector": {"matchLabels": {"pod": source}}} for source in sources]
    rule = {"from": peers, "ports": [{"port": port, "protocol": "UDP"} for port in ports]} if peers else None
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"pod": WEB}}, "policyTypes": ["Ingress"],
                 "ingress": [rule] if rule else []},
    }  # fmt: skip


def test_without_policies_everything_passes(policed: PolicyLab) -> None:
    assert {name: policed.passes(name, WEB) for name in PODS} == dict.fromkeys(PODS, True)


def test_a_deny_and_an_exception_take_effect_and_go(policed: PolicyLab) -> None:
    policed.write("web.yaml", policy("web"))
    assert {name: policed.passes(name, WEB) for name in PODS} == {**dict.fromkeys(PODS, False), WEB: True}
    assert policed.passes(WEB, "node1-pod1")
    assert policed.passes("node2", WEB)  # its own node
    policed.write("web.yaml", policy("web", "node1-pod1", ports=(7000,)))
    assert policed.passes("node1-pod1", WEB)
    assert not policed.passes("node1-pod1", WEB, 7001)
    assert not policed.passes("node2-pod2", WEB)
    policed.remove("web.yaml")
    assert policed.passes("node2-pod2", WEB)


def test_an_invalid_change_leaves_the_last_good_one_in_force(policed: PolicyLab) -> None:
    policed.write("web.yaml", policy("web"))
    (policed.policies / "web.yaml").write_text(yaml.safe_dump(policy("web", "node1-pod1", ports=(70_000,))))
    wait_for(lambda: policed.lab.control("node2", "policy.list")["problems"], "refused")
    assert not policed.passes("node1-pod1", WEB)
    found = policed.lab.control("node2", "policy.list")["objects"]
    assert [(item["name"], item["state"]) for item in found] == [("web", "last good one")]
    policed.remove("web.yaml")


def test_the_tool_explains_applies_and_counts(policed: PolicyLab) -> None:
    policed.write("web.yaml", policy("web", "node1-pod1"))
    done = policed.ctl("node2", "explain", "node1-pod2", WEB, "7000/udp")
    assert (done.returncode, "no rule matches" in done.stdout) == (3, True), done.stderr
    done = policed.ctl("node1", "explain", "node1-pod1", WEB, "7000/udp")
    assert (done.returncode, "at web.yaml:" in done.stdout) == (0, True), done.stderr
    assert policed.passes("node1-pod1", WEB)
    hits = {item["rule"]: item["hits"] for item in json.loads(policed.ctl("node2", "hits", "--json").stdout)}
    assert hits.get("NetworkPolicy default/web spec.ingress[0]", 0) > 0
    policed.remove("web.yaml")
    file = policed.policies.parent / f"{policed.policies.name}.apply.yaml"
    file.write_text(yaml.safe_dump(policy("applied")))
    done = policed.ctl("node2", "apply", "-f", str(file))
    assert "NetworkPolicy default/applied created" in done.stdout, done.stderr
    assert not policed.passes("node1-pod1", WEB)  # it is in force when the tool returns
    done = policed.ctl("node2", "delete", "NetworkPolicy", "applied")
    assert "removed from" in done.stdout, done.stderr
    assert policed.passes("node1-pod1", WEB)


def test_a_pod_is_alive_when_its_add_returns(policed: PolicyLab) -> None:
    for _ in range(3):
        policed.lab.unplug("node1-pod2")
        policed.lab.plug("node1-pod2")
        assert policed.passes("node2-pod2", "node1-pod2")


def test_a_restart_without_the_directory_keeps_the_policies(policed: PolicyLab) -> None:
    policed.write("web.yaml", policy("web"))
    away = policed.policies.with_name("away")
    wait_for(lambda: "default/web" in _remembered(policed.lab, "node2"), "saved")
    policed.policies.rename(away)
    try:
        policed.lab.restart_daemon("node2")
        assert policed.lab.control("node2", "status")["policy"]["snapshot"] > 0
        assert not policed.passes("node1-pod1", WEB)
        assert policed.passes("node1-pod1", "node2-pod2")
    finally:
        away.rename(policed.policies)
    wait_for(lambda: not policed.lab.control("node2", "status")["policy"]["problems"], "the directory is back")
    policed.remove("web.yaml")
    assert policed.passes("node1-pod1", WEB)


def _remembered(lab: Lab, node: str) -> str:
    files = list((lab.run_dir / node).rglob("policy.json"))
    return files[0].read_text() if files else ""


def test_nothing_forbidden_arrives_through_changes_restarts_and_adds(policed: PolicyLab) -> None:
    """A datagram every millisecond to a pod that is closed for it (R14)."""
    policed.write("web.yaml", policy("web", "node2-pod2"))
    wait_for(lambda: "default/web" in _remembered(policed.lab, "node2"), "saved")
    web, text = policed.lab.pod(WEB), yaml.safe_dump(policy("web", "node2-pod2"))
    with inside.open_udp(web.netns, "0.0.0.0", 7100) as receiver, probing(policed, "node1-pod1", WEB, 7100) as sent:
        receiver.settimeout(0.0)
        for position in range(5):
            before = policed.snapshot("node2")
            (policed.policies / "web.yaml").rename(policed.policies / "web.yaml~")  # as an editor does
            with (policed.policies / "web.yaml").open("w") as file:
                file.write(text[: len(text) // 2])
                file.flush()
                (policed.policies / "other.yaml").write_text(yaml.safe_dump(policy(f"other{position}", "node2-pod2")))
                wait_for(lambda seen=before: policed.snapshot("node2") > seen, "compiled")  # type: ignore[misc]
                file.write(text[len(text) // 2 :])
        assert arrived(receiver) == 0, "while files were changed"
        for _ in range(2):
            policed.lab.unplug(WEB)
            policed.lab.plug(WEB)
        assert arrived(receiver) == 0, "while the pod was added"
        policed.lab.restart_daemon("node2")
        policed.lab.restart_daemon("node2", how=signal.SIGKILL)
        assert arrived(receiver) == 0, "while the daemon was started"
        assert len(sent) > 500
    assert policed.passes("node2-pod2", WEB)
    (policed.policies / "other.yaml").unlink()
    policed.remove("web.yaml")


def arrived(receiver: socket.socket) -> int:
    """How many datagrams wait."""
    found = 0
    with suppress(BlockingIOError):
        while receiver.recv(100):
            found += 1
    return found


@contextmanager
def probing(policed: PolicyLab, source: str, target: str, port: int) -> Iterator[list[float]]:
    """Send a datagram every millisecond, each of a new flow, until the block ends; when each was sent."""
    sent: list[float] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(0.001):
            with inside.open_socket(policed.lab.pod(source).netns, socket.AF_INET, socket.SOCK_DGRAM) as sender:
                with suppress(OSError):
                    sender.sendto(b"forbidden", (policed.ip(target), port))
                sent.append(monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sent
    finally:
        ended.set()
        thread.join()
