"""Pod ports over the life and death of the daemon, with the real one: what a pod notices of a restart."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fabric.control_client import ControlClient, DaemonRefusedError
from tests.fabric.daemon.nodes import TestNode, ip
from tests.scenarios import inside
from tests.scenarios.waiting import wait_for
from tun.device import create_in_netns

pytestmark = pytest.mark.root
_numbers = count(10)


class PodNamespace(NamedTuple):
    """A pod with one address of the node's subnet."""

    netns: str
    address: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.netns}"

    @property
    def params(self) -> dict[str, Any]:
        pod = {"namespace": "shop", "name": self.netns, "uid": "u-1", "container_id": "c1"}
        return {"name": self.netns, "netns": self.path, "ifname": "eth0", "addresses": [f"{self.address}/32"],
                "pod": pod, "labels": {"app": "web"}}  # fmt: skip

    def configure(self) -> None:
        """Addresses and routes, as the plugin makes them."""
        ip("-n", self.netns, "address", "add", f"{self.address}/32", "dev", "eth0")
        ip("-n", self.netns, "route", "add", "default", "dev", "eth0")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestNode]:
    """A node alone, with a cable to itself."""
    made = TestNode(tmp_path_factory.mktemp("pods"), 71)
    try:
        ip("-n", made.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        ip("-n", made.netns, "address", "add", "192.0.2.71/24", "dev", "eth0")
        for end in ("eth0", "far0"):
            ip("-n", made.netns, "link", "set", end, "up")
        made.config.write_text('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
def pods(node: TestNode) -> Iterator[tuple[PodNamespace, PodNamespace]]:
    """Two connected pods, which may be gone at the end."""
    subnet = node.address.rpartition(".")[0]
    numbers = [next(_numbers), next(_numbers)]
    one, other = (PodNamespace(f"fabtest-p{os.getpid()}-{number}", f"{subnet}.{number}") for number in numbers)
    try:
        for pod in (one, other):
            ip("netns", "add", pod.netns)
            ip("-n", pod.netns, "link", "set", "lo", "up")
            node.ask("port.add", **pod.params)
            pod.configure()
        yield one, other
    finally:
        if node.ended():
            node.start()
        for name in names(node):
            node.ask("port.delete", name=name)
        for pod in (one, other):
            subprocess.run(["ip", "netns", "delete", pod.netns], check=False, capture_output=True)


def names(node: TestNode) -> list[str]:
    return [item["name"] for item in node.ask("port.list")]


def connected(one: PodNamespace, other: PodNamespace) -> tuple[socket.socket, socket.socket]:
    with inside.listen(other.netns, other.address) as listener:
        client = inside.connect(one.netns, other.address, listener.getsockname()[1])
        server, _ = listener.accept()
    client.settimeout(15)
    server.settimeout(15)
    return client, server


def exchange(client: socket.socket, server: socket.socket, text: bytes) -> None:
    client.sendall(text)
    assert server.recv(100) == text
    server.sendall(text)
    assert client.recv(100) == text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_connection_between_pods_outlives_the_daemon(
    node: TestNode, pods: tuple[PodNamespace, PodNamespace], number: signal.Signals
) -> None:
    one, other = pods
    client, server = connected(one, other)
    with client, server:
        exchange(client, server, b"before")
        before = inside.ip_json(one.netns, "addr", "show", "dev", "eth0")
        node.stop(number)
        client.sendall(b"meanwhile")
        node.start()
        assert server.recv(100) == b"meanwhile"
        exchange(client, server, b"after")
    after = inside.ip_json(one.netns, "addr", "show", "dev", "eth0")
    assert (before[0]["ifindex"], before[0]["addr_info"]) == (after[0]["ifindex"], after[0]["addr_info"])
    assert names(node) == sorted(pod.netns for pod in pods)
    found = node.ask("port.list")[0]
    assert found["traffic"] == node.ask("port.counters")[found["name"]]
    assert min(found["traffic"][f"{what}_{way}"] for what in ("frames", "bytes") for way in ("from", "to")) > 0
    assert (found["pod"]["namespace"], found["labels"], found["problem"]) == ("shop", {"app": "web"}, "")
    assert node.pings(one.address), "the host's route to the pod is there again"


def test_pods_that_went_meanwhile_are_dropped_and_the_others_work(
    node: TestNode, pods: tuple[PodNamespace, PodNamespace]
) -> None:
    """One's namespace is gone, another one of the same name is there; the other pod's device was deleted."""
    one, other = pods
    node.stop(signal.SIGKILL)
    ip("netns", "delete", one.netns)
    ip("netns", "add", one.netns)
    ip("-n", other.netns, "link", "delete", "eth0")
    node.start()
    assert names(node) == []
    for pod in pods:
        assert sum(pod.netns in line and "is dropped" in line for line in node.messages()) == 1
        assert inside.links(pod.netns) <= {"lo"}, "nothing was made in a namespace that is not the pod's"
        node.ask("port.add", **pod.params)
    assert names(node) == sorted(pod.netns for pod in pods)


def test_a_pod_that_goes_without_a_word_is_let_go(node: TestNode, pods: tuple[PodNamespace, PodNamespace]) -> None:
    """Also after a restart, when our descriptor keeps the namespace alive."""
    node.stop(signal.SIGKILL)
    node.start()
    ip("netns", "delete", pods[0].netns)
    wait_for(lambda: names(node) == [pods[1].netns], "the port to be let go")
    node.ask("port.delete", name=pods[1].netns)
    wait_for(lambda: "eth0" not in inside.links(pods[1].netns), "the device to vanish")


def test_a_passed_queue_becomes_the_port(node: TestNode, pods: tuple[PodNamespace, PodNamespace]) -> None:
    """And the queue of another device, or of none, does not; no descriptor stays behind."""
    one, other = pods
    node.ask("port.delete", name=one.netns)
    wait_for(lambda: "eth0" not in inside.links(one.netns), "the device to vanish")
    assert node.process is not None
    mine = Path(f"/proc/{daemon_pid(node)}/fd")
    before = len(os.listdir(mine))
    with ControlClient(str(node.run_dir)) as client:
        with open("/dev/null") as nothing, pytest.raises(DaemonRefusedError, match="no TUN/TAP fd"):
            client.ask("port.add", one.params, [nothing.fileno()])
        with create_in_netns(one.path, "eth7") as wrong, pytest.raises(DaemonRefusedError, match="not of eth0"):
            client.ask("port.add", one.params, wrong.fds)
        with create_in_netns(one.path, "eth0") as device:
            device.persist(True)
            client.ask("status", {}, device.fds)
            made = client.ask("port.add", one.params, device.fds)
    assert made["addresses"] == [one.address]
    one.configure()
    with inside.open_udp(one.netns, one.address) as sink, inside.open_udp(other.netns, other.address) as out:
        out.sendto(b"hello", sink.getsockname())
        assert sink.recv(100) == b"hello"
    wait_for(lambda: len(os.listdir(mine)) == before + 1, "all but the queue to be closed")


def daemon_pid(node: TestNode) -> int:
    return int(node.ask("status")["pid"])


def test_pods_of_the_kernel_are_known_too(node: TestNode, pods: tuple[PodNamespace, PodNamespace]) -> None:
    note = {**pods[0].params, "name": "bridged", "kind": "bridge"}
    node.ask("endpoint.add", **note)
    assert [item["name"] for item in node.ask("endpoint.list")] == sorted(["bridged", *(pod.netns for pod in pods)])
    assert node.ask("counters")["pods_of_the_kernel"] == 1
    node.stop(signal.SIGKILL)
    saved = json.loads((node.directory / "state" / "pods.json").read_text())
    assert "bridged" in [item["name"] for item in saved["pods"]]
    node.start()
    assert "bridged" in [item["name"] for item in node.ask("endpoint.list")]
    node.ask("endpoint.delete", name="bridged")
    assert node.ask("counters")["pods_of_the_kernel"] == 0
