"""`fabricctl capture` at real daemons: what it takes, what tshark makes of it, and what a refused packet looks like."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.lab import Lab, Node, Pod, measure
from tests.scenarios import inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
Layers = dict[str, Any]
UDP_SEGMENT = 103


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    # By tunnel-GSO a train may leave in one piece, once the daemon has noticed that the interface takes it.
    daemon_args = ("--offload", "tap-tunnel-gso=off")
    with Lab(nodes=2, pods=2, pod_kind="mixed", ipv6=True, daemon_args=daemon_args) as made:
        yield made


def pods(node: Node) -> tuple[Pod, Pod]:
    """On a bridge, on a port."""
    return node.pods[0], node.pods[1]


def capture(lab: Lab, file: Path, traffic: Callable[[], object], *words: str, count: int = 1) -> list[Layers]:
    """What node1's capture with these options has after `count` packets, while `traffic` comes again and again."""
    command = [
        "ip", "netns", "exec", lab.netns("node1"), sys.executable, "-m", "fabric.cli.main", "capture", "-w", str(file),
        "--run-dir", str(lab.run_dir / "node1" / "run"), "-c", str(count), "--duration", "20", "--json", *words,
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: process.poll() is not None or traffic(), "enough packets", 20)
        wait_for(lambda: traffic() is None and process.poll() is not None, "the end of the capture", 20)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert json.loads(said)["packets"] == count, said
    assert file.stat().st_mode & 0o777 == 0o600
    return tshark(file)


def tshark(file: Path) -> list[Layers]:
    shown = subprocess.run(
        ["tshark", "-r", str(file), "-d", "udp.port==8472,vxlan", "-T", "json", "--no-duplicate-keys"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line for line in shown.stderr.splitlines() if "Running as user" not in line] == []
    return [item["_source"]["layers"] for item in json.loads(shown.stdout)]


def comments(found: list[Layers]) -> list[str]:
    return [str(item.get("pkt_comment", {}).get("frame.comment", "")) for item in found]


def interfaces(found: list[Layers]) -> set[str]:
    return {item["frame"]["frame.interface_id_tree"]["frame.interface_name"] for item in found}


def sender(source: Pod, address: str, port: int, family: int = 4) -> Callable[[], None]:
    """Sends one datagram at each call."""

    def send() -> None:
        with inside.open_udp(source.netns, measure.address(source, family)) as sock:
            sock.sendto(b"x" * 100, (address, port))

    return send


@pytest.mark.parametrize("family", [4, 6])
def test_a_packet_is_seen_wherever_it_passes(lab: Lab, tmp_path: Path, family: int) -> None:
    _, source = pods(lab.nodes[0])
    _, target = pods(lab.nodes[1])
    send = sender(source, measure.address(target, family), 7777, family)
    found = capture(lab, tmp_path / "a", send, "--inner", "udp dst port 7777", count=12)
    assert "underlay" in interfaces(found)
    assert len(interfaces(found)) == 2  # and the pod's port: a packet of a pod port does not come by the node port
    for layers in found:
        name = layers["frame"]["frame.interface_id_tree"]["frame.interface_name"]
        assert ("vxlan" in layers) == (name == "underlay")
        assert ("verdict: allowed" in comments([layers])[0]) == (name == "underlay")
        assert "peer: " in comments([layers])[0]


def test_what_is_refused_on_the_way_out(lab: Lab, tmp_path: Path) -> None:
    _, source = pods(lab.nodes[0])
    send = sender(source, str(lab.nodes[1].underlay_ip), 8472)
    found = capture(lab, tmp_path / "a", send, "--drop-reason", "pod_to_vtep", count=3)
    assert interfaces(found) == {"refused"}
    for layers, comment in zip(found, comments(found), strict=True):
        assert comment.startswith(
            "verdict: dropped; reason: pod_to_vtep (a pod tried to speak to a node's tunnel port); from port: "
        )
        assert layers["ip"]["ip.src"] == measure.address(source, 4)
        assert layers["frame"]["frame.len"] == "128"


def test_what_is_refused_on_the_way_in(lab: Lab, tmp_path: Path) -> None:
    """A peer's datagram that is no VXLAN: with its outer headers and the reason."""
    node1, node2 = lab.nodes

    def send() -> None:
        with inside.open_socket(node2.netns, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(bytes(61), (str(node1.underlay_ip), 8472))

    found = capture(lab, tmp_path / "a", send, "--verdict", "dropped", "--drop-reason", "vxlan_flags", count=2)
    for layers, comment in zip(found, comments(found), strict=True):
        assert "reason: vxlan_flags" in comment
        assert f"from peer: {node2.underlay_ip}" in comment
        assert (layers["ip"]["ip.src"], layers["ip"]["ip.dst"]) == (str(node2.underlay_ip), str(node1.underlay_ip))
        assert layers["udp"]["udp.dstport"] == "8472"


def test_only_one_pod(lab: Lab, tmp_path: Path) -> None:
    bridged, ported = pods(lab.nodes[0])
    there = measure.address(pods(lab.nodes[1])[1], 4)
    both = [sender(bridged, there, 7778), sender(ported, there, 7779)]
    found = capture(
        lab, tmp_path / "a", lambda: [send() for send in both] and None, "--pod", measure.address(bridged, 4),
        "--on", "underlay", count=5,
    )  # fmt: skip
    names = [str(layers["udp"]) for layers in found]
    assert len(names) == 5
    text = (tmp_path / "a").read_bytes()
    assert text.count(b"\x1e\x62") >= 5  # port 7778
    assert b"\x1e\x63" not in text


def test_standard_output_and_tcpdump(lab: Lab) -> None:
    """-w - is a stream that tcpdump reads."""
    _, source = pods(lab.nodes[0])
    send = sender(source, measure.address(pods(lab.nodes[1])[1], 4), 7780)
    command = [
        "ip", "netns", "exec", lab.netns("node1"), sys.executable, "-m", "fabric.cli.main", "capture", "-w", "-",
        "--run-dir", str(lab.run_dir / "node1" / "run"), "-c", "3", "--on", "underlay", "--inner", "port 7780",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: send() is None and process.poll() is not None, "three packets", 20)
        assert process.stdout is not None
        written = process.stdout.read()
    shown = subprocess.run(["tcpdump", "-r", "-", "-nn", "-T", "vxlan"], input=written, capture_output=True, check=True)
    assert shown.stdout.count(b".7780: ") == 3


def test_a_train_is_taken_apart(lab: Lab, tmp_path: Path) -> None:
    """Where the interface segments by itself the kernel shows a train in one piece."""
    _, source = pods(lab.nodes[0])
    target = measure.address(pods(lab.nodes[1])[1], 4)

    def send() -> None:
        with inside.open_udp(source.netns, measure.address(source, 4)) as sock:
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 300)
            sock.sendto(bytes(1500), (target, 7785))

    before = lab.mode
    lab.set_mode("veth")
    try:
        found = capture(lab, tmp_path / "a", send, "--on", "underlay", "--inner", "udp port 7785", count=5)
    finally:
        lab.set_mode(before)
    assert {layers["frame"]["frame.len"] for layers in found} == {str(14 + 28 + 22 + 28 + 300)}
    assert [comment.split("; ")[-1] for comment in comments(found)] == [f"{n} of 5 in a train" for n in range(1, 6)]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--inner", "tpc"), "syntax error"),
        (("--pod", "nobody"), "no pod nobody on this node"),
        (("--outer", "udp", "--on", "node"), "nothing can be seen there"),
        (("--inner", "less 100"), "whole frames"),
    ],
)
def test_refusals_are_one_line(lab: Lab, tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    command = [
        "ip", "netns", "exec", lab.netns("node1"), sys.executable, "-m", "fabric.cli.main", "capture",
        "-w", str(tmp_path / "x"), "--run-dir", str(lab.run_dir / "node1" / "run"), *words,
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1), shown.stderr
    assert line in shown.stderr
    assert not (tmp_path / "x").exists()


def test_tshark_captures_by_extcap(lab: Lab, tmp_path: Path) -> None:
    """Wireshark's own way: it finds the interfaces, and captures from one."""
    program = tmp_path / "bin" / "fabricctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -m fabric.cli.main \"$@\"\n")
    program.chmod(0o755)
    directory = tmp_path / "extcap"
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    installed = [program, "extcap", "--install", "--directory", str(directory)]
    subprocess.run(installed, env=environment, check=True, capture_output=True)
    folders = subprocess.run(["tshark", "-G", "folders"], capture_output=True, text=True, check=True).stdout
    system = next(line.split(":", 1)[1].strip() for line in folders.splitlines() if line.startswith("Extcap path"))
    # As root Wireshark takes programs from its own directory only: ours stands in its place for these two runs.
    inside_node = ["ip", "netns", "exec", lab.netns("node1"), "unshare", "--mount", "sh", "-c",
                   'mount --bind "$0" "$1"; shift; exec "$@"', str(directory), system]  # fmt: skip
    listed = [*inside_node, "tshark", "-D"]
    shown = subprocess.run(listed, env=environment, capture_output=True, text=True, check=True)
    assert "podfabric (podfabric: what passes and what is refused)" in shown.stdout
    _, source = pods(lab.nodes[0])
    send = sender(source, measure.address(pods(lab.nodes[1])[1], 4), 7790)
    command = [
        *inside_node, "tshark", "-i", "podfabric", "-o", f"extcap.podfabric.rundir:{lab.run_dir / 'node1' / 'run'}",
        "-f", "udp dst port 7790", "-c", "100", "-w", str(tmp_path / "x.pcapng"),
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: send() is None and process.poll() is not None, "a hundred packets", 20)
    found = tshark(tmp_path / "x.pcapng")
    # The first ones may all be the pod's: what has come to its port before the others were listened at.
    assert len(found) == 100
    assert any("verdict: allowed" in comment for comment in comments(found))
