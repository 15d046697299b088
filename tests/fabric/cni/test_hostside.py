"""Port mappings and masquerading by the plugin itself: who reaches a pod through a port of the host, and as whom."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.traffic.portmap import owner_name
from tests.fabric.cni.host import GC_KEY, DaemonHost, Host, PodNamespace, add, with_result
from tests.fabric.daemon.nodes import ip, wait_for
from tests.scenarios import inside

pytestmark = pytest.mark.root

TABLE = ("inet", "podfabric_hostports")
WEB = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
DNS = {"hostPort": 5300, "containerPort": 53, "protocol": "udp"}
NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
OUTSIDE = {4: "192.0.2.2", 6: "2001:db8::2"}


@pytest.fixture(params=["bridge", "tun"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def node(request: pytest.FixtureRequest, kind: str) -> Iterator[Host]:
    """The host for a kind; each test removes its pods, and then there are no elements left."""
    host: Host = request.getfixturevalue("daemon_host" if kind == "tun" else "host")
    yield host
    assert elements(host) == []
    assert (host.reserved(), host.records()) == (set(), set())


def elements(host: Host) -> list[tuple[str, str]]:
    """(set, comment) of every element of the plugin's table, as nft lists them."""
    command = ["ip", "netns", "exec", host.netns, "nft", "-j", "list", "ruleset"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["nftables"]
    found = []
    for item in (item.get("set") or item.get("map") for item in listed):
        if item and (item["family"], item["table"]) == TABLE:
            listed_elements = (each[0] if isinstance(each, list) else each for each in item.get("elem", ()))
            found += [(item["name"], each["elem"]["comment"]) for each in listed_elements]
    return sorted(found)


def nft(host: Host, *words: str) -> None:
    subprocess.run(["ip", "netns", "exec", host.netns, "nft", *words], check=True)


def mapped(host: Host, kind: str, pod: PodNamespace, *mappings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return add(host, pod, kind, runtimeConfig={"portMappings": list(mappings)}, **changes)


def seen(pod: PodNamespace, client: str, address: str, port: int, bound: int = 80, udp: bool = False) -> str:
    """Who the pod sees when `client` sends to a port and gets an answer; empty when nothing comes."""
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    family = inside.family_of(address)
    with inside.open_socket(pod.netns, family, kind) as server, inside.open_socket(client, family, kind) as out:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", bound))
        for each in (server, out):
            each.settimeout(2)
        try:
            if udp:
                out.connect((address, port))
                out.send(b"question")
                data, source = server.recvfrom(100)
                server.sendto(data, source)
            else:
                server.listen()
                out.connect((address, port))
                accepted, source = server.accept()
                with accepted:
                    accepted.sendall(b"question")
            return str(source[0]) if out.recv(100) == b"question" else ""
        except OSError:
            return ""


def test_everybody_reaches_a_pod_by_a_port_of_the_host(node: Host, kind: str) -> None:
    """From outside, from the host by two addresses, from the pod itself and from a neighbour; TCP and UDP."""
    pod, neighbour = node.pod(), node.pod()
    result = mapped(node, kind, pod, WEB, DNS, hairpinMode=True)  # what a bridge with br_netfilter needs
    add(node, neighbour, kind)
    for number, version in enumerate((4, 6)):
        own = result["ips"][number]["address"].partition("/")[0]
        for port, bound, udp in ((8080, 80, False), (5300, 53, True)):
            assert seen(pod, node.outside, NODE[version], port, bound, udp) == OUTSIDE[version], "its source is kept"
            assert seen(pod, node.netns, NODE[version], port, bound, udp)
            for client in (pod, neighbour):
                source = seen(pod, client.netns, NODE[version], port, bound, udp)
                assert source not in ("", own), "masqueraded, or the answer would go past the translation"
        if version == 4:
            assert seen(pod, node.netns, "127.0.0.1", 8080)
            assert seen(pod, node.netns, "127.0.0.1", 5300, 53, udp=True)
    conf = with_result(node.conf(kind, runtimeConfig={"portMappings": [WEB, DNS]}), result)
    assert node.call("CHECK", conf, pod) == (0, None, "")
    node.call("DEL", node.conf(kind), pod).must()
    assert elements(node) == []
    node.call("DEL", node.conf(kind), neighbour).must()


def test_pods_are_masqueraded_towards_the_outside_and_not_among_themselves(node: Host, kind: str) -> None:
    pods = [node.pod(), node.pod()]
    result = add(node, pods[0], kind, ipMasq=True)
    target = PodNamespace("", node.outside)
    for number, version in enumerate((4, 6)):
        own = result["ips"][number]["address"].partition("/")[0]
        assert seen(target, pods[0].netns, OUTSIDE[version], 80) == NODE[version]
        other = add(node, pods[1], kind)["ips"][number]["address"].partition("/")[0]
        assert seen(pods[1], pods[0].netns, other, 80) == own
        node.call("DEL", node.conf(kind), pods[1]).must()
    assert {name for name, _ in elements(node)} == {"masquerade4", "masquerade6"}
    node.call("DEL", node.conf(kind, ipMasq=True), pods[0]).must()


def test_a_port_of_another_container_is_refused_by_its_name(host: Host) -> None:
    pods = [host.pod(), host.pod()]
    mapped(host, "veth", pods[0], WEB, {**WEB, "hostPort": 8443, "hostIP": NODE[4]})
    conf = host.conf(runtimeConfig={"portMappings": [{**WEB, "hostPort": 8443, "hostIP": NODE[4]}, DNS]})
    answer = host.call("ADD", conf, pods[1])
    assert answer.code == 115
    holder = owner_name("podnet", pods[0].container_id, "eth0")
    assert f"port 192.0.2.1:8443/tcp of this host is {holder}'s already" in answer.text
    assert {owner for _, owner in elements(host)} == {holder}, "nothing of the refused one, all of the other"
    assert set(pods[1].links()) == {"lo"}
    mapped(host, "veth", pods[1], {**WEB, "hostPort": 8443, "hostIP": "127.0.0.1"}, DNS)
    for pod in pods:
        host.call("DEL", host.conf(), pod).must()
    assert elements(host) == []


def test_gc_and_del_without_a_record_remove_exactly_what_is_not_valid(host: Host) -> None:
    pods = [host.pod() for _ in range(3)]
    for number, pod in enumerate(pods):
        mapped(host, "veth", pod, {**WEB, "hostPort": 8080 + number})
        (host.data / "podnet" / f"{pod.container_id}@eth0").unlink()
    keep = {"containerID": pods[2].container_id, "ifname": "eth0"}
    host.call("DEL", host.conf(), pods[0]).must()
    assert {owner for _, owner in elements(host)} == {owner_name("podnet", p.container_id, "eth0") for p in pods[1:]}
    host.call("GC", host.conf(**{GC_KEY: [keep]})).must()
    assert {owner for _, owner in elements(host)} == {owner_name("podnet", pods[2].container_id, "eth0")}
    for pod in pods[1:]:
        host.call("DEL", host.conf(), pod).must()
    assert elements(host) == []


def test_check_notices_mappings_and_rules_that_are_gone(host: Host) -> None:
    pod = host.pod()
    wanted = {"portMappings": [WEB, {**WEB, "hostPort": 81, "hostIP": NODE[6]}]}
    result = add(host, pod, runtimeConfig=wanted)
    conf = with_result(host.conf(runtimeConfig=wanted), result)
    assert host.call("CHECK", conf, pod) == (0, None, "")
    for words in (("delete", "element", *TABLE, "any4", "{ tcp . 8080 }"), ("flush", "chain", *TABLE, "hostports")):
        nft(host, *words)
        answer = host.call("CHECK", conf, pod)
        assert (answer.code, "podfabric_hostports" in answer.text) == (113, True)
    nft(host, "delete", "table", *TABLE)
    host.call("DEL", conf, pod).must()
    mapped(host, "veth", pod, WEB)
    assert seen(pod, host.outside, NODE[4], 8080) == OUTSIDE[4], "the next ADD makes the table anew"
    host.call("DEL", host.conf(), pod).must()


def test_loopback_stays_closed_to_the_outside(host: Host) -> None:
    """The kernel lets 127.0.0.0/8 in by interfaces towards pods once mappings of localhost are routed there."""
    pod = host.pod()
    result = mapped(host, "veth", pod, WEB)
    setting = Path(f"/proc/sys/net/ipv4/conf/{result['interfaces'][0]['name']}/route_localnet")
    assert inside.call(host.netns, setting.read_text).strip() == "1"
    ip("-n", pod.netns, "route", "add", "127.0.0.2/32", "via", "169.254.1.1", "table", "7")
    for rule in (("add", "to", "127.0.0.2/32", "table", "7", "pref", "0"), ("del", "pref", "0", "table", "local"),
                 ("add", "pref", "1", "table", "local")):  # fmt: skip
        ip("-n", pod.netns, "rule", *rule)
    own = Path("/proc/sys/net/ipv4/conf/eth0/route_localnet")
    inside.call(pod.netns, lambda: own.write_text("1"))
    source = result["ips"][0]["address"].partition("/")[0]
    with inside.open_udp(host.netns, "127.0.0.2", 9000) as listener, inside.open_udp(pod.netns, source) as out:
        out.sendto(b"kept out", ("127.0.0.2", 9000))
        nft(host, "flush", "chain", *TABLE, "guard")
        out.sendto(b"let in", ("127.0.0.2", 9000))
        assert listener.recv(10) == b"let in", "only the guard kept the first one out"
    host.call("DEL", host.conf(), pod).must()
    nft(host, "delete", "table", *TABLE)


def test_localhost_leads_to_pods_behind_a_new_node_port(daemon_host: DaemonHost) -> None:
    """A node port that somebody has deleted, and the one of a restarted daemon; without mappings it stays closed."""
    host, pod, other = daemon_host, daemon_host.pod(), daemon_host.pod()
    add(host, other, "tun")
    device = host.node.ask("status")["device"]
    setting = Path(f"/proc/sys/net/ipv4/conf/{device}/route_localnet")

    def opened() -> str:
        return str(inside.call(host.netns, lambda: setting.read_text() if setting.exists() else "")).strip()

    def restart() -> None:
        host.stop()
        host.start()

    for renew in (lambda: ip("-n", host.netns, "link", "del", device), restart):
        mapped(host, "tun", pod, WEB)
        assert seen(pod, host.netns, "127.0.0.1", 8080)
        renew()
        wait_for(lambda: opened() == "1", what="route_localnet of the new node port")
        assert seen(pod, host.netns, "127.0.0.1", 8080)
        host.call("DEL", host.conf("tun"), pod).must()
    restart()
    assert opened() == "0"
    host.call("DEL", host.conf("tun"), other).must()


def test_a_flow_of_udp_follows_the_port_to_its_next_pod(host: Host) -> None:
    """A client that keeps its port keeps its flow, unless that is forgotten with the mapping."""
    with inside.open_udp(host.outside, OUTSIDE[4], 4000) as client:
        client.connect((NODE[4], 5300))
        for text in (b"first", b"second"):
            pod = host.pod()
            mapped(host, "veth", pod, DNS)
            with inside.open_udp(pod.netns, "0.0.0.0", 53) as server:
                client.send(text)
                assert server.recv(100) == text
                host.call("DEL", host.conf(), pod).must()


def test_a_thousand_mappings(host: Host) -> None:
    pod = host.pod()
    wanted = [{**WEB, "hostPort": 20000 + number} for number in range(1000)]
    mapped(host, "veth", pod, *wanted)
    assert len(elements(host)) == 2 * 1000 + 5
    assert seen(pod, host.outside, NODE[4], 20999) == OUTSIDE[4]
    host.call("DEL", host.conf(), pod).must()
    assert elements(host) == []
