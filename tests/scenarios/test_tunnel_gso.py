"""Superframes go to the underlay whole where it passes them on, without being asked, and as long as it does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fabric.lab import Lab, measure, system
from tests.scenarios import fabric_view, flows
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

CLOSED = "table inet host { chain forward { type filter hook forward priority 0; policy drop; }; }"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2, pods=1, pod_kind="tun", mode="veth") as made:
        yield made


def in_use(lab: Lab) -> bool:
    return bool(lab.control("node1", "status")["dataplane"]["offloads"]["tap-tunnel-gso"])


def injected(lab: Lab) -> int:
    return fabric_view.counters(lab, "node1")["send_injected"]


def send(lab: Lab) -> flows.Transfer:
    one, other = lab.pod("node1-pod1"), lab.pod("node2-pod1")
    return flows.send_tcp(one.netns, other.netns, measure.address(other, 4), 8 << 20)


def test_used_past_a_closed_firewall(lab: Lab) -> None:
    netns = lab.node("node1").netns
    system.run(netns, ["nft", CLOSED])
    assert in_use(lab)
    before = injected(lab)
    assert send(lab).intact
    assert injected(lab) > before
    assert fabric_view.all_checksum_errors(lab) == {}


def test_follows_the_offloads_of_the_underlay(lab: Lab) -> None:
    lab.set_mode("wire")
    wait_for(lambda: not in_use(lab), "the TAP to be left")
    before = injected(lab)
    assert send(lab).intact
    assert injected(lab) == before
    lab.set_mode("veth")
    wait_for(lambda: in_use(lab), "the TAP to be used again")
    assert send(lab).intact
    assert injected(lab) > before


def test_goes_with_the_daemon(lab: Lab) -> None:
    netns = lab.node("node1").netns
    lab.stop_daemon("node1")
    assert "podfabric-fabtx" not in system.run(netns, ["nft", "list", "tables"])
    assert "fabtx" not in system.run(netns, ["ip", "-br", "link"])
