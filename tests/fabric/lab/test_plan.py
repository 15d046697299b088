"""The plan of a lab: names, addresses, options; and the tools' parsing. No root needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest

from fabric import config
from fabric.lab import daemons, echo, plan, registry, state, system, topology, traffic
from fabric.lab.kernel import make_vteps, random_mac
from fabric.lab.plan import LabError, Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": 0}, "--nodes must be 1 to 200, not 0"),
        ({"pods": -1}, "--pods must be 0 to 200, not -1"),
        ({"mode": "wired"}, "--mode must be one of wire, veth, bare, not wired"),
        ({"pod_kind": "tap"}, "--pod-kind must be one of tun, veth, bridge, mixed, not tap"),
        ({"nodes": 1, "kernel_peer": True}, "--peer kernel needs at least two nodes"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LabError) as caught:
        Options(**options).check()
    assert str(caught.value) == words


def test_names_and_addresses() -> None:
    nodes = plan.plan_nodes(Options(nodes=3, pods=2, kernel_peer=True))
    assert [(n.name, n.kind, n.netns, n.underlay_ip) for n in nodes] == [
        ("node1", "fabric", "fablab-node1", "192.0.2.11"),
        ("node2", "fabric", "fablab-node2", "192.0.2.12"),
        ("node3", "kernel", "fablab-node3", "192.0.2.13"),
    ]
    assert [pod.netns for pod in nodes[2].pods] == ["fablab-node3-pod1", "fablab-node3-pod2"]


@pytest.mark.parametrize(
    ("pod_kind", "fabric"),
    [("tun", "tun tun"), ("veth", "veth veth"), ("bridge", "bridge bridge"), ("mixed", "bridge tun")],
)
def test_pod_kinds(pod_kind: plan.PodKinds, fabric: str) -> None:
    nodes = plan.plan_nodes(Options(nodes=2, pods=2, kernel_peer=True, pod_kind=pod_kind))
    assert [" ".join(pod.kind for pod in node.pods) for node in nodes] == [fabric, "bridge bridge"]


def test_pods_follow_the_gateway() -> None:
    node = plan.Node("node1", "fabric", "fablab-node1", "192.0.2.11", "2001:db8:0:1::11")
    node.subnet, node.subnet6 = "10.244.7.0/24", "2001:db8:42:7::/64"
    node.pods = [plan.Pod(f"node1-pod{i}", f"fablab-node1-pod{i}", "node1", "bridge") for i in (1, 2)]
    plan.address_pods(node)
    assert [pod.ips for pod in node.pods] == [["10.244.7.2", "2001:db8:42:7::2"], ["10.244.7.3", "2001:db8:42:7::3"]]


def test_state_round_trip_and_status_shape() -> None:
    nodes = plan.plan_nodes(Options(nodes=1, pods=1))
    assert plan.nodes_from_json(json.loads(json.dumps(plan.nodes_to_json(nodes)))) == nodes
    (node,) = plan.status(nodes)["nodes"]
    assert list(node) == ["name", "kind", "netns", "underlay_ip", "subnet", "pods"]
    assert list(node["pods"][0]) == ["name", "netns", "ips"]


def test_net_conf_is_valid_and_can_be_changed() -> None:
    conf = registry.parse_conf(Options(ipv6=True, net_conf={"SubnetLen": 26}))
    assert conf.ipv4 is not None
    assert conf.ipv4.subnet_len == 26
    assert conf.ipv6 is not None
    assert str(registry.seat(conf, 2).subnet) == "10.244.0.128/26"
    assert str(registry.seat(conf, 3).subnet6) == "2001:db8:42:3::/64"


def test_a_full_network_is_one_line() -> None:
    conf = config.parse('{"Network": "10.244.0.0/22", "Backend": {"Type": "vxlan"}}')
    with pytest.raises(LabError, match=r"10\.244\.0\.0/22 has no subnet for node 4; make Network larger"):
        registry.seat(conf, 4)


def test_leases_of_kernel_nodes_come_back_from_the_store(tmp_path: Path) -> None:
    options = Options(nodes=3, kernel_peer=True, ipv6=True)
    nodes = plan.plan_nodes(options)
    registry.assign(nodes, options)
    vteps = registry.publish(nodes, options, tmp_path)
    assert registry.read_vteps(tmp_path) == vteps["node3"]
    assert [str(vtep.subnet) for vtep in vteps["node3"]] == ["10.244.3.0/24", "2001:db8:42:3::/64"]


def test_macs_are_unicast_and_local() -> None:
    for _ in range(50):
        assert int(random_mac().split(":")[0], 16) & 3 == 2


def test_a_node_without_subnets_has_no_vtep() -> None:
    assert make_vteps(plan.plan_nodes(Options(nodes=1))[0]) == []


@pytest.mark.parametrize("size", [0, 1, 56, 1400])
def test_echo_request_agrees_with_scapy(size: int) -> None:
    four = ICMP(echo.request(echo.socket.AF_INET, 7, 9, size))
    assert (four.type, four.id, four.seq, len(four.payload)) == (8, 7, 9, size)
    rebuilt = ICMP(bytes(four))
    del rebuilt.chksum
    assert ICMP(bytes(rebuilt)).chksum == four.chksum
    six = ICMPv6EchoRequest(echo.request(echo.socket.AF_INET6, 7, 9, size))
    assert (six.type, six.id, six.seq) == (128, 7, 9)


@pytest.mark.parametrize(
    ("family", "packet", "found"),
    [
        (echo.socket.AF_INET, bytes(IP() / ICMP(type=0, id=5, seq=6)), (5, 6)),
        (echo.socket.AF_INET, bytes(IP(options=b"\1\1\1\1") / ICMP(type=0, id=5, seq=6)), (5, 6)),
        (echo.socket.AF_INET, bytes(IP() / ICMP(type=8, id=5, seq=6)), None),
        (echo.socket.AF_INET, b"\x45", None),
        (echo.socket.AF_INET, b"", None),
        (echo.socket.AF_INET6, bytes(ICMPv6EchoReply(id=5, seq=6)), (5, 6)),
        (echo.socket.AF_INET6, bytes(ICMPv6EchoRequest(id=5, seq=6)), None),
    ],
)
def test_echo_reply(family: int, packet: bytes, found: tuple[int, int] | None) -> None:
    assert echo.parse_reply(family, packet) == found


def test_subnet_env() -> None:
    text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\n\nFLANNEL_IPMASQ=false\n"
    assert daemons.parse_subnet_env(text)["FLANNEL_SUBNET"] == "10.244.1.1/24"


def test_udp_counters_add_both_families(tmp_path: Path) -> None:
    four, six = tmp_path / "snmp", tmp_path / "snmp6"
    four.write_text("Udp: InDatagrams NoPorts InErrors InCsumErrors\nUdp: 100 3 20 5\n")
    six.write_text("Ip6InReceives 9\nUdp6InDatagrams 7\nUdp6InErrors 2\nUdp6InCsumErrors 1\n")
    assert traffic.udp_counters(four, six) == 100 + 20 - 5 + 7 + 2 - 1
    assert traffic.udp_counters(four, tmp_path / "none") == 115


@pytest.mark.slow
def test_the_lock_is_exclusive_and_leaves_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "lab"
    lock = state.Lock(run_dir)
    with pytest.raises(LabError, match="another lab command is running"):
        state.Lock(run_dir)
    (run_dir / "node1").mkdir()
    (run_dir / "node1" / "fabricd.log").write_text("x")
    lock.clear()
    lock.close()
    assert not run_dir.exists()
    state.Lock(run_dir).close()


def test_a_broken_state_file_is_no_lab(tmp_path: Path) -> None:
    assert state.read_state(tmp_path) is None
    (tmp_path / state.STATE).write_text("{")
    assert state.read_state(tmp_path) is None
    state.write_state({"kept": True}, tmp_path)
    assert state.read_state(tmp_path) == {"kept": True}


@pytest.mark.parametrize(
    ("argv", "netns"),
    [
        (system.inside("fablab-node1", ["true"]), "fablab-node1"),
        (["ip", "netns", "exec", "other", "true"], "other"),
        (["ip", "netns", "exec"], None),
        (["python3", "fabricd"], None),
        ([], None),
    ],
)
def test_a_process_about_to_enter_a_namespace_is_known(argv: list[str], netns: str | None) -> None:
    line = b"".join(word.encode() + b"\0" for word in argv)
    assert (system.enters(line) or None) == netns


def test_segmentation_features_by_name() -> None:
    chosen = [
        name
        for name in ("tx-udp-segmentation", "tx-udp_tnl-csum-segmentation", "tx-gso-list", "tx-checksumming", "rx-gro")
        if topology.SEGMENTATION.fullmatch(name)
    ]
    assert chosen == ["tx-udp-segmentation", "tx-udp_tnl-csum-segmentation", "tx-gso-list"]
