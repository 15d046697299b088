"""`fabricctl doctor` where the kernel's VXLAN device carries everything, and where plain routes do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fabric.daemon.nodes import TestNode, connect, wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
CHAIN = "add table inet fabtest; add chain inet fabtest c { type filter hook input priority -5; };"
BACKENDS = {"kernel": {"Type": "vxlan", "Datapath": "kernel"}, "routes": {"Type": "host-gw"}}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[TestNode, TestNode]]:
    made: list[TestNode] = []
    try:
        made = [TestNode(tmp_path, 1), TestNode(tmp_path, 2)]
        connect(*made)
        yield made[0], made[1]
    finally:
        for node in made:
            node.remove()


def doctor(node: TestNode) -> list[dict[str, Any]]:
    command = ["ip", "netns", "exec", node.netns, sys.executable, "-m", "fabric.cli.main", "doctor", "--json",
               "--run-dir", str(node.run_dir)]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert shown.returncode in (0, 1), shown.stderr
    found: list[dict[str, Any]] = json.loads(shown.stdout)["findings"]
    return [finding for finding in found if finding["peer"]]


@pytest.mark.parametrize(
    ("backend", "rule", "name"),
    [("kernel", "udp dport 8472 drop", "tunnel_port_filtered"), ("routes", "ip saddr 192.0.2.1 drop", "unreachable")],
)
def test_faults(nodes: tuple[TestNode, TestNode], tmp_path: Path, backend: str, rule: str, name: str) -> None:
    (tmp_path / "net-conf.json").write_text(json.dumps({"Network": "10.244.0.0/16", "Backend": BACKENDS[backend]}))
    for node in nodes:
        node.start()
        subnet = node.env()["FLANNEL_SUBNET"].rsplit(".", 1)[0]
        subprocess.run(["ip", "-n", node.netns, "address", "add", f"{subnet}.0/32", "dev", "lo"], check=False,
                       capture_output=True)  # fmt: skip
    left, right = nodes
    wait_for(lambda: len(left.peers()) == 1 and len(right.peers()) == 1, what="the peers")
    wait_for(lambda: doctor(left) == [], what="a healthy pair", seconds=20)
    subprocess.run(["ip", "netns", "exec", right.netns, "nft", f"{CHAIN} add rule inet fabtest c {rule}"], check=True)
    assert [finding["name"] for finding in doctor(left)] == [name]
