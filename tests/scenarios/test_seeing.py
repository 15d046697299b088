"""`fabricctl flows` and `top` at real daemons under traffic."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from fabric.lab import Lab, measure
from tests.scenarios import inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2, pods=1) as made:
        yield made


def fabricctl(lab: Lab, node: str, *words: str) -> Any:
    command = [sys.executable, "-m", "fabric.cli.main", *words, "--json", "--run-dir", str(lab.run_dir / node / "run")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(shown.stdout)


def test_a_connection_is_shown_on_both_nodes(lab: Lab) -> None:
    client, server = lab.nodes[0].pods[0], lab.nodes[1].pods[0]
    source, target = measure.address(client, 4), measure.address(server, 4)
    with inside.open_udp(server.netns, target, 5000) as there, inside.open_udp(client.netns, source, 4000) as here:
        here.sendto(b"question", (target, 5000))
        there.sendto(b"answer", there.recvfrom(100)[1])
        assert here.recv(100) == b"answer"
    for node, entry, reply in ((lab.nodes[0], "port", "underlay"), (lab.nodes[1], "underlay", "port")):
        def replied(node: Any = node) -> Any:
            found = fabricctl(lab, node.name, "flows", "--proto", "udp", "--peer", other(lab, node))["flows"]
            return found and found[0]["state"] == "replied" and found[0]

        flow = wait_for(replied, "the answer in the table")
        assert (flow["source"], flow["sport"], flow["destination"], flow["dport"]) == (source, 4000, target, 5000)
        ways = ["underlay" if way == "underlay" else "port" for way in (flow["entry"], flow["reply_entry"])]
        assert ways == [entry, reply]
    found = fabricctl(lab, "node1", "top", "--once", "--interval", "0.3")
    assert (found["ready"], found["flows"]["all"]) == (True, True)
    assert [(peer["state"], peer["flows"] >= 1) for peer in found["peers"]] == [("used", True)]
    assert sum(pod["flows"] for pod in found["pods"]) >= 1


def other(lab: Lab, node: Any) -> str:
    """The other node's public address."""
    return next(str(each.underlay_ip) for each in lab.nodes if each is not node)


def test_every_page_is_seen(lab: Lab) -> None:
    """More connections than one page holds, each once."""
    client, server = lab.nodes[0].pods[0], lab.nodes[1].pods[0]
    target = measure.address(server, 4)
    wanted = set(range(10_000, 12_500))
    with inside.open_udp(client.netns, measure.address(client, 4), 4001) as here:

        def all_of_them() -> bool:
            found = fabricctl(lab, "node1", "flows", "--proto", "udp", "--limit", "5000")
            ports = [flow["dport"] for flow in found["flows"] if flow["sport"] == 4001]
            assert len(ports) == len(set(ports))
            for port in sorted(wanted - set(ports)):  # a port's queue holds fewer than come at once
                here.sendto(b"x", (target, port))
            return set(ports) == wanted

        wait_for(all_of_them, "2,500 connections", 20)
