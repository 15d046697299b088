"""`fabricctl doctor`: faults are planted one after another, and each is named; a healthy lab has none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fabric.lab import Lab, measure

pytestmark = [pytest.mark.root, pytest.mark.slow]
Findings = list[dict[str, Any]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=3, pods=1, kernel_peer=True, pod_kind="bridge") as made:
        yield made


def doctor(lab: Lab, peer: str = "") -> Findings:
    command = [
        "ip", "netns", "exec", lab.netns("node1"), sys.executable, "-m", "fabric.cli.main", "doctor", "--json",
        "--run-dir", str(lab.run_dir / "node1" / "run"), *(["--peer", peer] if peer else []),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert shown.returncode in (0, 1), shown.stderr
    found: Findings = json.loads(shown.stdout)["findings"]
    assert shown.returncode == (1 if found else 0)
    assert all(finding["fix"] for finding in found)
    return found


def address(lab: Lab, node: str) -> str:
    return str(lab.node(node).underlay_ip)


@contextmanager
def nft(lab: Lab, node: str, hook: str, rule: str) -> Iterator[None]:
    """A rule in a chain of its own at that hook."""
    chain = f"type filter hook {hook} priority -5; policy accept;"
    made = f"add table inet fabtest; add chain inet fabtest c {{ {chain} }}; add rule inet fabtest c {rule}"
    lab.exec(node, ["nft", made])
    try:
        yield
    finally:
        lab.exec(node, ["nft", "delete", "table", "inet", "fabtest"])


def names(found: Findings) -> list[tuple[str, str]]:
    return [(finding["name"], finding["peer"]) for finding in found]


def test_a_healthy_node(lab: Lab) -> None:
    assert doctor(lab) == []


@pytest.mark.parametrize(
    ("node", "hook", "rule", "words"),
    [
        ("node1", "input", "udp dport 8472 drop", "INPUT"),
        ("node1", "output", "udp dport 8472 drop", "OUTPUT"),
        ("node2", "input", "udp dport 8472 drop", "beside the tunnel"),
        ("node2", "input", "udp dport 8472 reject with icmpx type admin-prohibited", "firewall"),
    ],
)
def test_the_tunnel_port_is_filtered(lab: Lab, node: str, hook: str, rule: str, words: str) -> None:
    with nft(lab, node, hook, rule):
        (finding,) = doctor(lab, address(lab, "node2"))
    assert (finding["name"], finding["peer"]) == ("tunnel_port_filtered", address(lab, "node2"))
    assert words in finding["text"]


def test_a_black_hole_for_large_packets(lab: Lab) -> None:
    with nft(lab, "node2", "input", "udp dport 8472 meta length > 1300 drop"):
        (finding,) = doctor(lab, address(lab, "node2"))
    assert finding["name"] == "mtu_black_hole"
    size = int(finding["text"].split("more than ")[1].split()[0])
    assert 1240 <= size <= 1250  # 1300 less the tunnel's 50


def test_broken_checksums(lab: Lab) -> None:
    """node2's stack computes the outer checksum over a field that a rule has spoiled: offload that goes wrong."""
    lab.exec("node2", ["ethtool", "-K", "eth0", "tx", "off"])
    try:
        with nft(lab, "node2", "output", "udp dport 8472 udp checksum set 0xbeef"):
            (finding,) = doctor(lab, address(lab, "node2"))
    finally:
        lab.exec("node2", ["ethtool", "-K", "eth0", "tx", "on"])
    assert finding["name"] == "checksum_broken"
    assert "ethtool -K" in finding["fix"]


def test_the_daemon_of_the_peer_is_down(lab: Lab) -> None:
    lab.stop_daemon("node2")
    try:
        (finding,) = doctor(lab, address(lab, "node2"))
    finally:
        lab.start_daemon("node2")
    assert finding["name"] == "peer_daemon_down"
    measure.wait_reachable(lab)


def test_a_wrong_mac(lab: Lab) -> None:
    """The kernel node has an old MAC of ours."""
    kernel = lab.nodes[-1]
    ours = next(item for item in lab.control("node1", "leases") if item["own"])
    gateway = ours["subnets"][0].split("/")[0]
    device = lab.node_port
    lab.exec(kernel.name, ["bridge", "fdb", "append", "02:00:00:00:00:99", "dev", device, "dst", address(lab, "node1")])
    change = ["ip", "neigh", "replace", gateway, "lladdr", "{}", "dev", device, "nud", "permanent"]
    lab.exec(kernel.name, [word.format("02:00:00:00:00:99") for word in change])
    try:
        found = doctor(lab, address(lab, kernel.name))
    finally:
        lab.exec(kernel.name, [word.format(ours["macs"][0]) for word in change])
    assert names(found) == [("wrong_mac", address(lab, kernel.name))]


def test_a_stale_kernel_device(lab: Lab) -> None:
    subnet = lab.control("node1", "peers")[0]["subnets"][0].split("/")[0]
    lab.exec("node1", ["ip", "link", "add", "old.1", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "4789"])
    try:
        assert names(doctor(lab)) == [("stale_kernel_device", "")]
        lab.exec("node1", ["ip", "link", "set", "old.1", "up"])
        lab.exec("node1", ["ip", "route", "add", f"{subnet}/25", "dev", "old.1"])
        found = doctor(lab)
    finally:
        lab.exec("node1", ["ip", "link", "delete", "old.1"])
    assert [name for name, _ in names(found)] == ["stale_kernel_device"] * 2
    assert "ip route show dev old.1" in found[1]["fix"]


def test_no_forwarding(lab: Lab) -> None:
    switch = "echo {} > /proc/sys/net/ipv4/ip_forward"  # without procps
    lab.exec("node1", ["sh", "-c", switch.format(0)])
    try:
        found = doctor(lab)
    finally:
        lab.exec("node1", ["sh", "-c", switch.format(1)])
    assert names(found) == [("forwarding_off", "")]
    assert found[0]["fix"] == "sysctl -w net.ipv4.ip_forward=1"
