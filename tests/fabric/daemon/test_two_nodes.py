"""Two real daemons in namespaces: joining, forwarding, restarts, store faults, repairs."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fabric.daemon.nodes import TestNode, connect, ip, wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
DUAL = '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/56","Backend":{"Type":"vxlan"}}'


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[TestNode, TestNode]]:
    made: list[TestNode] = []
    try:
        made = [TestNode(tmp_path, 1)]
        made.append(TestNode(tmp_path, 2))
        connect(*made)
        yield made[0], made[1]
    finally:
        for node in made:
            node.remove()


def join(*nodes: TestNode) -> None:
    for node in nodes:
        node.start()
    for node in nodes:
        wait_for(lambda node=node: len(node.peers()) == len(nodes) - 1, what="the peers")


def test_they_find_each_other_and_forward(nodes: tuple[TestNode, TestNode]) -> None:
    join(*nodes)
    left, right = nodes
    assert left.pings(right.address, 5)
    assert right.pings(left.address, 5)
    assert left.routes() == [str(right.ask("status")["subnets"][0])]
    env = left.env()
    assert (env["FLANNEL_NETWORK"], env["FLANNEL_MTU"]) == ("10.244.0.0/16", "1450")
    ready = [line for line in left.messages() if line.startswith("ready after")]
    assert len(ready) == 1
    assert left.stop() == 0
    assert right.stop(signal.SIGINT) == 0
    for node in nodes:
        assert node.links() == ["lo", "eth0"] or sorted(node.links()) == ["eth0", "lo"]
        assert node.routes() == []
        assert not node.run_dir.exists()


def test_dual_stack(nodes: tuple[TestNode, TestNode], tmp_path: Path) -> None:
    (tmp_path / "net-conf.json").write_text(DUAL)
    join(*nodes)
    left, right = nodes
    for subnet in right.ask("status")["subnets"]:
        assert left.pings(subnet.split("/")[0], 3)
    assert left.env()["FLANNEL_MTU"] == "1430"


def test_udp_backend(nodes: tuple[TestNode, TestNode], tmp_path: Path) -> None:
    (tmp_path / "net-conf.json").write_text('{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}')
    join(*nodes)
    left, right = nodes
    assert left.pings(right.address, 3)
    assert left.env()["FLANNEL_MTU"] == "1472"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_subnet_and_mac(nodes: tuple[TestNode, TestNode], number: int) -> None:
    join(*nodes)
    left, right = nodes
    before = right.ask("peers")
    left.stop(number)
    left.start()
    wait_for(lambda: left.pings(right.address), what="forwarding after the restart")
    fixed = [{key: item[key] for key in ("key", "macs", "public", "state")} for item in right.ask("peers")]
    assert fixed == [{key: item[key] for key in ("key", "macs", "public", "state")} for item in before]


def test_a_removed_lease_withdraws_the_peer(nodes: tuple[TestNode, TestNode]) -> None:
    join(*nodes)
    left, right = nodes
    right.stop()
    tool = sqlite3.connect(left.store, isolation_level=None)
    tool.execute("BEGIN IMMEDIATE")
    tool.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision'")
    tool.execute("DELETE FROM entries WHERE CAST(value AS TEXT) LIKE '%192.0.2.2\"%'")
    tool.execute("COMMIT")
    tool.close()
    wait_for(lambda: left.peers() == [] and left.routes() == [], what="the withdrawal")


def test_store_faults_do_not_touch_forwarding(nodes: tuple[TestNode, TestNode]) -> None:
    join(*nodes)
    left, right = nodes
    address = right.address
    locker = sqlite3.connect(left.store, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    assert left.pings(address, 5)
    locker.execute("ROLLBACK")
    locker.close()

    def available() -> bool:
        return all(node.ask("status")["store"]["available"] for node in nodes)

    for fault in (delete, spoil):
        fault(left.store)
        wait_for(lambda: not left.ask("status")["store"]["available"], what=f"noticing {fault.__name__}")
        assert left.pings(address, 5)
        if fault is spoil:
            delete(left.store)
        wait_for(available, what=f"recovery from {fault.__name__}")
        wait_for(lambda: all(item["state"] == "used" for node in nodes for item in node.ask("peers")))
        assert (left.pings(address, 5), right.address) == (True, address)
    assert all(not node.ended() for node in nodes)


def delete(store: Path) -> None:
    for file in list(store.parent.iterdir()):
        file.unlink(missing_ok=True)


def spoil(store: Path) -> None:
    delete(store)
    store.write_bytes(os.urandom(8192))


def test_a_daemon_starts_while_the_store_is_locked(nodes: tuple[TestNode, TestNode]) -> None:
    join(*nodes)
    left, right = nodes
    address = right.address
    left.stop()
    locker = sqlite3.connect(left.store, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    left.start()
    assert left.pings(address, 3)
    assert any("starting with the lease and the peers of the last run" in line for line in left.messages())
    locker.execute("ROLLBACK")
    locker.close()
    wait_for(lambda: left.ask("status")["store"]["available"], what="recovery")


def test_a_deleted_device_comes_back(nodes: tuple[TestNode, TestNode]) -> None:
    join(*nodes)
    left, right = nodes
    address = right.address
    ip("-n", left.netns, "link", "delete", "flannel.1")
    wait_for(lambda: left.pings(address), what="forwarding again")


def test_pod_ports(nodes: tuple[TestNode, TestNode]) -> None:
    join(*nodes)
    left, right = nodes
    pod = f"fabtest-{os.getpid()}-pod"
    ip("netns", "add", pod)
    try:
        subnet = str(left.ask("status")["subnets"][0])
        address = subnet.replace(".0/24", ".5")
        where = {"netns": f"/run/netns/{pod}", "ifname": "eth0"}
        left.ask("port.add", name="pod", **where, addresses=[f"{address}/24"], mtu=None)
        ip("-n", pod, "address", "add", f"{address}/32", "dev", "eth0")
        ip("-n", pod, "link", "set", "eth0", "up")
        ip("-n", pod, "route", "add", "default", "dev", "eth0")
        wait_for(lambda: right.pings(address), what="ping from the other node to the pod")
        left.ask("port.delete", name="pod")
        wait_for(lambda: not right.pings(address), what="the port's end")
    finally:
        ip("netns", "delete", pod)


def refused(node: TestNode, *words: str) -> str:
    """The one line with which the daemon refuses to start."""
    node.launch(*words)
    assert node.process is not None
    assert node.process.wait(20) == 1
    assert not node.run_dir.exists()
    assert "flannel.1" not in node.links()
    message: str = node.messages()[-1]
    return message


def test_a_held_port_is_named_with_its_holder(nodes: tuple[TestNode, TestNode]) -> None:
    node = nodes[0]
    code = "import socket,sys,time;s=socket.socket(2,2);s.bind(('0.0.0.0',8472));print(1,flush=True);time.sleep(60)"
    holder = subprocess.Popen(
        ["ip", "netns", "exec", node.netns, sys.executable, "-c", code], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        line = refused(node)
        assert "8472" in line
        assert str(holder.pid) in line
    finally:
        holder.kill()
        holder.communicate()
    assert not node.store.exists()


def test_a_second_daemon_in_one_run_directory_is_refused(nodes: tuple[TestNode, TestNode]) -> None:
    left, right = nodes
    left.start()
    assert left.process is not None
    words = ("--run-dir", str(left.run_dir))
    right.launch(*words)
    assert right.process is not None
    assert right.process.wait(20) == 1
    assert f"another fabricd (pid {left.process.pid}) runs with --run-dir" in right.messages()[-1]
    assert left.ask("status")["ready"]


def test_a_full_network_and_a_broken_store(nodes: tuple[TestNode, TestNode], tmp_path: Path) -> None:
    left, right = nodes
    (tmp_path / "net-conf.json").write_text(
        '{"Network":"10.244.0.0/24","SubnetLen":26,"SubnetMax":"10.244.0.64","Backend":{"Type":"vxlan"}}'
    )
    left.start()
    assert "out of subnets: every /26 of 10.244.0.0/24 is leased" in refused(right)
    assert left.stop() == 0
    spoil(left.store)
    assert "fabric.db is broken (file is not a database)" in refused(right)


def test_ready_is_told_to_the_service_manager(nodes: tuple[TestNode, TestNode], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        os.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        try:
            nodes[0].launch()
        finally:
            del os.environ["NOTIFY_SOCKET"]
        assert any(b"READY=1" in said for said in iter(lambda: manager.recv(100), b"STOPPING=1"))
        assert nodes[0].ready()
        nodes[0].stop()
        assert b"STOPPING=1" in iter(lambda: manager.recv(100), b"")


BACKENDS = {
    "host-gw": ({"Type": "host-gw"}, 1500, "host-gw"),
    "vxlan by the kernel": ({"Type": "vxlan", "Datapath": "kernel"}, 1450, "vxlan (kernel)"),
    "direct routing": ({"Type": "vxlan", "DirectRouting": True}, 1450, "direct route"),
    "both": ({"Type": "vxlan", "Datapath": "kernel", "DirectRouting": True}, 1450, "direct route"),
}


@pytest.mark.parametrize("case", BACKENDS)
def test_other_backends_forward_and_are_left_in_place_as_flannel_does(
    nodes: tuple[TestNode, TestNode], tmp_path: Path, case: str
) -> None:
    backend, mtu, way = BACKENDS[case]
    (tmp_path / "net-conf.json").write_text(json.dumps({"Network": "10.244.0.0/16", "Backend": backend}))
    join(*nodes)
    left, right = nodes
    # Pods of theirs, each behind the node itself.
    for node in nodes:
        ip("-n", node.netns, "address", "add", f"{node.address.removesuffix('.0')}.5/32", "dev", "lo")
    far = f"{right.address.removesuffix('.0')}.5"
    wait_for(lambda: left.pings(far), what="a pod of the other node")
    wait_for(lambda: [item["way"] for item in left.ask("peers")] == [way], what=way)
    assert left.env()["FLANNEL_MTU"] == str(mtu)
    assert left.stop() == 0
    assert left.routes() != []
    left.start()
    wait_for(lambda: left.pings(far), what="the same after a restart")


def test_alloc_takes_a_subnet_and_makes_nothing(nodes: tuple[TestNode, TestNode], tmp_path: Path) -> None:
    (tmp_path / "net-conf.json").write_text('{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}')
    node = nodes[0]
    node.start()
    assert node.env()["FLANNEL_MTU"] == "1500"
    assert sorted(node.links()) == ["eth0", "lo"]
    assert node.routes() == []
