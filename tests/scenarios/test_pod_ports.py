"""Pods on TUN ports of the daemon: who reaches whom, and that one pod's port is no business of another's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from fabric.lab import Lab, LabError, Pod, measure, system
from tests.scenarios import fabric_view, flows, inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

VXLAN_PORT = 8472
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """node1 and node2 with two TUN pods each, node3 a kernel node with two bridged pods."""
    with Lab(nodes=3, pods=2, kernel_peer=True, pod_kind="tun", ipv6=True, mode="veth") as made:
        yield made


@pytest.fixture(autouse=True)
def _clean(lab: Lab) -> Iterator[None]:
    yield
    assert fabric_view.all_checksum_errors(lab) == {}
    assert lab.dead_daemons() == []


def test_all_pods_ping_each_other(lab: Lab) -> None:
    pairs = measure.wait_reachable(lab)
    assert [pair for pair in pairs if not pair.ok] == []


PATHS = {
    "same-node": ("node1-pod1", "node1-pod2"),
    "cross-node": ("node1-pod1", "node2-pod1"),
    "to-kernel": ("node2-pod2", "node3-pod1"),
    "from-kernel": ("node3-pod2", "node1-pod2"),
}


@FAMILIES
@pytest.mark.parametrize("path", PATHS)
def test_tcp_and_udp_arrive_intact(lab: Lab, path: str, family: int) -> None:
    one, other = (lab.pod(name) for name in PATHS[path])
    assert flows.send_tcp(one.netns, other.netns, measure.address(other, family)).intact
    largest = lab.node("node1").mtu - (48 if family == 6 else 28)
    ends = (one.netns, measure.address(one, family), other.netns, measure.address(other, family))
    assert flows.exchange_datagrams(*ends, [1, 2, 64, 1000, largest - 1, largest]) == []
    assert flows.exchange_datagrams(*ends, [4000, 65_000], fragment=True) == []
    assert flows.send_segmented(*ends, 1200, 40_000) == []
    assert fabric_view.all_drops(lab) == {}


@FAMILIES
def test_a_pod_and_its_own_node_reach_each_other(lab: Lab, family: int) -> None:
    node, pod = lab.node("node1"), lab.pod("node1-pod1")
    underlay = node.underlay_ip if family == 4 else node.underlay_ip6
    overlay = overlay_address(lab, "node1", family)
    for address in (underlay, overlay):
        ends = (pod.netns, measure.address(pod, family), node.netns, address)
        assert flows.exchange_datagrams(*ends, [1, 64, 1200]) == []
        assert flows.send_tcp(pod.netns, node.netns, address, 4 << 20).intact
        assert flows.send_tcp(node.netns, pod.netns, measure.address(pod, family), 4 << 20).intact


@FAMILIES
@pytest.mark.parametrize(("node", "pod"), [("node1", "node2-pod1"), ("node1", "node3-pod1"), ("node3", "node1-pod1")])
def test_a_node_reaches_remote_pods_from_its_overlay_address(lab: Lab, node: str, pod: str, family: int) -> None:
    target = lab.pod(pod)
    to = measure.address(target, family)
    with (
        inside.open_udp(target.netns, to) as sink,
        inside.open_socket(lab.netns(node), inside.family_of(to), 2) as out,
    ):
        out.settimeout(5)
        out.sendto(b"who am I", sink.getsockname())
        _, sender = sink.recvfrom(100)
        assert sender[0] == overlay_address(lab, node, family)
        sink.sendto(b"you", sender)
        assert out.recv(100) == b"you"
    assert flows.send_tcp(lab.netns(node), target.netns, to, 4 << 20).intact


def overlay_address(lab: Lab, node: str, family: int) -> str:
    """A node's own address on the overlay: the network address of its pod subnet."""
    found = lab.node(node)
    return (found.subnet if family == 4 else found.subnet6).partition("/")[0]


FOREIGN = {
    4: ["10.244.1.77", "10.244.2.2", "10.244.1.0", "192.0.2.12", "198.51.100.7"],
    6: ["2001:db8:42:1::77", "2001:db8:42:2::2", "2001:db8:0:1::12", "2001:db8:ffff::1"],
}


@FAMILIES
def test_a_spoofed_source_goes_nowhere_and_is_counted(lab: Lab, family: int) -> None:
    """Another pod's, another node's, the neighbour's and the outside world's address."""
    spoofer = lab.pod("node1-pod1")
    targets = [lab.pod(name) for name in ("node1-pod2", "node2-pod1", "node3-pod1")]
    sinks = [inside.open_udp(pod.netns, measure.address(pod, family)) for pod in targets]
    try:
        with fabric_view.counting_drops(lab, "node1") as found:
            for address in FOREIGN[family]:
                spoof(spoofer, address, [sink.getsockname()[:2] for sink in sinks])
            wanted = len(FOREIGN[family]) * len(sinks)
            # What is allowed comes after them on the same path: then nothing can still be under way.
            ends = (spoofer.netns, measure.address(spoofer, family))
            for sink, pod in zip(sinks, targets, strict=True):
                with inside.open_udp(*ends) as honest:
                    honest.sendto(b"honest", sink.getsockname())
                assert sink.recv(100) == b"honest", pod.name
        assert found == {"source_spoofed": wanted}
    finally:
        for sink in sinks:
            sink.close()


def spoof(pod: Pod, address: str, targets: list[tuple[str, int]]) -> None:
    """A datagram from an address that is not the pod's."""
    bits = 128 if ":" in address else 32
    extra = ["nodad"] if bits == 128 else []
    inside.ip(pod.netns, "addr", "add", f"{address}/{bits}", "dev", "lo", *extra)
    try:
        with inside.open_udp(pod.netns, address) as out:
            for target in targets:
                if target[0] != address:
                    out.sendto(b"spoofed", target)
                else:
                    out.sendto(b"spoofed", (targets[0][0], target[1]))
    finally:
        inside.ip(pod.netns, "addr", "del", f"{address}/{bits}", "dev", "lo")


def test_a_pod_cannot_speak_to_a_tunnel_port(lab: Lab) -> None:
    pod = lab.pod("node1-pod1")
    addresses = [ip for node in lab.nodes for ip in (node.underlay_ip, node.underlay_ip6)]
    before = fabric_view.counters(lab, "node1")["drop_pod_to_vtep"]
    for address in addresses:
        with inside.open_udp(pod.netns, measure.address(pod, 6 if ":" in address else 4)) as out:
            out.sendto(bytes(80), (address, VXLAN_PORT))
    wait_for(
        lambda: fabric_view.counters(lab, "node1")["drop_pod_to_vtep"] == before + len(addresses),
        "all attempts to be counted",
    )


def test_a_deleted_port_vanishes_and_nobody_else_notices(lab: Lab) -> None:
    gone, neighbour, remote, kernel = (
        lab.pod(name) for name in ("node1-pod1", "node1-pod2", "node2-pod1", "node3-pod1")
    )
    with (
        flows.probing(neighbour.netns, neighbour.ip, remote.netns, remote.ip) as first,
        flows.probing(kernel.netns, kernel.ip, neighbour.netns, neighbour.ip) as second,
    ):
        for _ in range(5):
            lab.unplug(gone.name)
            wait_for(lambda: "eth0" not in inside.links(gone.netns), "the pod's device to vanish", 2)
            lab.plug(gone.name)
            assert flows.exchange_datagrams(gone.netns, gone.ip, remote.netns, remote.ip, [1, 1200]) == []
        assert first.lost() == second.lost() == 0
        assert first.refused == second.refused == 0


def port_of(pod: Pod) -> str:
    """What the CNI plugin calls the pod's port."""
    return f"cni/fablab/{pod.name}/eth0"


def test_traffic_to_a_pod_that_is_gone_is_answered_or_counted(lab: Lab) -> None:
    """The host's route still leads to the node port: the host's kernel gets it and sends it back, nobody has it."""
    gone, sender = lab.pod("node1-pod1"), lab.pod("node2-pod1")
    lab.control("node1", "port.delete", {"name": port_of(gone)})
    try:
        with inside.open_udp(sender.netns, sender.ip) as out:
            inside.watch_errors(out)
            out.sendto(b"anybody there?", (gone.ip, 9000))
            error = wait_for(lambda: inside.error_of(out), "an ICMP error")
            assert error is not None
            assert error[:2] == (3, 1), "host unreachable"
        assert lab.control("node1", "status")["ready"]
    finally:
        lab.unplug(gone.name)
        lab.plug(gone.name)
    assert flows.exchange_datagrams(sender.netns, sender.ip, gone.netns, gone.ip, [1, 1200]) == []


def test_a_pod_with_a_smaller_mtu_is_respected(lab: Lab) -> None:
    small, remote = lab.pod("node1-pod1"), lab.pod("node2-pod1")
    lab.unplug(small.name)
    lab.plug(small.name, 1280)
    try:
        for family, header, kind in ((4, 28, (3, 4)), (6, 48, (2, 0))):
            to = measure.address(small, family)
            with (
                inside.open_udp(remote.netns, measure.address(remote, family), fragment=False) as out,
                inside.open_udp(small.netns, to) as sink,
            ):
                inside.watch_errors(out)
                out.sendto(flows.data(1400 - header), sink.getsockname())
                error = wait_for(lambda out=out: inside.error_of(out), "Packet Too Big")  # type: ignore[misc]
                assert error is not None
                assert (*error[:2], error[2]) == (*kind, 1280)
                out.sendto(flows.data(1280 - header), sink.getsockname())
                assert sink.recv(2000) == flows.data(1280 - header)
            assert flows.send_tcp(remote.netns, small.netns, to, 4 << 20).intact
            assert flows.send_tcp(small.netns, remote.netns, measure.address(remote, family), 4 << 20).intact
        ends = (remote.netns, remote.ip, small.netns, small.ip)
        assert flows.exchange_datagrams(*ends, [1281, 1350, 1400], fragment=True) == []
    finally:
        lab.unplug(small.name)
        lab.plug(small.name)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "twice": ({"name": "cni/fablab/node1-pod2/eth0"}, r"node1-pod2/eth0 exists already"),
    "no namespace": ({"name": "x", "netns": "/run/netns/fablab-nobody"}, "there is no such namespace"),
    "a file": ({"name": "x", "netns": "/etc/hostname"}, "not? .*namespace"),
    "bad address": ({"name": "x", "addresses": ["10.244.1.256"]}, "10.244.1.256"),
    "not a list": ({"name": "x", "addresses": "10.244.1.9"}, "must be a list"),
    "a taken device": ({"name": "x"}, "eth0"),
    "a long device": ({"name": "x", "ifname": "a" * 16}, "a" * 16),
    "an absurd MTU": ({"name": "x", "ifname": "eth9", "mtu": 20}, "(?i)mtu"),
    "a huge MTU": ({"name": "x", "ifname": "eth9", "mtu": 70_000}, "(?i)mtu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_port_changes_nothing(lab: Lab, case: str) -> None:
    changes, reason = REFUSED[case]
    pod = lab.pod("node1-pod2")
    netns = str(system.NETNS_DIR / pod.netns)
    params = {"netns": netns, "ifname": "eth0", "addresses": ["10.244.1.9"], **changes}
    before = (inside.links(pod.netns), ports(lab))
    with pytest.raises(LabError, match=reason) as caught:
        lab.control("node1", "port.add", params)
    assert "inside the daemon" not in str(caught.value), "one readable line, no crash"
    assert (inside.links(pod.netns), ports(lab)) == before


def test_an_unknown_port_cannot_be_deleted(lab: Lab) -> None:
    for name in ("nobody", "node"):
        with pytest.raises(LabError, match=f"no port {name}"):
            lab.control("node1", "port.delete", {"name": name})


def ports(lab: Lab) -> list[str]:
    """Names of node1's ports."""
    return [port["name"] for port in lab.control("node1", "status")["dataplane"]["ports"]]


def test_ports_come_and_go_quickly(lab: Lab) -> None:
    """Forty ports, added and deleted in an order of their own, leave nothing behind."""
    pod = lab.pod("node1-pod2")
    before = (inside.links(pod.netns), ports(lab))
    names = [f"extra{i}" for i in range(40)]
    for number, name in enumerate(names):
        params = {"name": name, "netns": str(system.NETNS_DIR / pod.netns), "ifname": name}
        lab.control("node1", "port.add", {**params, "addresses": [f"10.244.1.{100 + number}"]})
    assert set(names) < inside.links(pod.netns)
    for name in itertools.chain(names[::2], names[1::2]):
        lab.control("node1", "port.delete", {"name": name})
    wait_for(lambda: (inside.links(pod.netns), ports(lab)) == before, "all devices to vanish", 3)
