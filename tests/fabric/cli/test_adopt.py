"""`fabricctl adopt` on a namespace that flanneld left: what it shows, what it removes, what it leaves alone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

NFT = """
add table ip flannel-ipv4
add chain ip flannel-ipv4 postrtg { type nat hook postrouting priority 100; }
add rule ip flannel-ipv4 postrtg ip saddr 10.244.0.0/16 masquerade
add table inet theirs
add chain inet theirs keep
add rule inet theirs keep ip saddr 192.0.2.7 drop
"""
ENV = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"


class Host:
    """A network namespace with eth0."""

    def __init__(self, netns: str, directory: Path) -> None:
        self.netns = netns
        self.subnet_file = directory / "subnet.env"

    def ip(self, *words: str) -> str:
        return subprocess.run(["ip", "-n", self.netns, *words], check=True, capture_output=True, text=True).stdout

    def links(self) -> set[str]:
        return {item["ifname"] for item in json.loads(self.ip("-j", "link"))}

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = ["ip", "netns", "exec", self.netns, *words]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    def adopt(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "fabric.cli.main", "adopt", f"--subnet-file={self.subnet_file}"]
        return self.run(*program, *words)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(f"fabtest-adopt-{os.getpid()}", tmp_path)
    subprocess.run(["ip", "netns", "add", made.netns], check=True)
    try:
        made.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        made.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
        made.ip("link", "set", "eth0", "up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", made.netns], check=True)


@pytest.fixture
def flannel_node(host: Host) -> Host:
    """Laid out as flannel's vxlan backend and its nftables mode leave it, beside somebody else's objects."""
    words = "type vxlan id {} dev eth0 local 192.0.2.1 dstport {} nolearning"
    host.ip("link", "add", "flannel.1", "address", "12:c6:65:89:b4:e3", *words.format(1, 8472).split())
    host.ip("addr", "add", "10.244.1.0/32", "dev", "flannel.1")
    host.ip("link", "add", "vx7", *words.format(7, 4789).split())
    host.ip("link", "add", "cni0", "type", "bridge")
    assert host.run("nft", "-f", "-", stdin=NFT).returncode == 0
    host.subnet_file.write_text(ENV)
    return host


def test_a_dry_run_shows_everything_and_changes_nothing(flannel_node: Host) -> None:
    links, rules = flannel_node.links(), flannel_node.run("nft", "list", "ruleset").stdout
    shown = flannel_node.adopt("--dry-run")
    assert (shown.returncode, shown.stderr) == (0, "")
    for words in (
        "flanneld    does not run",
        "10.244.1.1/24, MTU 1450: kept",
        "flannel.1: VNI 1, UDP port 8472, addresses 10.244.1.0/32: to be removed; its MAC 12:c6:65:89:b4:e3 is kept",
        "nftables table ip flannel-ipv4: to be removed",
    ):
        assert words in shown.stdout
    for words in ("vx7", "cni0", "theirs"):
        assert words not in shown.stdout
    assert flannel_node.links() == links
    assert flannel_node.run("nft", "list", "ruleset").stdout == rules


def test_what_is_shown_is_removed_and_nothing_else(flannel_node: Host) -> None:
    links = flannel_node.links()
    done = flannel_node.adopt()
    assert done.returncode == 0, done.stderr
    assert "removed device flannel.1" in done.stdout
    assert flannel_node.links() == links - {"flannel.1"}
    assert flannel_node.run("nft", "list", "tables").stdout.splitlines() == ["table inet theirs"]
    assert flannel_node.subnet_file.read_text() == ENV
    again = flannel_node.adopt()
    assert (again.returncode, "nothing is in the way of fabricd" in again.stdout) == (0, True)


def test_json(flannel_node: Host) -> None:
    found = json.loads(flannel_node.adopt("--dry-run", "--json").stdout)
    assert found["running"] == []
    assert found["subnet_env"]["FLANNEL_SUBNET"] == "10.244.1.1/24"
    assert found["devices"] == [
        {"name": "flannel.1", "vni": 1, "port": 8472, "mac": "12:c6:65:89:b4:e3", "local": "192.0.2.1",
         "addresses": ["10.244.1.0/32"]},
    ]  # fmt: skip
    assert found["firewall"] == ["nftables table ip flannel-ipv4"]


def test_a_running_flanneld_refuses(flannel_node: Host, tmp_path: Path) -> None:
    program = tmp_path / "flanneld"
    program.symlink_to(sys.executable)
    command = ["ip", "netns", "exec", flannel_node.netns, str(program), "-c", "print(1, flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        refused = flannel_node.adopt()
        process.communicate()
    assert refused.returncode == 1
    assert refused.stderr == (
        f"fabricctl: flanneld (pid {process.pid}) runs: stop it first; nothing was changed\n"
    )
    assert "flannel.1" in flannel_node.links()


def test_an_empty_host(host: Host) -> None:
    shown = host.adopt("--dry-run")
    assert shown.returncode == 0
    assert "no subnet there" in shown.stdout
    assert "nothing is in the way of fabricd" in shown.stdout
