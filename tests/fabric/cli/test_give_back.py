"""`fabricctl adopt --back`: a node goes from fabricd to a kernel device of flannel's make, and comes back."""

from __future__ import annotations

import itertools
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fabric.daemon.nodes import TestNode, ip, wait_for
from tests.fabric.daemon.test_two_nodes import nodes as nodes

pytestmark = pytest.mark.root
PING_SECONDS = 0.02
GAP_SECONDS = 5.0
"""No packet loss lasts longer, program starts on a busy machine included."""


def back(node: TestNode, *words: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    given = (f"--state-dir={node.directory / 'state'}", f"--run-dir={node.run_dir}",
             f"--net-config-path={node.config}", "--iface=eth0", *flags)  # fmt: skip
    command = ["ip", "netns", "exec", node.netns, sys.executable, "-m", "fabric.cli.main", "adopt", "--back", *words]
    return subprocess.run([*command, "--", *given], capture_output=True, text=True, check=False)


def leases(node: TestNode) -> dict[str, tuple[bytes, int]]:
    """Value and age of every lease in the store."""
    tool = sqlite3.connect(node.store)
    try:
        found = tool.execute("SELECT key, value, created FROM entries")
        return {key: (value, created) for key, value, created in found}
    finally:
        tool.close()


def device(node: TestNode, name: str = "flannel.1") -> dict[str, object]:
    (found,) = json.loads(ip("-j", "-d", "-n", node.netns, "link", "show", name))
    info = found.get("linkinfo", {})
    return {"kind": info.get("info_kind"), "mac": found.get("address"), "data": info.get("info_data", {}),
            "mtu": found["mtu"]}  # fmt: skip


def join(left: TestNode, right: TestNode) -> str:
    """Both nodes forwarding, a pod's address on the left one: that address."""
    for node in (left, right):
        subprocess.run(["ip", "netns", "exec", node.netns, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
        node.start()
    pod = left.address.removesuffix(".0") + ".5"
    ip("-n", left.netns, "address", "add", f"{pod}/32", "dev", "lo")
    wait_for(lambda: right.pings(pod), what="the pod")
    wait_for(lambda: state_knows(left, 1), what="the state file")
    return pod


def state_knows(node: TestNode, peers: int) -> bool:
    file = node.directory / "state" / "leases.json"
    return file.exists() and len(json.loads(file.read_text())["peers"]) == peers


@contextmanager
def traffic(node: TestNode, address: str) -> Iterator[list[int]]:
    """A ping every 20 ms; at the end the numbers of those that were answered."""
    answered: list[int] = []
    command = ["ip", "netns", "exec", node.netns, "ping", "-n", "-i", str(PING_SECONDS), "-W", "1", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield answered
        finally:
            process.send_signal(2)
            out, _ = process.communicate()
            answered += [int(number) for number in re.findall(r"icmp_seq=(\d+)", out)]


def test_over_and_back_under_traffic(nodes: tuple[TestNode, TestNode]) -> None:
    left, right = nodes
    pod = join(left, right)
    before, env = leases(left), left.env()
    mac = next(item["macs"][0] for item in left.ask("leases") if item["own"])
    with traffic(right, pod) as answered:
        for _ in range(2):
            left.stop()
            links = left.links()
            shown = back(left, "--dry-run")
            assert (shown.returncode, shown.stderr) == (0, "")
            line = f"flannel.1: to be made with VNI 1, UDP port 8472, MAC {mac}, local 192.0.2.1 dev eth0, MTU 1450"
            assert line in shown.stdout
            assert left.links() == links
            made = back(left)
            assert made.returncode == 0, made.stderr
            found = device(left)
            assert (found["kind"], found["mac"], found["mtu"]) == ("vxlan", mac, 1450)
            data = found["data"]
            assert isinstance(data, dict)
            assert (data["id"], data["port"], data["local"], data["learning"]) == (1, 8472, "192.0.2.1", False)
            wait_for(lambda: right.pings(pod), what="the pod behind the kernel's device")
            again = back(left)
            assert again.returncode == 0, again.stderr
            assert device(left) == found
            left.start()
            assert device(left)["kind"] == "tun"
            wait_for(lambda: right.pings(pod), what="the pod behind fabricd")
            assert next(item["macs"][0] for item in left.ask("leases") if item["own"]) == mac
    assert leases(left) == before
    assert left.env() == env
    assert not right.ended()
    gaps = [later - earlier for earlier, later in itertools.pairwise(answered)]
    assert max(gaps) * PING_SECONDS < GAP_SECONDS


def test_what_flanneld_needs_is_what_it_finds(nodes: tuple[TestNode, TestNode], tmp_path: Path) -> None:
    """Dual stack: both devices, and routes, neighbours and entries in flannel's shape."""
    (tmp_path / "net-conf.json").write_text(json.dumps({
        "Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10::/56", "Backend": {"Type": "vxlan"},
    }))  # fmt: skip
    left, right = nodes
    join(left, right)
    four, six = right.ask("status")["subnets"]
    macs = next(item["macs"] for item in right.ask("leases") if item["own"])
    left.stop()
    shown = json.loads(back(left, "--dry-run", "--json").stdout)
    assert [item["name"] for item in shown["devices"]] == ["flannel.1", "flannel-v6.1"]
    assert [item["routes"] for item in shown["devices"]] == [[four], [six]]
    done = back(left)
    assert done.returncode == 0, done.stderr
    for name, subnet, public, mac in (
        ("flannel.1", four, "192.0.2.2", macs[0]), ("flannel-v6.1", six, "2001:db8::2", macs[1])
    ):  # fmt: skip
        gateway = subnet.split("/")[0]
        family = "-6" if ":" in subnet else "-4"
        (route,) = json.loads(ip(family, "-j", "-n", left.netns, "route", "show", subnet))
        assert (route["gateway"], route["dev"], route["flags"]) == (gateway, name, ["onlink"])
        neighbours = json.loads(ip("-j", "-n", left.netns, "neigh", "show", "dev", name, "nud", "permanent"))
        assert [(item["dst"], item["lladdr"]) for item in neighbours] == [(gateway, mac)]
        bridge = ["bridge", "-j", "-n", left.netns, "fdb", "show", "dev", name]
        entries = json.loads(subprocess.run(bridge, check=True, capture_output=True, text=True).stdout)
        assert [(item["mac"], item["dst"]) for item in entries] == [(mac, public)]
        wait_for(lambda gateway=gateway: left.pings(gateway), what=f"{gateway} by {name}")


def test_a_running_fabricd_is_left_alone(nodes: tuple[TestNode, TestNode]) -> None:
    left, _ = nodes
    left.start()
    links = left.links()
    refused = back(left)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"fabricctl: fabricd runs ({left.run_dir}): stop it first, and whatever would start it again; "
        "nothing was changed\n"
    )
    assert left.links() == links
    assert device(left)["kind"] == "tun"


def test_once_flanneld_runs_our_firewall_rules_go(nodes: tuple[TestNode, TestNode], tmp_path: Path) -> None:
    left, _ = nodes
    left.start("--ip-masq")
    left.stop()
    assert "podfabric" in tables(left)
    first = back(left)
    assert "stays until flanneld runs" in first.stdout
    assert "podfabric" in tables(left)
    program = tmp_path / "flanneld"
    program.symlink_to(sys.executable)
    code = "import sys; print(1, flush=True); sys.stdin.read()"
    command = ["ip", "netns", "exec", left.netns, str(program), "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        done = back(left)
        process.communicate()
    assert done.returncode == 0, done.stderr
    assert "podfabric" not in tables(left)
    assert device(left)["kind"] == "vxlan"


def tables(node: TestNode) -> str:
    command = ["ip", "netns", "exec", node.netns, "nft", "list", "tables"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("kind", ["udp", "host-gw"])
def test_other_types_need_nothing(nodes: tuple[TestNode, TestNode], tmp_path: Path, kind: str) -> None:
    (tmp_path / "net-conf.json").write_text(json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": kind}}))
    left, _ = nodes
    left.start()
    left.stop()
    done = back(left)
    assert done.returncode == 0, done.stderr
    assert f'nothing has to be made for backend "{kind}": start flanneld' in done.stdout
    assert sorted(left.links()) == ["eth0", "lo"]


def test_a_node_that_remembers_nothing_is_refused(nodes: tuple[TestNode, TestNode]) -> None:
    left, _ = nodes
    refused = back(left)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"fabricctl: {left.directory / 'state'}/leases.json remembers no lease of this node: "
        "give fabricd's own --state-dir\n"
    )
    assert sorted(left.links()) == ["eth0", "lo"]
