"""Pods in bridges and on pairs under policy: what the host's kernel would carry by itself passes the daemon.

What holds for every kind of pod is tested with these kinds too (`test_policy_enforced`, `test_services`); here is what
only they have: the bridge as a way around, a host that routes, and a daemon that is away.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path

import pytest

from fabric.lab import Lab, measure
from tests.scenarios import fabric_view, inside
from tests.scenarios.policy_lab import PolicyLab, pod_object
from tests.scenarios.test_policy_enforced import isolate, peer
from tests.scenarios.test_policy_sources import PODS
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
CLIENT, SERVER, FAR = "node1-pod1", "node1-pod2", "node2-pod1"
FAMILIES = pytest.mark.parametrize("family", [4, 6])
DATAGRAM = socket.SOCK_DGRAM
SECONDS = 0.3
ETH_P_IP = 0x0800
ON_A_BRIDGE = pytest.mark.parametrize("policed", ["bridge"], indirect=True)  # a pair ends at the host, which routes


@pytest.fixture(scope="module", params=["bridge", "veth"])
def policed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyLab]:
    policies = tmp_path_factory.mktemp("policies")
    arguments = (f"--policy-dir={policies}",)
    with Lab(nodes=2, pods=2, pod_kind=request.param, ipv6=True, mode="veth", daemon_args=arguments) as lab:
        made = PolicyLab(lab, policies)
        made.write("pods.yaml", *(pod_object(lab.pod(name), (4, 6)) for name in PODS))
        yield made
        assert lab.dead_daemons() == []
        assert fabric_view.all_checksum_errors(lab) == {}


@pytest.fixture(autouse=True)
def _no_policy_is_left(policed: PolicyLab) -> Iterator[None]:
    yield
    if (policed.policies / "web.yaml").exists():
        policed.remove("web.yaml")


def arrives(source: str, target: str, address: str, *, bound: str = "", tries: int = 1) -> bool:
    """Whether a datagram from namespace to namespace arrives; `bound` is the sender's address, a link-local address
    that of the sender's eth0."""
    with inside.open_udp(target, "::" if ":" in address else "0.0.0.0") as receiver:
        port = receiver.getsockname()[1]
        receiver.settimeout(SECONDS)
        with inside.open_socket(source, inside.family_of(address), DATAGRAM) as sender:
            if bound:
                sender.bind((bound, 0))
            scope = inside.call(source, lambda: socket.if_nametoindex("eth0")) if address.startswith("fe80:") else 0
            for _ in range(tries):
                sender.sendto(b"probe", (address, port, 0, scope) if ":" in address else (address, port))
                try:
                    return receiver.recv(100) == b"probe"
                except TimeoutError:
                    continue
    return False


def passes(policed: PolicyLab, source: str, target: str, family: int, tries: int = 3) -> bool:
    lab = policed.lab
    address = measure.address(lab.pod(target), family)
    return arrives(lab.netns(source), lab.netns(target), address, tries=tries)


@FAMILIES
def test_pods_of_one_node_are_judged(policed: PolicyLab, family: int) -> None:
    """Both ends are; the far pod and the node are as ever."""
    assert passes(policed, CLIENT, SERVER, family)
    policed.write("web.yaml", isolate(SERVER, ingress=[{"from": peer(FAR)}]))
    with fabric_view.counting_drops(policed.lab, "node1") as dropped:
        assert not passes(policed, CLIENT, SERVER, family, tries=2)
    assert dropped == {"policy_ingress": 2}
    assert passes(policed, FAR, SERVER, family)
    assert passes(policed, "node1", SERVER, family)
    policed.write("web.yaml", isolate(CLIENT, egress=[{"to": peer(FAR)}]))
    with fabric_view.counting_drops(policed.lab, "node1") as dropped:
        assert not passes(policed, CLIENT, SERVER, family, tries=2)
    assert dropped == {"policy_egress": 2}
    assert passes(policed, CLIENT, FAR, family)
    policed.remove("web.yaml")
    assert passes(policed, CLIENT, SERVER, family)


@FAMILIES
def test_outside_is_judged(policed: PolicyLab, family: int) -> None:
    """A pod's packets to an address that is no pod's, and that address's to the pod, with the host routing both."""
    lab = policed.lab
    outside, prefix = {4: ("203.0.113.9", 32), 6: ("2001:db8:9::9", 128)}[family]
    node1, node2 = lab.node("node1"), lab.node("node2")
    there = {4: (node1.underlay_ip, node2.underlay_ip), 6: (node1.underlay_ip6, node2.underlay_ip6)}[family]
    pod = lab.pod(CLIENT)
    address = measure.address(pod, family)
    inside.ip(node2.netns, "addr", "add", f"{outside}/{prefix}", "dev", "lo")
    inside.ip(node1.netns, "route", "add", f"{outside}/{prefix}", "via", there[1])
    # Longer than the fabric's own route: node2 is just somebody outside who knows the way to the pod.
    inside.ip(node2.netns, "route", "add", f"{address}/{prefix}", "via", there[0])
    try:
        assert arrives(pod.netns, node2.netns, outside)
        assert arrives(node2.netns, pod.netns, address, bound=outside, tries=3)
        cidr = [{"ipBlock": {"cidr": f"{outside}/{prefix}"}}]
        policed.write("web.yaml", isolate(CLIENT, egress=[{"to": peer(FAR)}], ingress=[{"from": peer(FAR)}]))
        with fabric_view.counting_drops(lab, "node1") as dropped:
            assert not arrives(pod.netns, node2.netns, outside)
            assert not arrives(node2.netns, pod.netns, address, bound=outside)
        assert dropped == {"policy_egress": 1, "policy_ingress": 1}
        policed.write("web.yaml", isolate(CLIENT, egress=[{"to": cidr}], ingress=[{"from": cidr}]))
        assert arrives(pod.netns, node2.netns, outside)
        assert arrives(node2.netns, pod.netns, address, bound=outside)
    finally:
        inside.ip(node2.netns, "route", "del", f"{address}/{prefix}", "via", there[0])
        inside.ip(node1.netns, "route", "del", f"{outside}/{prefix}", "via", there[1])
        inside.ip(node2.netns, "addr", "del", f"{outside}/{prefix}", "dev", "lo")


@ON_A_BRIDGE
def test_the_bridge_is_no_way_around(policed: PolicyLab) -> None:
    """Link-local addresses, foreign sources and frames that name the other pod's MAC."""
    lab = policed.lab
    client, server = lab.pod(CLIENT), lab.pod(SERVER)
    policed.write("web.yaml", isolate(SERVER, ingress=[]))
    with fabric_view.counting_drops(lab, "node1") as dropped:
        assert not passes(policed, CLIENT, SERVER, 4, tries=1)  # the neighbour is known from here on
    assert dropped == {"policy_ingress": 1}
    with own_addresses(client.netns, 1), own_addresses(server.netns, 2):
        assert not arrives(client.netns, server.netns, "fe80::2", tries=2)
        assert not arrives(client.netns, server.netns, "198.51.100.2", tries=2)
        assert not arrives(client.netns, server.netns, server.ip, bound="198.51.100.1", tries=2)
    raw = inside.call(client.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    heard = inside.call(server.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)))
    with raw, heard:
        raw.bind(("eth0", 0))
        heard.settimeout(SECONDS)
        raw.send(mac(server.netns) + mac(client.netns) + b"\x88\xb5" + bytes(60))
        with pytest.raises(TimeoutError):
            heard.recv(100)


@contextmanager
def own_addresses(netns: str, number: int) -> Iterator[None]:
    """Addresses that a pod with the right to do so gives itself."""
    addresses = (f"198.51.100.{number}/24", f"fe80::{number}/64")
    for address in addresses:
        inside.ip(netns, "addr", "add", address, "dev", "eth0", *(("nodad",) if ":" in address else ()))
    yield
    for address in addresses:
        inside.ip(netns, "addr", "del", address, "dev", "eth0")


def mac(netns: str) -> bytes:
    return bytes.fromhex(inside.ip_json(netns, "link", "show", "dev", "eth0")[0]["address"].replace(":", ""))


@ON_A_BRIDGE
def test_a_pod_that_somebody_else_plugged_is_led_too(policed: PolicyLab) -> None:
    """Without the CNI plugin the daemon has no record of it: as an unknown pod it is closed, but for its node."""
    lab, name = policed.lab, "fablab-foreign"
    node, server = lab.node("node1"), lab.pod(SERVER)
    bridge = ip_interface(f"{server.ip}/24").network
    address = str(bridge.network_address + 200)
    inside.host_ip("netns", "add", name)
    try:
        inside.ip(node.netns, "link", "add", "foreign0", "type", "veth", "peer", "name", "eth0", "netns", name)
        inside.ip(node.netns, "link", "set", "foreign0", "master", "cni0", "up")
        inside.ip(name, "addr", "add", f"{address}/24", "dev", "eth0")
        inside.ip(name, "link", "set", "eth0", "up")
        assert wait_for(lambda: arrives(node.netns, name, address), "reachable from its node")
        with fabric_view.counting_drops(lab, "node1") as dropped:
            assert not arrives(name, server.netns, server.ip, tries=2)
            assert not arrives(server.netns, name, address, tries=2)
        assert dropped == {"policy_unknown_pod": 4}
    finally:
        inside.host_ip("netns", "del", name)


@FAMILIES
def test_streams_pass_whole(policed: PolicyLab, family: int) -> None:
    """Unfinished checksums and superframes go through both devices as they are."""
    lab = policed.lab
    address = measure.address(lab.pod(SERVER), family)
    before = fabric_view.counters(lab, "node1")
    total = 8_000_000
    with (
        inside.listen(lab.pod(SERVER).netns, address) as server,
        inside.connect(lab.pod(CLIENT).netns, *server.getsockname()[:2]) as out,
        server.accept()[0] as accepted,
    ):
        accepted.settimeout(10)
        carry(out, accepted, total)
    after = fabric_view.counters(lab, "node1")
    frames = after["egress_local"] - before["egress_local"]
    assert 0 < frames < total / 1400 / 2, "superframes are not cut"


def carry(out: socket.socket, into: socket.socket, total: int) -> None:
    """Send `total` bytes and read them, in turns that fit the sockets' buffers."""
    turn = 100_000
    for _ in range(total // turn):
        out.sendall(bytes(turn))
        left = turn
        while left:
            left -= len(into.recv(left))


@FAMILIES
def test_without_the_daemon_nothing_passes_but_from_the_node(policed: PolicyLab, family: int) -> None:
    """Fail-closed: killed, it takes its devices along, and what is led there goes nowhere; the node is as ever."""
    lab = policed.lab
    assert passes(policed, CLIENT, SERVER, family)
    lab.stop_daemon("node1", signal.SIGKILL)
    try:
        assert not passes(policed, CLIENT, SERVER, family, tries=2)
        assert passes(policed, "node1", SERVER, family)
    finally:
        lab.start_daemon("node1")
    wait_for(lambda: passes(policed, CLIENT, SERVER, family, tries=1), "open again")


def test_a_deleted_bridge_port_is_made_again(policed: PolicyLab) -> None:
    node = policed.lab.node("node1")
    inside.ip(node.netns, "link", "del", "pods.1")
    wait_for(lambda: passes(policed, CLIENT, SERVER, 4, tries=1), "led through the new one")
    policed.write("web.yaml", isolate(SERVER, ingress=[]))
    assert not passes(policed, CLIENT, SERVER, 4, tries=2)


def test_rules_and_tables_are_restored(policed: PolicyLab) -> None:
    """A rule at once, since the kernel tells; a table with the next regular look."""
    netns = policed.lab.node("node1").netns
    before = steering(netns)
    inside.ip(netns, "rule", "del", "pref", "1123")
    inside.ip(netns, "route", "flush", "table", "11202")
    subprocess.run(["ip", "netns", "exec", netns, "nft", "flush", "table", "inet", "podfabric_steer"], check=True)
    wait_for(lambda: steering(netns) == before, "as before", seconds=15)


def test_without_policy_the_kernel_carries_them_again(policed: PolicyLab, tmp_path: Path) -> None:
    """The daemon started without a source takes everything away; afterwards with one, everything is there."""
    lab = policed.lab
    policed.write("web.yaml", isolate(SERVER, ingress=[]))
    assert not passes(policed, CLIENT, SERVER, 4, tries=1)
    before = steering(lab.node("node1").netns)
    lab.restart_daemon("node1", ("--policy-dir=",))
    assert steering(lab.node("node1").netns) == []
    assert "pods.1" not in inside.links(lab.node("node1").netns)
    wait_for(lambda: passes(policed, CLIENT, SERVER, 4, tries=1), "past the daemon")
    lab.restart_daemon("node1")
    assert steering(lab.node("node1").netns) == before
    assert not passes(policed, CLIENT, SERVER, 4, tries=1)


def steering(netns: str) -> list[str]:
    """Our rules, routes and nftables tables, one line each, without handles and indexes."""
    found = []
    for family in ("-4", "-6"):
        for words in (("rule",), ("route", "show", "table", "11201"), ("route", "show", "table", "11202")):
            argv = ["ip", "-n", netns, family, *words]
            lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
            found += [line.strip() for line in lines if words != ("rule",) or "proto 112" in line]
    argv = ["ip", "netns", "exec", netns, "nft", "list", "ruleset"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    if "podfabric_steer" in text:
        for family in ("bridge", "inet"):
            argv = ["ip", "netns", "exec", netns, "nft", "list", "table", family, "podfabric_steer"]
            found += subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    return found
