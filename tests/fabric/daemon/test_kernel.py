"""The kernel's desired state in the words of `routes`: nothing lost, and nothing of somebody else's touched."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from fabric.daemon.kernel import device_states
from fabric.model import (
    KernelDevice,
    KernelFdbEntry,
    KernelNeighbour,
    KernelRoute,
    KernelState,
    KernelVxlan,
)
from routes.state import DeviceState, FdbEntry, Neighbour, Route, Sysctl, VxlanLink, overlay_sysctls

NETWORKS = (ip_network("10.244.0.0/16"), ip_network("fd00::/56"))
OURS = frozenset({*NETWORKS, ip_network("fe80::/10")})
SUBNET, VIA, AT = ip_network("10.244.2.0/24"), ip_address("10.244.2.0"), ip_address("192.0.2.2")
MAC, OWN_MAC = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")


def translated(device: KernelDevice) -> DeviceState:
    (state,) = device_states(KernelState((device,)), NETWORKS, 500)
    return state


def test_the_node_port() -> None:
    addresses = (ip_address("10.244.1.0"), ip_address("fd00:0:0:1::"))
    port = KernelDevice("flannel.1", "node port", 1450, addresses, (KernelRoute(SUBNET, VIA),))
    assert translated(port) == DeviceState(
        name="flannel.1",
        mtu=1450,
        txqueuelen=500,
        addresses=frozenset({ip_interface("10.244.1.0/32"), ip_interface("fd00:0:0:1::/128")}),
        routes=frozenset({Route(SUBNET, VIA, onlink=True)}),
        sysctls=overlay_sysctls("flannel.1"),
        networks=OURS,
    )


def test_a_vxlan_device_of_the_kernels() -> None:
    link = KernelVxlan(7, 4789, "eth0", ip_address("192.0.2.1"), OWN_MAC, learning=True, gbp=True)
    device = KernelDevice(
        "flannel.7", "vxlan", 1450, (ip_address("10.244.1.0"),), (KernelRoute(SUBNET, VIA),),
        (KernelNeighbour(VIA, MAC),), (KernelFdbEntry(MAC, AT),), link,
    )  # fmt: skip
    assert translated(device) == DeviceState(
        name="flannel.7",
        mtu=1450,
        addresses=frozenset({ip_interface("10.244.1.0/32")}),
        routes=frozenset({Route(SUBNET, VIA, onlink=True)}),
        sysctls=overlay_sysctls("flannel.7"),
        networks=OURS,
        vxlan=VxlanLink(7, 4789, "eth0", ip_address("192.0.2.1"), OWN_MAC, learning=True, gbp=True),
        neighbours=frozenset({Neighbour(VIA, MAC)}),
        fdb=frozenset({FdbEntry(MAC, AT)}),
    )


def test_of_an_underlay_device_only_our_routes_are_named() -> None:
    device = KernelDevice("eth0", "underlay", routes=(KernelRoute(SUBNET, AT, onlink=False),))
    assert translated(device) == DeviceState("eth0", up=None, routes=frozenset({Route(SUBNET, AT, onlink=False)}))


def test_a_device_where_strangers_packets_come_out_filters_loosely() -> None:
    loose = translated(KernelDevice("flannel.1", "node port", 1450, loose=True))
    assert loose.sysctls - overlay_sysctls("flannel.1") == {Sysctl("net/ipv4/conf/flannel.1/rp_filter", "2")}
