"""`fabricctl explain` at real daemons: what it says of a packet, and what then happens to the same packet."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw
from scapy.utils import PcapWriter

from fabric.capture import pcapng
from fabric.explain.files import packet_at
from fabric.lab import Lab, Pod, measure
from tests.scenarios import inside
from tests.scenarios.policy_lab import pod_object
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
RULE = "NetworkPolicy default/web spec.ingress[0]"
ETH_P_ALL, ETH_P_IP = 3, 0x0800


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Pods on ports; node1's first pod takes UDP 7000 from anybody, and TCP 80 from node2's."""
    policies = tmp_path_factory.mktemp("policies")
    with Lab(nodes=2, pods=2, daemon_args=(f"--policy-dir={policies}", "--offload", "tap-tunnel-gso=off")) as made:
        pods = [pod_object(pod) for pod in made.pods]
        policy = {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web"},
            "spec": {"podSelector": {"matchLabels": {"pod": "node1-pod1"}}, "policyTypes": ["Ingress"],
                     "ingress": [{"ports": [{"protocol": "UDP", "port": 7000}]},
                                 {"from": [{"podSelector": {"matchLabels": {"pod": "node2-pod1"}}}],
                                  "ports": [{"protocol": "TCP", "port": 80}]}]},
        }  # fmt: skip
        Path(policies, "all.yaml").write_text(yaml.safe_dump_all([*pods, policy]))
        for node in ("node1", "node2"):
            wait_for(lambda node=node: made.control(node, "status")["policy"].get("objects"), "the policy in force")  # type: ignore[misc]
        yield made


def explain(lab: Lab, node: str, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "fabric.cli.main", "explain", *words, "--json",
               "--run-dir", str(lab.run_dir / node / "run")]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    told: dict[str, Any] = json.loads(shown.stdout)
    return told


def of_file(lab: Lab, node: str, file: Path, data: bytes, *words: str) -> dict[str, Any]:
    """The same for a packet in a capture of raw IP packets, the second one of them."""
    with PcapWriter(str(file), linktype=pcapng.RAW) as out:
        out.write([IP(bytes(20)), IP(data)])
    return explain(lab, node, "-r", str(file), "--packet", "2", *words)


def listen(netns: str, interface: str = "") -> socket.socket:
    """Everything that a namespace's interface receives, from its IP header on."""
    sock = inside.open_socket(netns, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    if interface:
        sock.bind((interface, ETH_P_ALL))
    sock.settimeout(5)
    return sock


def matching(sock: socket.socket, wanted: bytes) -> bytes:
    """The next packet with this inside."""
    while True:
        data = sock.recv(1 << 16)
        if wanted in data:
            return data


def send(pod: Pod, data: bytes) -> None:
    """A whole IP packet out of a pod, whatever it says."""
    with inside.open_socket(pod.netns, socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
        sock.sendto(data, ("eth0", ETH_P_IP))


def ip(source: str, target: str, layer: Any, **fields: Any) -> bytes:
    return bytes(IP(src=source, dst=target, id=7, **fields) / layer / Raw(b"explained"))


def drop_count(lab: Lab, node: str, reason: str) -> int:
    count: int = lab.control(node, "counters")[f"drop_{reason}"]
    return count


def test_what_is_sent_is_what_was_told(lab: Lab, tmp_path: Path) -> None:
    """The datagram on the far underlay, byte by byte, with its ports; then the far node's word for the same bytes."""
    here, there = lab.nodes[0].pods[0], lab.nodes[1].pods[0]
    data = ip(measure.address(here, 4), measure.address(there, 4), UDP(sport=4001, dport=9999))
    told = of_file(lab, "node1", tmp_path / "a.pcap", data)
    assert told["verdict"] == "sent"
    result = told["results"][0]
    with listen(lab.netns("node2")) as wire, listen(there.netns, "eth0") as pod:
        send(here, data)
        datagram = matching(wire, b"explained")
        outer = IP(datagram)
        assert bytes(outer[UDP].payload).hex() == result["hex"]
        assert (outer[UDP].sport, outer[UDP].dport, outer.dst) == (result["source_port"], result["port"], result["to"])
        far = of_file(lab, "node2", tmp_path / "b.pcap", datagram)
        assert (far["verdict"], far["from"]["source"]) == ("delivered", outer.src)
        assert matching(pod, b"explained").hex() == far["results"][0]["hex"]


@pytest.mark.parametrize(("port", "reason"), [(7000, ""), (7001, "policy_ingress")])
def test_between_pods_of_a_node(lab: Lab, tmp_path: Path, port: int, reason: str) -> None:
    web, other = lab.nodes[0].pods
    data = ip(measure.address(other, 4), measure.address(web, 4), UDP(sport=4002 + port, dport=port))
    told = of_file(lab, "node1", tmp_path / "a.pcap", data)
    assert told["reason"] == reason
    before = drop_count(lab, "node1", "policy_ingress")
    with listen(web.netns, "eth0") as pod:
        send(other, data)
        if not reason:
            assert matching(pod, b"explained").hex() == told["results"][0]["hex"]
            assert told["policy"]["rules"][0]["rule"] == RULE
            assert told["policy"]["rules"][0]["place"].startswith("all.yaml:")
            return
    wait_for(lambda: drop_count(lab, "node1", reason) == before + 1, "the drop")


def test_what_is_refused(lab: Lab, tmp_path: Path) -> None:
    """Each packet's reason is the counter that then rises, alone."""
    web, other = lab.nodes[0].pods
    mine, its = measure.address(other, 4), measure.address(web, 4)
    far = measure.address(lab.nodes[1].pods[0], 4)
    underlay = str(lab.nodes[1].underlay_ip)
    packets = {
        "source_spoofed": ip(its, far, UDP(sport=1, dport=2)),
        "ttl_expired": ip(mine, far, UDP(sport=3, dport=4), ttl=1),
        "pod_to_vtep": ip(mine, underlay, UDP(sport=5, dport=8472)),
        "policy_ingress": ip(mine, its, TCP(sport=6, dport=80, flags="S")),
        "not_unicast": ip(mine, "224.0.0.9", UDP(sport=7, dport=8)),
        "inner_length": ip(mine, far, UDP(sport=9, dport=10), len=4000),
    }
    port = next(each["name"] for each in lab.control("node1", "endpoint.list") if mine in each["addresses"])
    for reason, data in packets.items():
        told = of_file(lab, "node1", tmp_path / f"{reason}.pcap", data, "--from", port)
        assert (told["verdict"], told["reason"]) == ("dropped", reason)
        before = drop_count(lab, "node1", reason)
        send(other, data)
        wait_for(lambda: drop_count(lab, "node1", reason) == before + 1, reason)  # noqa: B023


def test_in_words(lab: Lab) -> None:
    """A 5-tuple by the pods' names, and a flow that is there once it began."""
    web, client = lab.nodes[0].pods[0], lab.nodes[1].pods[0]
    words = ("default/node2-pod1", "default/node1-pod1", "tcp/80", "--sport", "4444")
    told = explain(lab, "node1", *words)
    assert told["from"]["port"] == "underlay"
    assert told["policy"]["rules"][0]["rule"] == RULE.replace("[0]", "[1]")
    assert (told["verdict"], told["flow"]["before"]) == ("delivered", None)
    counters = lab.control("node1", "counters")
    assert explain(lab, "node1", *words) == told
    assert {key: value for key, value in lab.control("node1", "counters").items() if key.startswith("drop_")} == {
        key: value for key, value in counters.items() if key.startswith("drop_")
    }
    address = measure.address(web, 4)
    listener = inside.open_socket(web.netns, socket.AF_INET, socket.SOCK_STREAM)
    with listener, inside.open_socket(client.netns, socket.AF_INET, socket.SOCK_STREAM) as sock:
        listener.bind((address, 80))
        listener.listen()
        sock.bind((measure.address(client, 4), 4444))
        sock.connect((address, 80))
        told = explain(lab, "node1", *words, "--flags", "A")
        assert told["flow"]["before"]["state"] == "established"


def test_a_question_that_is_none(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"no capture")
    for words, text in (
        (("-r", str(tmp_path / "none")), "neither a pcap nor a pcapng file"),
        (("10.0.0.1", "nobody/here", "tcp/80"), "no pod nobody/here"),
        (("10.0.0.1", "10.0.0.2", "tcp"), "no protocol and port"),
        (("10.0.0.1", "10.0.0.2", "tcp/80", "--from", "eth7"), "there is no port"),
    ):
        command = [sys.executable, "-m", "fabric.cli.main", "explain", *words, "--run-dir",
                   str(lab.run_dir / "node1" / "run")]  # fmt: skip
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (shown.returncode, shown.stdout) == (1, "")
        assert text in shown.stderr
        assert shown.stderr.count("\n") == 1


def test_a_capture_of_ours(lab: Lab, tmp_path: Path) -> None:
    """A packet out of `fabricctl capture`'s file, taken at the underlay."""
    here, there = lab.nodes[0].pods[1], lab.nodes[1].pods[1]
    file = tmp_path / "seen.pcapng"
    command = ["ip", "netns", "exec", lab.netns("node2"), sys.executable, "-m", "fabric.cli.main", "capture",
               "-w", str(file), "--run-dir", str(lab.run_dir / "node2" / "run"), "-c", "1", "--on", "underlay",
               "--inner", "udp port 9998", "--duration", "20"]  # fmt: skip
    data = ip(measure.address(here, 4), measure.address(there, 4), UDP(sport=4009, dport=9998))
    with subprocess.Popen(command) as process:
        wait_for(lambda: process.poll() is not None or send(here, data), "a packet in the capture", 20)
    with file.open("rb") as captured:
        assert packet_at(captured, 1).link in (pcapng.RAW, pcapng.ETHERNET)
    told = explain(lab, "node2", "-r", str(file))
    assert (told["verdict"], told["from"]["port"]) == ("delivered", "underlay")
