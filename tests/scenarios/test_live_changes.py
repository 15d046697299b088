"""The interface towards the other nodes changes under a running daemon: traffic is back soon, without a restart."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fabric.lab import Lab, daemons
from tests.scenarios import flows, inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

TARGET_SECONDS = 3.0
GATE_SECONDS = 2 * TARGET_SECONDS
PEER_SECONDS = 2 * 1.0
NODE = "fablab-node1"
UNDERLAY = "fablab-underlay"
FRAGMENTATION_NEEDED = (3, 4)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2, pods=1, pod_kind="bridge", ipv6=True, mode="veth") as made:
        yield made


@pytest.fixture(autouse=True)
def _undisturbed(lab: Lab) -> Iterator[None]:
    """The same daemons before and after, forwarding in both families, with nothing left to complain about."""
    pids, one, other = lab.daemon_pids(), *lab.pods
    yield
    assert lab.daemon_pids() == pids
    assert lab.dead_daemons() == []
    for family in (0, 1):
        assert flows.send_tcp(one.netns, other.netns, other.ips[family], 1 << 20).intact
    status = lab.control("node1", "status")
    assert (status["kernel"]["problems"], status["health"]["problems"]) == ([], [])


def known_to_node2(lab: Lab) -> dict[str, object]:
    """node1's lease as node2 has it."""
    subnet = lab.node("node1").subnet
    found = next(peer for peer in lab.control("node2", "peers") if subnet in peer["subnets"])
    return {name: found[name] for name in ("key", "subnets", "public", "macs", "state")}


def set_address(old: str, new: str) -> None:
    """Another address of eth0 in place of one; with IPv4 the kernel takes the old one's routes with it."""
    length, more = (64, ("nodad",)) if ":" in old else (24, ())
    inside.ip(NODE, "addr", "del", f"{old}/{length}", "dev", "eth0")
    inside.ip(NODE, "addr", "add", f"{new}/{length}", "dev", "eth0", *more)


@pytest.mark.parametrize("version", [4, 6])
def test_another_underlay_address(lab: Lab, version: int) -> None:
    one, other = lab.pods
    node = lab.node("node1")
    old = node.underlay_ip if version == 4 else node.underlay_ip6
    new = "192.0.2.111" if version == 4 else "2001:db8:0:1::111"
    before = known_to_node2(lab)
    with flows.probing(one.netns, one.ips[version == 6], other.netns, other.ips[version == 6]) as probes:
        for gone, wanted in ((old, new), (new, old)):
            start = time.monotonic()
            set_address(gone, wanted)
            wait_for(lambda wanted=wanted: wanted in known_to_node2(lab)["public"], "the new address in the lease")
            published = time.monotonic()
            probes.wait_answer(published, "traffic after the lease's change", PEER_SECONDS)
            assert probes.outage(start) <= GATE_SECONDS
            assert wanted in lab.control("node1", "status")["underlay"]
    assert known_to_node2(lab) == before, "subnet, MAC and key never changed"


def test_traffic_of_the_host_goes_on_too(lab: Lab) -> None:
    """The node port is the same device throughout: its index, its address, its routes."""
    node = lab.node("node1")
    device = inside.ip_json(NODE, "link", "show", "dev", "flannel.1")[0]["ifindex"]
    routes = [route["dst"] for route in inside.ip_json(NODE, "route", "show", "proto", "112")]
    set_address(node.underlay_ip, "192.0.2.111")
    wait_for(lambda: "192.0.2.111" in lab.control("node1", "status")["public"], "the move")
    set_address("192.0.2.111", node.underlay_ip)
    wait_for(lambda: node.underlay_ip in lab.control("node1", "status")["public"], "the move back")
    assert inside.ip_json(NODE, "link", "show", "dev", "flannel.1")[0]["ifindex"] == device
    assert [route["dst"] for route in inside.ip_json(NODE, "route", "show", "proto", "112")] == routes


def mtu_of_pods(lab: Lab) -> tuple[int, str]:
    """MTU of the node port, and what subnet.env says."""
    link = inside.ip_json(NODE, "link", "show", "dev", "flannel.1")[0]["mtu"]
    env = daemons.parse_subnet_env(daemons.NodeFiles(lab.run_dir / "node1").subnet_file.read_text())
    return link, env["FLANNEL_MTU"]


@pytest.mark.parametrize("mtu", [1400, 9000])
def test_another_underlay_mtu(lab: Lab, mtu: int) -> None:
    """Down and up again under a TCP transfer and datagrams with DF: the sender is told, nothing hangs."""
    one, other = lab.pods
    inside.ip(UNDERLAY, "link", "set", "node1", "mtu", str(max(mtu, 1500)))
    inside.ip(NODE, "link", "set", "eth0", "mtu", str(mtu))
    try:
        wanted = (mtu - 70, str(mtu - 70))
        wait_for(lambda: mtu_of_pods(lab) == wanted, f"{wanted}, not {mtu_of_pods(lab)}", GATE_SECONDS)
        if mtu < 1500:
            with inside.open_udp(one.netns, one.ip, fragment=False) as out:
                inside.watch_errors(out)
                out.sendto(bytes(1430 - 28), (other.ip, 9))
                found = wait_for(lambda: inside.error_of(out), "an ICMP error")
                assert (found[:2], found[2]) == (FRAGMENTATION_NEEDED, mtu - 70)
        assert flows.send_tcp(one.netns, other.netns, other.ip, 4 << 20).intact
    finally:
        inside.ip(NODE, "link", "set", "eth0", "mtu", "1500")
        inside.ip(UNDERLAY, "link", "set", "node1", "mtu", "1500")
    wait_for(lambda: mtu_of_pods(lab) == (1430, "1430"), "the old MTU again", GATE_SECONDS)


def test_the_interface_is_replaced_by_another_of_its_name(lab: Lab) -> None:
    one, other = lab.pods
    node = lab.node("node1")
    with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
        start = time.monotonic()
        inside.ip(NODE, "link", "del", "eth0")
        inside.ip(UNDERLAY, "link", "add", "node1", "type", "veth", "peer", "name", "eth0", "netns", NODE)
        inside.ip(UNDERLAY, "link", "set", "node1", "master", "underlay", "up")
        inside.ip(NODE, "link", "set", "eth0", "up")
        inside.ip(NODE, "addr", "add", f"{node.underlay_ip6}/64", "dev", "eth0", "nodad")
        wait_for(lambda: lab.control("node1", "status")["health"]["problems"], "the complaint", GATE_SECONDS)
        inside.ip(NODE, "addr", "add", f"{node.underlay_ip}/24", "dev", "eth0")
        there = time.monotonic()
        probes.wait_answer(there, "traffic over the new interface", GATE_SECONDS)
        assert probes.outage(start) <= GATE_SECONDS + (there - start)
    wait_for(lambda: not lab.control("node1", "status")["health"]["problems"], "its end", GATE_SECONDS)


def test_changes_faster_than_they_are_followed_end_with_the_last(lab: Lab) -> None:
    node = lab.node("node1")
    last = node.underlay_ip
    for number in (*range(101, 111), 11):
        set_address(last, f"192.0.2.{number}")
        last = f"192.0.2.{number}"
    assert last == node.underlay_ip
    one, other = lab.pods
    with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
        probes.wait_answer(time.monotonic(), "traffic after the last change", GATE_SECONDS)
    wait_for(lambda: node.underlay_ip in known_to_node2(lab)["public"], "the last address in the lease", GATE_SECONDS)
