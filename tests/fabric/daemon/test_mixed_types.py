"""Two nodes of different backend types in one cluster: real daemons, every pair, traffic both ways (ADR 14)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest

from tests.fabric.daemon.nodes import TestNode, ip, wait_for
from tests.fabric.daemon.test_two_nodes import nodes as nodes

pytestmark = pytest.mark.root

TYPES: dict[str, dict[str, object]] = {
    "vxlan": {"Type": "vxlan"},
    "vxlan, direct": {"Type": "vxlan", "DirectRouting": True},
    "vxlan, kernel": {"Type": "vxlan", "Datapath": "kernel"},
    "udp": {"Type": "udp"},
    "host-gw": {"Type": "host-gw"},
}
WAYS = {"udp": "udp", "host-gw": "host-gw"}


def way(own: str, peer: str) -> str:
    """How a node of the type `own` sends to one of the type `peer`: as that one's type says."""
    if peer in WAYS:
        return WAYS[peer]
    return {"vxlan, direct": "direct route", "vxlan, kernel": "vxlan (kernel)"}.get(own, "vxlan")


@pytest.fixture
def start(nodes: tuple[TestNode, TestNode], tmp_path: Path) -> Callable[..., None]:
    """Start each node with a backend of its own, and give it one pod's address."""

    def both(*kinds: str) -> None:
        for node, kind in zip(nodes, kinds, strict=True):
            node.config = tmp_path / f"net-conf-{node.number}.json"
            node.config.write_text(json.dumps({"Network": "10.244.0.0/16", "Backend": TYPES[kind]}))
            inside(node, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.default.rp_filter=1",
                   "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")  # fmt: skip
            node.start()
            ip("-n", node.netns, "address", "add", f"{pod(node)}/32", "dev", "lo")

    return both


def inside(node: TestNode, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", "netns", "exec", node.netns, *words], check=False, capture_output=True)


def pod(node: TestNode) -> str:
    return f"{node.address.removesuffix('.0')}.5"


def reaches(near: TestNode, far: TestNode) -> bool:
    """From pod to pod; the answer comes back by the way that our own type says."""
    words = ("ping", "-q", "-c", "3", "-i", "0.02", "-W", "1", "-I", pod(near), pod(far))
    return inside(near, *words).returncode == 0


def sees(node: TestNode, expected: str) -> None:
    """Until `node` sends to its only peer in this way."""
    wait_for(lambda: [item["way"] for item in node.ask("peers")] == [expected], what=expected)


@pytest.mark.parametrize(("one", "two"), list(combinations(TYPES, 2)))
def test_two_types_talk(nodes: tuple[TestNode, TestNode], start: Callable[..., None], one: str, two: str) -> None:
    start(one, two)
    left, right = nodes
    for near, far, own, peer in ((left, right, one, two), (right, left, two, one)):
        sees(near, way(own, peer))
        wait_for(partial(reaches, near, far), what=f"{own} to {peer}")
    drops = [
        {name: count for name, count in node.ask("counters").items() if name.startswith("drop_") and count}
        for node in nodes
    ]
    # What came before both knew each other may have been refused; nothing else may be.
    assert {name for found in drops for name in found} <= {"drop_unknown_vtep", "drop_no_route", "drop_not_unicast"}


def test_a_peer_that_changes_its_type_is_followed(
    nodes: tuple[TestNode, TestNode], start: Callable[..., None]
) -> None:
    start("vxlan", "vxlan")
    left, right = nodes
    wait_for(lambda: reaches(left, right), what="vxlan to vxlan")
    for kind in ("udp", "host-gw", "vxlan, kernel", "vxlan"):
        right.stop()
        inside(right, "ip", "link", "del", "flannel.1")  # what a kernel data path leaves behind
        right.config.write_text(json.dumps({"Network": "10.244.0.0/16", "Backend": TYPES[kind]}))
        right.start()
        sees(left, way("vxlan", kind))
        wait_for(lambda: reaches(left, right), what=f"vxlan to {kind}")
        wait_for(lambda: reaches(right, left), what=f"{kind} to vxlan")


def test_a_held_port_costs_the_peers_of_that_format_only(
    nodes: tuple[TestNode, TestNode], start: Callable[..., None]
) -> None:
    left, right = nodes
    with subprocess.Popen(
        ["ip", "netns", "exec", left.netns, "python3", "-c",
         "import socket,time; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 8285));"
         "print(flush=True); time.sleep(600)"], stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            start("vxlan", "udp")
            wait_for(lambda: left.ask("peers")[0]["reason"], what="a reason")
            assert left.ask("peers")[0]["reason"].startswith(
                "the udp format is not available: cannot bind UDP 192.0.2.1 port 8285: held by process"
            )
        finally:
            holder.terminate()
    wait_for(lambda: reaches(left, right), seconds=30, what="the udp peer, once the port is free")


def test_the_extension_backend_can_be_a_host_gw_of_commands(nodes: tuple[TestNode, TestNode], tmp_path: Path) -> None:
    """As in flannel's `Documentation/extension.md`: routes by `ip`; what one node printed is told to the other."""
    heard = tmp_path / "heard"
    hear = tmp_path / "hear"
    lines = ("#!/bin/sh", f'echo "$SUBNET $PUBLIC_IP $(cat)" >> {heard}', "ip route replace $SUBNET via $PUBLIC_IP", "")
    hear.write_text("\n".join(lines))
    hear.chmod(0o755)
    for node in nodes:
        backend = {
            "Type": "extension", "PreStartupCommand": f"echo $(touch {tmp_path}/never) key-of-{node.number}",
            "SubnetAddCommand": str(hear), "SubnetRemoveCommand": "ip route del $SUBNET via $PUBLIC_IP",
        }  # fmt: skip
        node.config = tmp_path / f"net-conf-{node.number}.json"
        node.config.write_text(json.dumps({"Network": "10.244.0.0/16", "Backend": backend}))
        inside(node, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        node.start()
        ip("-n", node.netns, "address", "add", f"{pod(node)}/32", "dev", "lo")
    left, right = nodes
    sees(left, "extension")
    wait_for(lambda: reaches(left, right), what="pods by the commands' routes")
    told = f"$(touch {tmp_path}/never) key-of"
    assert sorted(heard.read_text().splitlines()) == sorted(
        f"{far.ask('status')['subnets'][0]} 192.0.2.{far.number} {told}-{far.number}" for far in nodes
    )
    assert not (tmp_path / "never").exists()
    assert left.env()["FLANNEL_MTU"] == "1500"
    assert sorted(left.links()) == ["eth0", "lo"]
