"""Our plugin in front of Debian's: portmap, bandwidth, tuning, firewall. Every plugin is a process of its own."""

from __future__ import annotations

import socket
import subprocess
from typing import Any

import pytest

from tests.fabric.cni.host import REFERENCE_PLUGINS, DaemonHost, Host, PodNamespace
from tests.fabric.cni.runtime import Runtime
from tests.fabric.daemon.nodes import ip
from tests.scenarios import inside

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not REFERENCE_PLUGINS.exists(), reason="needs Debian's containernetworking-plugins"),
]

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
TUNING = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}
FIREWALL = {"type": "firewall", "backend": "iptables"}
MAPPING = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
SHAPING = {"ingressRate": 1_000_000, "ingressBurst": 1_000_000, "egressRate": 1_000_000, "egressBurst": 1_000_000}


def ours(host: Host, kind: str) -> dict[str, Any]:
    return {key: value for key, value in host.conf(kind).items() if key not in ("cniVersion", "name")}


def in_netns(netns: str, *command: str) -> str:
    done = subprocess.run(["ip", "netns", "exec", netns, *command], capture_output=True, text=True, check=True)
    return done.stdout


def connects(pod: PodNamespace, client: str, address: str, port: int) -> bool:
    """Whether a TCP connection from the namespace `client` arrives at port 80 of the pod."""
    with inside.open_socket(pod.netns, inside.family_of("0.0.0.0"), 1) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("0.0.0.0", 80))
        server.listen()
        server.settimeout(5)
        with inside.open_socket(client, inside.family_of("0.0.0.0"), 1) as out:
            out.settimeout(5)
            out.connect((address, port))
            accepted, _ = server.accept()
            with accepted:
                out.sendall(b"through")
                return accepted.recv(100) == b"through"


@pytest.mark.parametrize("kind", ["veth", "bridge"])
def test_a_whole_chain(host: Host, kind: str) -> None:
    plugins = [ours(host, kind) | {"capabilities": {"mac": True}}, TUNING, PORTMAP, BANDWIDTH, FIREWALL]
    runtime, pod = Runtime(host, plugins), host.pod()
    mac = "02:00:00:00:00:55"
    result = runtime.add(pod, portMappings=[MAPPING], bandwidth=SHAPING, mac=mac)
    assert pod.links()["eth0"]["address"] == mac
    assert in_netns(pod.netns, "cat", "/proc/sys/net/core/somaxconn").strip() == "500"
    assert any(name.startswith("bwp") for name in host.links()), "bandwidth found the host's interface in our result"
    address = result["ips"][0]["address"].partition("/")[0]
    assert address in in_netns(host.netns, "iptables", "-S", "CNI-FORWARD")
    ip("-n", host.outside, "route", "replace", "10.244.1.0/24", "via", "192.0.2.1")
    assert connects(pod, host.outside, "192.0.2.1", 8080), "portmap leads the host's port to the pod"
    assert connects(pod, host.outside, address, 80)
    runtime.check(pod, portMappings=[MAPPING], bandwidth=SHAPING, mac=mac)
    runtime.delete(pod, portMappings=[MAPPING], bandwidth=SHAPING, mac=mac)
    runtime.delete(pod)
    assert (set(pod.links()), host.reserved("chained")) == ({"lo"}, set())
    assert not any(name.startswith(("bwp", "veth")) for name in host.links())


def test_a_chain_on_a_port_of_the_daemon(daemon_host: DaemonHost) -> None:
    """Everything but bandwidth, which wants an interface on the host."""
    host = daemon_host
    runtime, pod = Runtime(host, [ours(host, "tun"), TUNING, PORTMAP, FIREWALL]), host.pod()
    result = runtime.add(pod, portMappings=[MAPPING])
    address = result["ips"][0]["address"].partition("/")[0]
    ip("-n", host.outside, "route", "replace", f"{address}/32", "via", "192.0.2.1")
    assert connects(pod, host.outside, "192.0.2.1", 8080)
    assert connects(pod, host.outside, address, 80)
    runtime.check(pod, portMappings=[MAPPING])
    runtime.collect(pod)
    assert "eth0" in pod.links()
    runtime.delete(pod, portMappings=[MAPPING])
    assert (set(pod.links()), host.reserved("chained"), host.ports()) == ({"lo"}, set(), {})


def test_gc_after_the_runtime_lost_its_containers(host: Host) -> None:
    runtime, pods = Runtime(host, [ours(host, "veth")]), [host.pod(), host.pod()]
    for pod in pods:
        runtime.add(pod)
    host.delete_pod(pods[0])
    runtime.collect(pods[1])
    assert len(host.reserved("chained")) == 2
    assert "eth0" in pods[1].links()
    runtime.delete(pods[1])
    assert host.reserved("chained") == set()
