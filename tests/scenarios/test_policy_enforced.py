"""Policy against real stacks on two nodes: Services, connections that a change cuts, fragments, errors of the path."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from fabric.lab import Lab, measure
from tests.scenarios import fabric_view, inside, kube_proxy
from tests.scenarios.kube_proxy import Service
from tests.scenarios.policy_lab import PolicyLab, pod_object
from tests.scenarios.test_policy_sources import PODS
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
FAMILIES = pytest.mark.parametrize("family", [4, 6])
SERVICES = {4: "10.96.0.1", 6: "2001:db8:96::1"}
NETWORKS = "10.96.0.0/16,2001:db8:96::/112"
CLIENT, LOCAL, REMOTE = "node1-pod1", "node1-pod2", "node2-pod1"
BACKENDS = pytest.mark.parametrize("backend", [LOCAL, REMOTE], ids=["local", "remote"])
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.fixture(scope="module", params=["tun", "bridge", "veth"])
def policed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyLab]:
    """Pods on ports of the daemon, and pods that the host's kernel connects, which pass the daemon all the same."""
    policies = tmp_path_factory.mktemp("policies")
    arguments = (f"--policy-dir={policies}", f"--service-cidr={NETWORKS}", "--ip-masq")
    with Lab(nodes=2, pods=2, pod_kind=request.param, ipv6=True, mode="veth", daemon_args=arguments) as lab:
        made = PolicyLab(lab, policies)
        made.write("pods.yaml", *(pod_object(lab.pod(name), (4, 6)) for name in PODS))
        yield made


Rules = list[dict[str, Any]]


def isolate(pod: str, *, ingress: Rules | None = None, egress: Rules | None = None) -> dict[str, Any]:
    """A policy that isolates the pod in the directions given, with these rules."""
    spec: dict[str, Any] = {"podSelector": {"matchLabels": {"pod": pod}}, "policyTypes": []}
    for kind, rules in (("ingress", ingress), ("egress", egress)):
        if rules is not None:
            spec["policyTypes"].append(kind.capitalize())
            spec[kind] = rules
    metadata = {"name": f"for-{pod}"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def peer(pod: str) -> list[dict[str, Any]]:
    return [{"podSelector": {"matchLabels": {"pod": pod}}}]


def connected(stack: ExitStack, policed: PolicyLab, to: tuple[str, int], server: socket.socket) -> Any:
    """Both ends of a new TCP connection from CLIENT."""
    out = stack.enter_context(inside.connect(policed.lab.pod(CLIENT).netns, *to))
    accepted, peer = server.accept()
    stack.enter_context(accepted)
    accepted.settimeout(5)
    return out, accepted, peer[0]


@contextmanager
def dropping(lab: Lab, node: str, reason: str, count: int) -> Iterator[None]:
    """Wait at the end until the node has dropped this many for this reason, and then nothing for another."""
    before = fabric_view.drops(lab, node)
    yield
    wait_for(lambda: fabric_view.drops(lab, node).get(reason, 0) >= before.get(reason, 0) + count, reason)
    assert fabric_view.more(before, fabric_view.drops(lab, node)).keys() == {reason}


def refused(policed: PolicyLab, node: str, reason: str, to: tuple[str, int]) -> None:
    """A connection from CLIENT gets no answer, and this node counts why."""
    out = inside.open_socket(policed.lab.pod(CLIENT).netns, inside.family_of(to[0]), STREAM)
    with dropping(policed.lab, node, reason, 1), out:
        out.setblocking(False)
        assert out.connect_ex(to) == errno.EINPROGRESS


@FAMILIES
@BACKENDS
def test_a_service_is_judged_by_where_it_leads(policed: PolicyLab, backend: str, family: int) -> None:
    lab = policed.lab
    with ExitStack() as stack:
        server = stack.enter_context(inside.listen(lab.pod(backend).netns, measure.address(lab.pod(backend), family)))
        end = server.getsockname()[:2]
        for node in ("node1", "node2"):
            kube_proxy.apply(lab, node, [Service("only", "tcp", SERVICES[family], 80, [end])])
        to = (SERVICES[family], 80)
        port = [{"port": end[1], "protocol": "TCP"}]
        policed.write("web.yaml", isolate(CLIENT, egress=[{"to": peer(backend), "ports": port}], ingress=[]),
                      isolate(backend, ingress=[{"from": peer(CLIENT), "ports": port}], egress=[]))  # fmt: skip
        for _ in range(2):
            out, accepted, seen = connected(stack, policed, to, server)
            assert seen == measure.address(lab.pod(CLIENT), family)
            out.sendall(bytes(100_000))
            left = 100_000
            while left:
                left -= len(accepted.recv(left))
            accepted.sendall(b"answer")
            assert out.recv(100) == b"answer"
        policed.write("web.yaml", isolate(CLIENT, egress=[{"to": peer(backend), "ports": [{"port": 1}]}]))
        refused(policed, "node1", "policy_egress", to)
        denied = lab.control("node1", "policy.denied")[-1]
        assert (denied["direction"], denied["destination"], denied["ports"][1]) == ("egress", *end)
        policed.write("web.yaml", isolate(backend, ingress=[{"from": peer("node2-pod2")}]))
        refused(policed, "node1" if backend == LOCAL else "node2", "policy_ingress", to)
        policed.remove("web.yaml")


@FAMILIES
@BACKENDS
def test_a_change_cuts_a_connection_and_gives_it_back(policed: PolicyLab, backend: str, family: int) -> None:
    """What is denied stays away in both directions; when it is allowed again the kernels' retransmissions arrive."""
    lab = policed.lab
    with ExitStack() as stack:
        server = stack.enter_context(inside.listen(lab.pod(backend).netns, measure.address(lab.pod(backend), family)))
        out, accepted, _ = connected(stack, policed, server.getsockname()[:2], server)
        policed.write("web.yaml", isolate(backend, ingress=[{"from": peer(CLIENT)}]))
        out.sendall(b"one")
        assert accepted.recv(10) == b"one"
        policed.write("web.yaml", isolate(backend, ingress=[]))
        node = "node1" if backend == LOCAL else "node2"
        with dropping(lab, node, "policy_ingress", 4):
            accepted.sendall(b"back")
            out.sendall(b"two")
        for sock in (out, accepted):
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(10)
        policed.write("web.yaml", isolate(backend, ingress=[{"from": peer(CLIENT)}]))
        for sock, wanted in ((accepted, b"two"), (out, b"back")):
            sock.settimeout(5)
            assert sock.recv(10) == wanted
        policed.remove("web.yaml")


@FAMILIES
@BACKENDS
def test_fragments_and_pings(policed: PolicyLab, backend: str, family: int) -> None:
    """Large ones arrive whole where they may, and nothing of them where they may not."""
    lab = policed.lab
    address = measure.address(lab.pod(backend), family)
    command = ["ip", "netns", "exec", lab.pod(CLIENT).netns, "ping", "-q", "-c", "3", "-i", "0.05", "-W", "1"]

    def ping(size: int) -> int:
        return subprocess.run([*command, "-s", str(size), address], capture_output=True, check=False).returncode

    only_client = isolate(backend, ingress=[{"from": peer(CLIENT)}], egress=[])
    policed.write("web.yaml", only_client, isolate(CLIENT, ingress=[]))
    assert [ping(size) for size in (56, 4000, 60_000)] == [0, 0, 0]
    policed.write("web.yaml", isolate(backend, ingress=[{"from": peer(CLIENT), "ports": [{"port": 80}]}]))
    node = "node1" if backend == LOCAL else "node2"
    with fabric_view.counting_drops(lab, node) as dropped:
        assert ping(4000) == 1
    assert dropped == {"policy_ingress": 9}
    policed.remove("web.yaml")


@FAMILIES
@BACKENDS
def test_a_closed_port_is_told(policed: PolicyLab, backend: str, family: int) -> None:
    """The error passes a pod that may send nothing, for the datagram that it is about."""
    lab = policed.lab
    pod = lab.pod(backend)
    only_client = isolate(backend, ingress=[{"from": peer(CLIENT)}], egress=[])
    policed.write("web.yaml", only_client, isolate(CLIENT, ingress=[]))
    with inside.open_udp(lab.pod(CLIENT).netns, measure.address(lab.pod(CLIENT), family)) as out:
        inside.watch_errors(out)
        out.sendto(b"question", (measure.address(pod, family), 9))
        error = wait_for(lambda: inside.error_of(out), "an ICMP error")
    assert error is not None
    assert error[3] == measure.address(pod, family)
    policed.remove("web.yaml")
