"""Pods behind Services that the host's kernel translates: every connection has to find its way back to the kernel.

Rules shaped like kube-proxy's stand on both nodes; client and backends are pods of one kind. That a connection works
says it all: an answer that does not pass the kernel again comes from an address the client has never heard of.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from fabric.lab import Lab, Pod, measure
from tests.scenarios import fabric_view, inside, kube_proxy
from tests.scenarios.kube_proxy import Service
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

FAMILIES = pytest.mark.parametrize("family", [4, 6])
ADDRESSES = {4: "10.96.0.", 6: "2001:db8:96::"}
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
BACKENDS = ("node1-pod2", "node2-pod1")


@dataclass
class Cluster:
    """The lab, and per pod and kind of socket one that serves, on a port of its own."""

    lab: Lab
    servers: dict[tuple[str, int, int], socket.socket]

    def end(self, pod: str, family: int, kind: int) -> tuple[str, int]:
        address: tuple[str, int] = self.servers[pod, family, kind].getsockname()[:2]
        return address

    def service(self, number: int, family: int, kind: int, pods: tuple[str, ...], **more: object) -> Service:
        name = f"{number}-{'tcp' if kind == STREAM else 'udp'}-{family}"
        ends = [self.end(pod, family, kind) for pod in pods]
        protocol = "tcp" if kind == STREAM else "udp"
        return Service(name, protocol, f"{ADDRESSES[family]}{number}", 80, ends, **more)  # type: ignore[arg-type]

    def served(self, family: int, kind: int, out: socket.socket) -> tuple[str, str]:
        """One question through a connected socket: the pod that got it, and the address that it saw."""
        candidates = {sock: pod for (pod, *key), sock in self.servers.items() if key == [family, kind]}
        if kind == DATAGRAM:
            out.send(b"question")
        ready, _, _ = select.select(list(candidates), [], [], 5)
        assert ready, "nobody was asked"
        server = ready[0]
        if kind == DATAGRAM:
            data, peer = server.recvfrom(100)
            server.sendto(b"answer", peer)
        else:
            accepted, peer = server.accept()
            with accepted:
                accepted.settimeout(5)
                out.sendall(b"question" * 20_000)
                data = accepted.recv(8)
                accepted.sendall(b"answer")
        assert data == b"question"
        assert out.recv(100) == b"answer"
        return candidates[server], peer[0]


@pytest.fixture(scope="module", params=["tun", "bridge", "veth"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with two pods each, and the same rules on both nodes.

    With --ip-masq, as every cluster has it: a pod speaks to another node's address with its own node's. Pods that the
    host's kernel connects are led to the daemon, where there are policies: none here that forbids anything.
    Service 1 has a backend on each node, 2 the client alone, 3 both backends and keeps a client with its first.
    """
    with ExitStack() as stack:
        options = {"nodes": 2, "pods": 2, "pod_kind": request.param, "ipv6": True, "mode": "veth"}
        networks = f"{ADDRESSES[4]}0/24,{ADDRESSES[6]}/112"
        policy = f"--policy-dir={tmp_path_factory.mktemp('policies')}", f"--service-cidr={networks}"
        arguments = ("--ip-masq", *(policy if request.param != "tun" else ()))
        lab = stack.enter_context(Lab(**options, daemon_args=arguments))
        made = Cluster(lab, {})
        for pod in lab.pods:
            for family in (4, 6):
                for kind in (STREAM, DATAGRAM):
                    server = serve(pod, measure.address(pod, family), kind)
                    made.servers[pod.name, family, kind] = stack.enter_context(server)
        services: list[Service] = []
        for family in (4, 6):
            for kind in (STREAM, DATAGRAM):
                services += [
                    made.service(1, family, kind, BACKENDS, node_port=30_001),
                    made.service(2, family, kind, ("node1-pod1",)),
                    made.service(3, family, kind, BACKENDS, affinity=True),
                ]
        for node in ("node1", "node2"):
            kube_proxy.apply(lab, node, services)
        yield made
        assert fabric_view.all_drops(lab) == {}
        assert fabric_view.all_checksum_errors(lab) == {}


def serve(pod: Pod, address: str, kind: int) -> socket.socket:
    if kind == DATAGRAM:
        return inside.open_udp(pod.netns, address)
    return inside.listen(pod.netns, address)


def ask(netns: str, address: str, port: int, kind: int) -> socket.socket:
    """A socket connected to the service: it takes answers from that address alone."""
    family = inside.family_of(address)
    made = inside.open_socket(netns, family, kind)
    made.settimeout(5)
    try:
        made.connect((address, port))
    except OSError:
        made.close()
        raise
    return made


def test_without_the_flow_table_an_answer_misses_its_translation() -> None:
    """What the others would be otherwise: the client refuses an answer from an address it has never heard of.

    It stands before them because there is one lab at a time.
    """
    with Lab(nodes=1, pods=2, pod_kind="tun", mode="veth", daemon_args=("--flow-table=0",)) as lab:
        client, backend = lab.pod("node1-pod1"), lab.pod("node1-pod2")
        with inside.open_udp(backend.netns, backend.ip) as server:
            end = server.getsockname()[:2]
            kube_proxy.apply(lab, "node1", [Service("only", "udp", f"{ADDRESSES[4]}1", 80, [end])])
            inside.watch_errors(server)
            with ask(client.netns, f"{ADDRESSES[4]}1", 80, DATAGRAM) as out:
                out.send(b"question")
                question, peer = server.recvfrom(100)
                assert (question, peer[0]) == (b"question", client.ip)
                server.sendto(b"answer", peer)
                error = wait_for(lambda: inside.error_of(server), "an ICMP error")
        assert error is not None
        assert (error[:2], error[3]) == ((3, 3), client.ip)


@FAMILIES
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
def test_a_cluster_address_leads_to_local_and_remote_backends(cluster: Cluster, kind: int, family: int) -> None:
    for client in ("node1-pod1", "node2-pod2"):
        pod, met = cluster.lab.pod(client), set()
        for _ in range(4):
            with ask(pod.netns, f"{ADDRESSES[family]}1", 80, kind) as out:
                backend, peer = cluster.served(family, kind, out)
                met.add(backend)
                assert peer == measure.address(pod, family), "the backend sees the client itself"
        assert met == set(BACKENDS)


@FAMILIES
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
def test_a_pod_reaches_itself_through_its_service(cluster: Cluster, kind: int, family: int) -> None:
    pod = cluster.lab.pod("node1-pod1")
    with ask(pod.netns, f"{ADDRESSES[family]}2", 80, kind) as out:
        backend, peer = cluster.served(family, kind, out)
    assert backend == "node1-pod1"
    assert peer != measure.address(pod, family), "masqueraded"


@FAMILIES
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize("client", ["node1", "node2", "node1-pod1", "node2-pod2"])
def test_a_node_port_is_open_to_nodes_and_pods(cluster: Cluster, client: str, kind: int, family: int) -> None:
    """Port 30001 of node 1, asked by itself, by another node, and by pods of both."""
    node, met = cluster.lab.node("node1"), set()
    address = node.underlay_ip if family == 4 else node.underlay_ip6
    for _ in range(2):
        with ask(cluster.lab.netns(client), address, 30_001, kind) as out:
            met.add(cluster.served(family, kind, out)[0])
    assert met == set(BACKENDS)


@FAMILIES
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
def test_affinity_keeps_a_client_with_its_backend(cluster: Cluster, kind: int, family: int) -> None:
    met = []
    for _ in range(4):
        with ask(cluster.lab.pod("node1-pod1").netns, f"{ADDRESSES[family]}3", 80, kind) as out:
            met.append(cluster.served(family, kind, out)[0])
    assert len(set(met)) == 1


@FAMILIES
def test_replies_of_the_node_itself_and_of_pods_reached_directly(cluster: Cluster, family: int) -> None:
    """No rule touches these: they work beside connections through a Service between the same two pods."""
    client, address = cluster.lab.pod("node1-pod1"), f"{ADDRESSES[family]}1"
    for backend in BACKENDS:
        with (
            ask(client.netns, *cluster.end(backend, family, STREAM), STREAM) as direct,
            ask(client.netns, address, 80, DATAGRAM) as through,
        ):
            assert cluster.served(family, STREAM, direct)[0] == backend
            assert cluster.served(family, DATAGRAM, through)[0] in BACKENDS
        with ask(cluster.lab.netns("node1"), *cluster.end(backend, family, STREAM), STREAM) as own:
            assert cluster.served(family, STREAM, own)[0] == backend
