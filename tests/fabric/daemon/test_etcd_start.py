"""The real daemon with a real etcd in its namespace: from a missing configuration to readiness, seen over HTTP."""

import http.client
import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fabric.daemon.nodes import TestNode, connect, wait_for
from tests.fabric.store import etcd_server
from tun.netns import run_in_netns

pytestmark = [pytest.mark.root, pytest.mark.slow]
PREFIX = "/coreos.com/network"
CONF = '{"Network":"10.250.0.0/16","Backend":{"Type":"vxlan"}}'
PORT = 18081


@pytest.fixture
def node(tmp_path: Path) -> Iterator[TestNode]:
    made: list[TestNode] = []
    try:
        made = [TestNode(tmp_path, 1)]
        made.append(TestNode(tmp_path, 2))
        connect(*made)
        yield made[0]
    finally:
        for each in made:
            each.remove()


@pytest.fixture
def etcd(node: TestNode, tmp_path: Path) -> Iterator[etcd_server.EtcdServer]:
    with etcd_server.running(tmp_path / "etcd", netns=node.netns) as server:
        yield server


def launch(node: TestNode, etcd: etcd_server.EtcdServer) -> None:
    node.launch(f"--etcd-endpoints={etcd.url}", "--healthz-ip=127.0.0.1", f"--healthz-port={PORT}")


def ask(node: TestNode, path: str) -> tuple[int, str]:
    """Status and text over HTTP in the node's namespace; 0 while nobody listens."""

    def get() -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    with suppress(OSError):
        return run_in_netns(Path("/run/netns") / node.netns, get)
    return 0, ""


def test_waiting_for_the_configuration_then_ready(node: TestNode, etcd: etcd_server.EtcdServer) -> None:
    launch(node, etcd)
    wait_for(lambda: ask(node, "/healthz") == (200, "flanneld is running"), what="the health endpoint")
    assert ask(node, "/readyz") == (503, "flanneld is not ready yet")
    wait_for(lambda: any("no network configuration yet" in line for line in node.messages()), what="the line")
    etcd.ctl("put", f"{PREFIX}/config", CONF)
    wait_for(lambda: ask(node, "/readyz") == (200, "flanneld is ready"), what="readiness")
    assert sum("no network configuration" in line for line in node.messages()) == 1
    assert node.env()["FLANNEL_NETWORK"] == "10.250.0.0/16"
    status = node.ask("status")
    assert (status["store"]["kind"], status["health"]["endpoint"]) == ("etcd", f"127.0.0.1:{PORT}")
    lease = json.loads(etcd.ctl("get", "--prefix", f"{PREFIX}/subnets/", "--print-value-only"))
    assert (lease["PublicIP"], lease["BackendType"]) == ("192.0.2.1", "vxlan")
    assert node.stop() == 0


def test_a_stop_while_it_waits(node: TestNode, etcd: etcd_server.EtcdServer) -> None:
    launch(node, etcd)
    wait_for(lambda: ask(node, "/readyz")[0] == 503, what="the health endpoint")
    assert node.stop(signal.SIGTERM) == 0
    assert "flannel.1" not in node.links()


def test_a_start_without_etcd_takes_the_configuration_of_the_last_run(
    node: TestNode, etcd: etcd_server.EtcdServer
) -> None:
    etcd.ctl("put", f"{PREFIX}/config", CONF)
    launch(node, etcd)
    wait_for(node.ready, what="readiness")
    subnet = node.env()["FLANNEL_SUBNET"]
    node.stop()
    etcd.kill()
    launch(node, etcd)
    wait_for(lambda: ask(node, "/readyz")[0] == 200, 30, what="readiness without etcd")
    assert (node.env()["FLANNEL_NETWORK"], node.env()["FLANNEL_SUBNET"]) == ("10.250.0.0/16", subnet)
    assert any("starting with the network configuration of the last run" in line for line in node.messages())
