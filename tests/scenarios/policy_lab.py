"""A lab whose nodes enforce policy, and what scenarios ask of it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fabric.lab import Lab, Pod, measure
from tests.scenarios import inside
from tests.scenarios.waiting import wait_for

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

    def write_and_see(self, name: str, policy: str, value: Any) -> None:
        """A file whose policy changes no snapshot: wait until node2 lists it."""
        (self.policies / name).write_text(yaml.safe_dump(value))

        def listed() -> bool:
            return policy in [item["name"] for item in self.lab.control("node2", "policy.list")["objects"]]

        wait_for(listed, "listed")

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

    def remembered(self, node: str) -> str:
        """What a node has on disk for a start without the source."""
        files = list((self.lab.run_dir / node).rglob("policy.json"))
        return files[0].read_text() if files else ""


def pod_object(pod: Pod, families: Sequence[int] = (4,)) -> dict[str, Any]:
    """A Pod as the API has it, with its name as its label `pod`."""
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name, "labels": {"pod": pod.name}},
        "status": {"podIPs": [{"ip": measure.address(pod, family)} for family in families]},
    }  # fmt: skip


def policy(name: str, *sources: str, ports: tuple[int, ...] = (), target: str = WEB) -> dict[str, Any]:
    """Only these pods may come in to `target`, to these ports (none: all)."""
    peers = [{"podSelector": {"matchLabels": {"pod": source}}} for source in sources]
    rule = {"from": peers, "ports": [{"port": port, "protocol": "UDP"} for port in ports]} if peers else None
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"pod": target}}, "policyTypes": ["Ingress"],
                 "ingress": [rule] if rule else []},
    }  # fmt: skip
