"""The same traffic with every switch that changes how packets travel: offloads, workers, encapsulation, MTU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fabric.lab import Lab, Pod, measure
from tests.scenarios import fabric_view, flows

pytestmark = [pytest.mark.root, pytest.mark.slow]

OFF = ("tun-tso", "tun-uso", "udp-gso", "udp-gro")


def switches(**values: str) -> tuple[str, ...]:
    return tuple(word for name, value in values.items() for word in ("--offload", f"{name.replace('_', '-')}={value}"))


VARIANTS: dict[str, dict[str, Any]] = {
    "all offloads off": {"daemon_args": tuple(w for name in OFF for w in ("--offload", f"{name}=off"))},
    "no tun-tso": {"daemon_args": switches(tun_tso="off")},
    "no tun-uso": {"daemon_args": switches(tun_uso="off"), "mode": "veth"},
    "no udp-gso": {"daemon_args": switches(udp_gso="off")},
    "no udp-batch": {"daemon_args": switches(udp_batch="off")},
    "no udp-gro": {"daemon_args": switches(udp_gro="off"), "mode": "veth"},
    "tunnel GSO": {"daemon_args": switches(tap_tunnel_gso="on"), "mode": "veth"},
    "two workers": {"daemon_args": ("--workers", "2")},
    "two workers, veth": {"daemon_args": ("--workers", "2"), "mode": "veth"},
    "another VNI, port and MTU": {"net_conf": {"Backend": {"Type": "vxlan", "VNI": 4711, "Port": 4789, "MTU": 1400}}},
    "flannel's udp": {"net_conf": {"Backend": {"Type": "udp", "Port": 8285}}, "kernel_peer": False, "ipv6": False},
    "IPv6 only": {
        "net_conf": {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "2001:db8:42::/56"},
        "kernel_peer": False,
    },
}


@pytest.fixture(scope="module", params=VARIANTS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    options = {"nodes": 3, "pods": 2, "pod_kind": "mixed", "kernel_peer": True, "ipv6": True, **VARIANTS[request.param]}
    with Lab(**options) as made:
        yield made


@pytest.fixture(autouse=True)
def _clean(lab: Lab) -> Iterator[None]:
    yield
    assert fabric_view.all_checksum_errors(lab) == {}
    assert fabric_view.all_drops(lab) == {}
    assert lab.dead_daemons() == []


def pairs(lab: Lab) -> Iterator[tuple[Pod, Pod]]:
    """Bridged and TUN pods across nodes, both ways."""
    for names in (("node1-pod1", "node2-pod1"), ("node1-pod2", "node2-pod2"), ("node2-pod2", "node3-pod1")):
        one, other = (lab.pod(name) for name in names)
        yield one, other
        yield other, one


def families(lab: Lab) -> list[int]:
    return [6 if ":" in ip else 4 for ip in lab.pods[0].ips]


def test_all_pods_ping_each_other(lab: Lab) -> None:
    assert [pair for pair in measure.wait_reachable(lab) if not pair.ok] == []


def test_tcp_arrives_intact(lab: Lab) -> None:
    for one, other in pairs(lab):
        for family in families(lab):
            done = flows.send_tcp(one.netns, other.netns, measure.address(other, family), 8 << 20)
            assert done.intact, f"{one.name} to {other.name} over IPv{family}: {done.received} bytes"
    in_use = lab.control("node1", "status")["dataplane"]["offloads"]
    injected = fabric_view.counters(lab, "node1")["send_injected"]
    assert bool(injected) == in_use["tap-tunnel-gso"], "a switch that is on is used"


def test_datagrams_arrive_intact(lab: Lab) -> None:
    largest = lab.node("node1").mtu - 48
    for one, other in pairs(lab):
        for family in families(lab):
            ends = (one.netns, measure.address(one, family), other.netns, measure.address(other, family))
            assert flows.exchange_datagrams(*ends, [1, 2, 63, 64, 1000, largest - 1, largest]) == []
            assert flows.exchange_datagrams(*ends, [4000, 65_000], fragment=True) == []
            assert flows.send_segmented(*ends, 1200, 48_000) == []
            assert flows.send_segmented(*ends, 100, 6_350) == []


def test_many_streams_at_once(lab: Lab) -> None:
    """Eight streams, each to be intact: with several workers they travel on several threads."""
    one, other = lab.pod("node1-pod1"), lab.pod("node2-pod2")
    to = measure.address(other, None)
    assert flows.send_tcp_streams(one.netns, other.netns, to, 8, 2 << 20) == []
