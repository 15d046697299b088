"""fabricd as a user of its own, with no capability but CAP_NET_ADMIN: two nodes, pods on ports, their traffic."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fabric.control_client import ControlClient, DaemonRefusedError
from tests.fabric.daemon.nodes import TestNode, connect, ip
from tests.scenarios import inside
from tests.scenarios.waiting import wait_for
from tests.unprivileged import UID, Reachable
from tun.device import create_in_netns

pytestmark = pytest.mark.root
NET_ADMIN = 1 << 12


class Pair(NamedTuple):
    left: TestNode
    right: TestNode
    directory: Path


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two nodes whose daemons run as an ordinary user with CAP_NET_ADMIN."""
    directory = Path(tempfile.mkdtemp(prefix="fabtest-user-", dir="/run"))
    nodes = []
    try:
        directory.chmod(0o755)
        reachable = Reachable(directory)
        for number in (81, 82):
            nodes.append(TestNode(directory, number))
            nodes[-1].python = reachable.command
        nodes[0].store.parent.mkdir()
        nodes[0].config.write_text('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')
        for path in (directory / "node81", directory / "node82", nodes[0].store.parent):
            os.chown(path, UID, UID)
        connect(*nodes)
        for node in nodes:
            node.start("--ip-masq", f"--node-name=node{node.number}")
        wait_for(lambda: all(node.peers() for node in nodes), "the nodes to know each other")
        yield Pair(*nodes, directory)
    finally:
        for node in nodes:
            node.remove()
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def pods(pair: Pair) -> Iterator[list[tuple[str, str]]]:
    """A pod on each node, name and address, made as the plugin makes them: root makes the device and passes its queue.
    """
    made = []
    try:
        for node in pair[:2]:
            name, address = f"fabtest-u{os.getpid()}-{node.number}", f"{node.address.rpartition('.')[0]}.9"
            ip("netns", "add", name)
            made.append((name, address))
            with create_in_netns(f"/run/netns/{name}", "eth0", mtu=1450, up=True) as device:
                device.persist(True)
                ip("-n", name, "address", "add", f"{address}/32", "dev", "eth0")
                ip("-n", name, "route", "add", "default", "dev", "eth0")
                with ControlClient(str(node.run_dir)) as client:
                    client.ask("port.add", port(name, address), device.fds)
        yield made
    finally:
        for name, _ in made:
            ip("netns", "delete", name)


def port(name: str, address: str) -> dict[str, object]:
    return {"name": name, "netns": f"/run/netns/{name}", "ifname": "eth0", "addresses": [f"{address}/32"]}


def test_no_other_capability_and_none_to_be_had(pair: Pair) -> None:
    for node in pair[:2]:
        text = Path(f"/proc/{node.ask('status')['pid']}/status").read_text()
        found = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        assert found["Uid"].split() == [str(UID)] * 4
        assert {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {NET_ADMIN}
        assert found["NoNewPrivs"] == "1"


def test_nothing_on_the_host_is_refused(pair: Pair) -> None:
    """Devices, addresses, routes, settings and firewall rules are all there."""
    for node in pair[:2]:
        status = node.ask("status")
        assert status["kernel"]["problems"] == []
        assert [line for line in status["firewall"]["problems"] if "ip_forward" not in line] == []
        names = ("ipv4/conf/flannel.1/accept_local", "ipv6/conf/flannel.1/accept_ra")
        values = [inside.call(node.netns, Path(f"/proc/sys/net/{name}").read_text).strip() for name in names]
        assert values == ["1", "0"]
        rules = inside_nft(node)
        assert "masquerade" in rules
        assert not [line for line in node.messages() if "ermission denied" in line or "not permitted" in line]


def inside_nft(node: TestNode) -> str:
    command = ["ip", "netns", "exec", node.netns, "nft", "list", "ruleset"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_pods_reach_each_other(pair: Pair, pods: list[tuple[str, str]]) -> None:
    (one, _), (other, address) = pods
    with inside.listen(other, address) as listener:
        client = inside.connect(one, address, listener.getsockname()[1])
        server, _ = listener.accept()
        with client, server:
            for _ in range(16):
                client.sendall(bytes(1 << 16))
                received = 0
                while received < 1 << 16:
                    received += len(server.recv(1 << 16))
    assert pair.left.ask("counters")["egress_bytes"] > 1 << 20


def test_what_cannot_be_done_is_refused_with_the_way_out(pair: Pair, pods: list[tuple[str, str]]) -> None:
    """Without a queue the daemon would have to enter the pod's namespace."""
    with ControlClient(str(pair.left.run_dir)) as client, pytest.raises(DaemonRefusedError, match="pass its queue"):
        client.ask("port.add", port(pods[0][0], "10.244.250.1") | {"name": "made", "ifname": "eth1"})
    assert inside.links(pods[0][0]) == {"lo", "eth0"}
    assert [item["ifname"] for item in json.loads(ip("-j", "-n", pair.left.netns, "link"))].count("flannel.1") == 1


def test_a_pod_of_the_plugin(pair: Pair) -> None:
    """The runtime's root runs the plugin, which makes the device; the daemon only takes its queue."""
    node, name = pair.left, f"fabtest-u{os.getpid()}-cni"
    conf = {"cniVersion": "1.0.0", "name": "cbr0", "type": "fabric-cni", "runDir": str(node.run_dir),
            "subnetFile": str(node.subnet_file), "dataDir": str(pair.directory / "cni")}  # fmt: skip
    ip("netns", "add", name)
    try:
        added = json.loads(plugin(node, "ADD", name, conf))
        address = added["ips"][0]["address"].partition("/")[0]
        assert node.pings(address)
        assert [item["problem"] for item in node.ask("endpoint.list") if name in item["netns"]] == [""]
        link = json.loads(ip("-j", "-n", name, "link", "show", "dev", "eth0"))[0]
        assert (link["mtu"], link["txqlen"]) == (1450, 1000)
        plugin(node, "DEL", name, conf)
        assert inside.links(name) == {"lo"}
    finally:
        ip("netns", "delete", name)


def plugin(node: TestNode, verb: str, netns: str, conf: dict[str, str]) -> str:
    names = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": f"/run/netns/{netns}", "CNI_IFNAME": "eth0",
             "CNI_PATH": "/nowhere"}  # fmt: skip
    command = ["ip", "netns", "exec", node.netns, sys.executable, "-m", "fabric.cni.main"]
    done = subprocess.run(command, input=json.dumps(conf), env={**os.environ, **names}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_only_its_user_and_root_may_ask(pair: Pair) -> None:
    os.chmod(pair.left.run_dir, 0o755)
    os.chmod(pair.left.run_dir / "fabricd.sock", 0o666)
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "print(s.recv(1000).decode())"
    )
    command = ["setpriv", "--reuid=61235", "--regid=61235", "--clear-groups", "/usr/bin/python3", "-c", code,
               str(pair.left.run_dir / "fabricd.sock")]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "permission denied" in answer
    assert not pair.left.ended()


def test_it_ends_and_takes_its_device_along(pair: Pair) -> None:
    assert pair.right.stop(signal.SIGTERM) == 0
    assert "flannel.1" not in pair.right.links()
