"""What leads pods in bridges to the daemon: made in a kernel that has nothing of it, kept, and taken away."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from fabric.steering import tables
from fabric.steering.look import Looker, remove
from fabric.steering.rules import BEFORE_MAIN, Steering, rules
from fabric.steering.tables import PodSide
from tests.scenarios import inside
from tun.netns import run_in_netns

NETNS = "fabsteer-test"
WANTED = Steering((ip_network("10.244.1.0/24"), ip_network("2001:db8:42:1::/64")), "flannel.1", "pods.1")


def test_what_finds_nothing_is_dropped_before_the_main_table() -> None:
    """Of each family: every lookup in a table of ours has a rule behind it that drops what it does not find."""
    made = list(rules(WANTED))
    assert {rule.family for rule in made} == {2, 10}
    for family in (2, 10):
        ours = [rule for rule in made if rule.family == family]
        assert [rule.priority for rule in ours] == list(range(BEFORE_MAIN, BEFORE_MAIN + 6))
        for rule in ours:
            behind = [other for other in ours if other.priority > rule.priority and not other.table]
            if rule.table > 255:
                assert any(other.mark in (0, rule.mark) and other.to in (None, rule.to) for other in behind)


def test_a_digest_is_that_of_the_content() -> None:
    one = tables.chains("bridge", WANTED, PodSide(("cni0",), (("cni0", bytes(6)),), ("veth1",)))
    two = tables.chains("bridge", WANTED, PodSide(("cni0",), (("cni0", bytes(6)),), ("veth2",)))
    assert tables.digest(one) != tables.digest(two)
    assert tables.digest(one) == tables.digest(one)


@pytest.fixture
def netns() -> Iterator[str]:
    inside.host_ip("netns", "add", NETNS)
    try:
        for name in ("flannel.1", "pods.1"):
            inside.ip(NETNS, "tuntap", "add", name, "mode", "tun")
            inside.ip(NETNS, "link", "set", name, "up")
        inside.ip(NETNS, "link", "add", "cni0", "address", "02:00:00:00:00:01", "type", "bridge")
        inside.ip(NETNS, "addr", "add", "10.244.1.1/24", "dev", "cni0")
        inside.ip(NETNS, "link", "set", "cni0", "up")
        yield NETNS
    finally:
        inside.host_ip("netns", "del", NETNS)


def ruleset(netns: str) -> str:
    argv = ["ip", "netns", "exec", netns, "nft", "list", "ruleset"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.mark.root
def test_everything_is_made_kept_and_taken_away(netns: str) -> None:
    looker = Looker()

    def look(wanted: Steering | None = WANTED) -> tuple[str, ...]:
        result = inside.call(netns, lambda: looker.look(wanted))
        assert result.problems == ()
        return result.changes

    assert len(look()) == 2 + 2 * 2 + 2 * 6
    assert look() == ()
    assert look() == ()
    assert 'iifname "cni0"' in ruleset(netns)
    inside.ip(netns, "link", "add", "veth1", "type", "veth", "peer", "name", "veth2")
    inside.ip(netns, "link", "set", "veth1", "master", "cni0")
    assert [change.split(":")[0] for change in look()] == ["table bridge podfabric_steer"]
    assert 'iifname "veth1" drop' in ruleset(netns)
    subprocess.run(["ip", "netns", "exec", netns, "nft", "flush", "chain", "bridge", "podfabric_steer", "forward"],
                   check=True)  # fmt: skip
    inside.ip(netns, "rule", "del", "pref", "1123")
    assert len(look()) == 2
    assert look() == ()
    assert len(run_in_netns(inside.NETNS_DIR / netns, remove)) == 2 + 2 * 2 + 2 * 6
    assert "podfabric" not in ruleset(netns)
    assert look(None) == ()
