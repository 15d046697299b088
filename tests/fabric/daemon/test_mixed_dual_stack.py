"""Dual stack between types: a vxlan, a host-gw and a udp node side by side in one store, every pair, both families.

flannel's udp format carries IPv4 only, so its node has no IPv6 subnet; the others have, and reach each other by both.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest

from tests.fabric.daemon.nodes import TestNode, ip, wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

IPV4 = {"Network": "10.244.0.0/16"}
DUAL = {**IPV4, "EnableIPv6": True, "IPv6Network": "fd00:10::/56"}
TYPES: dict[str, dict[str, object]] = {
    "vxlan": {**DUAL, "Backend": {"Type": "vxlan"}},
    "kernel": {**DUAL, "Backend": {"Type": "vxlan", "Datapath": "kernel"}},
    "direct": {**DUAL, "Backend": {"Type": "vxlan", "DirectRouting": True}},
    "host-gw": {**DUAL, "Backend": {"Type": "host-gw"}},
    "udp": {**IPV4, "Backend": {"Type": "udp"}},
}
FORWARDING = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0",
              "net.ipv4.conf.default.rp_filter=1", "net.ipv4.conf.eth0.rp_filter=0")  # fmt: skip


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[str]:
    """A namespace with a bridge that is the underlay."""
    name = f"fabtest-{os.getpid()}-switch"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "add", "br0", "up", "type", "bridge")
        yield name
    finally:
        ip("netns", "delete", name)


@pytest.fixture
def three(tmp_path: Path, switch: str) -> Iterator[list[TestNode]]:
    made: list[TestNode] = []
    try:
        for number in (1, 2, 3):
            node = TestNode(tmp_path, number)
            made.append(node)
            port = f"port{number}"
            ip("-n", node.netns, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            ip("-n", switch, "link", "set", port, "master", "br0", "up")
            ip("-n", node.netns, "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            ip("-n", node.netns, "address", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
            ip("-n", node.netns, "link", "set", "eth0", "up")
        yield made
    finally:
        for node in made:
            node.remove()


def start(node: TestNode, directory: Path, kind: str) -> None:
    """The node with a backend of its own, and one pod's addresses on it."""
    node.config = directory / f"net-conf-{node.number}.json"
    node.config.write_text(json.dumps(TYPES[kind]))
    subprocess.run(["ip", "netns", "exec", node.netns, "sysctl", "-qw", *FORWARDING], check=True)
    node.start()
    for address in pods(node):
        ip("-n", node.netns, "address", "add", address, "dev", "lo")


def pods(node: TestNode) -> list[str]:
    """A pod's addresses on the node, by family."""
    return [subnet.split("/")[0].removesuffix("0" if "." in subnet else "") + "5" for subnet in
            node.ask("status")["subnets"]]  # fmt: skip


def reaches(near: TestNode, far: TestNode, family: int) -> bool:
    source, target = pods(near)[family], pods(far)[family]
    words = ("ping", "-q", "-c", "3", "-i", "0.02", "-W", "1", "-I", source, target)
    return subprocess.run(["ip", "netns", "exec", near.netns, *words], check=False, capture_output=True).returncode == 0


def ways(node: TestNode) -> dict[str, str]:
    """How the node sends to each peer, by the peer's public IPv4 address."""
    return {item["public"][0]: item["way"] for item in node.ask("peers")}


def way(own: str, peer: str) -> str:
    """By the type of the peer; VXLAN in the manner of our own configuration."""
    if peer in ("udp", "host-gw"):
        return peer
    return {"kernel": "vxlan (kernel)", "direct": "direct route"}.get(own, "vxlan")


@pytest.mark.parametrize("first", ["vxlan", "kernel", "direct"])
def test_every_pair_talks_in_every_family_that_both_have(three: list[TestNode], tmp_path: Path, first: str) -> None:
    kinds = [first, "host-gw", "udp"]
    for node, kind in zip(three, kinds, strict=True):
        start(node, tmp_path, kind)
    for node, kind in zip(three, kinds, strict=True):
        others = [(far, other) for far, other in zip(three, kinds, strict=True) if far is not node]
        expected = {f"192.0.2.{far.number}": way(kind, other) for far, other in others}
        wait_for(lambda node=node, expected=expected: ways(node) == expected, what=f"{kind}: {expected}")
    for (near, own), (far, peer) in permutations(zip(three, kinds, strict=True), 2):
        families = min(len(pods(near)), len(pods(far)))
        assert families == (1 if "udp" in (own, peer) else 2)
        for family in range(families):
            wait_for(partial(reaches, near, far, family), what=f"{own} to {peer}, {pods(far)[family]}")
    dual = [node.ask("status")["subnets"][1] for node in three[:2]]
    for node, other in zip(three[:2], reversed(dual), strict=True):
        assert six(node) == {other}
    assert six(three[2]) == set()


def test_a_node_that_loses_and_gains_a_family_is_followed(three: list[TestNode], tmp_path: Path) -> None:
    """From dual stack with vxlan to udp and to host-gw: what its peers hold for it follows, in both families."""
    left, right, bystander = three
    start(left, tmp_path, "vxlan")
    start(bystander, tmp_path, "host-gw")
    for kind in ("vxlan", "udp", "host-gw"):
        start(right, tmp_path, kind)
        wait_for(lambda kind=kind: ways(left).get("192.0.2.2") == way("vxlan", kind), what=kind)
        for family in range(len(pods(right))):
            wait_for(partial(reaches, left, right, family), what=f"vxlan to {kind}, family {family}")
            wait_for(partial(reaches, right, left, family), what=f"{kind} to vxlan, family {family}")
        for family in (0, 1):
            assert reaches(left, bystander, family)
        expected = {item for item in right.ask("status")["subnets"] + bystander.ask("status")["subnets"] if ":" in item}
        wait_for(lambda expected=expected: six(left) == expected, what=f"IPv6 routes {expected}")
        right.stop()
        ip("-n", right.netns, "address", "flush", "dev", "lo", "scope", "global")


def six(node: TestNode) -> set[str]:
    """Its IPv6 routes to peers."""
    found = json.loads(ip("-6", "-j", "-n", node.netns, "route", "show", "proto", "112"))
    return {item["dst"] for item in found if item.get("type") != "unreachable"}
