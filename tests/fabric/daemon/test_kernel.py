"""The kernel's desired state in the words of `routes`: nothing lost, and nothing of somebody else's touched."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.daemon.desired import Translator, device_states
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


LINK = KernelVxlan(1, 8472, "eth0", ip_address("192.0.2.1"), OWN_MAC, learning=False, gbp=False)


def device_of(numbers: list[int], mtu: int, variant: int) -> KernelDevice:
    """A VXLAN device that leads to the peers of these numbers; `variant` 1 gives all of them other MACs."""
    gateways = [IPv4Address(0x0AF40000 + (number << 8)) for number in numbers]
    macs = [bytes([2, 0, 0, 0, variant, number]) for number in numbers]
    return KernelDevice(
        "flannel.1", "vxlan", mtu, (ip_address("10.244.0.0"),),
        tuple(KernelRoute(IPv4Network((int(gateway), 24)), gateway) for gateway in gateways),
        tuple(map(KernelNeighbour, gateways, macs)),
        tuple(KernelFdbEntry(mac, IPv4Address(0xC0000200 + number)) for mac, number in zip(macs, numbers, strict=True)),
        LINK,
    )  # fmt: skip


devices = st.builds(
    device_of, st.lists(st.integers(1, 9), unique=True), st.sampled_from([1450, 1450, 1400]), st.sampled_from([0, 0, 1])
)


@given(st.lists(st.tuples(devices, st.booleans()), min_size=1, max_size=8))
def test_any_path_leads_to_the_same_words(path: list[tuple[KernelDevice, bool]]) -> None:
    """Entries that stay are the same objects, as the calculation graph keeps them."""
    translate = Translator(500)
    known: dict[object, object] = {}

    def kept(entries: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(known.setdefault(entry, entry) for entry in entries)

    for device, with_underlay in path:
        same = replace(device, routes=kept(device.routes), neighbours=kept(device.neighbours), fdb=kept(device.fdb))
        state = KernelState((same, KernelDevice("eth0", "underlay")) if with_underlay else (same,))
        translated = translate(state, NETWORKS)
        whole = device_states(state, NETWORKS, 500)
        assert translated == whole
        assert [each.keys for each in translated] == [each.keys for each in whole]
        assert all(a is b for a, b in zip(translated, translate(state, NETWORKS), strict=True))


def test_entries_that_clash_are_refused_on_any_path() -> None:
    translate = Translator(500)
    device = device_of([1, 2], 1450, 0)
    translate(KernelState((device,)), NETWORKS)
    twice = replace(device, routes=(*device.routes, KernelRoute(device.routes[0].prefix, VIA)))
    with pytest.raises(ValueError, match=r"device flannel\.1: two routes for 10\.244\.1\.0/24"):
        translate(KernelState((twice,)), NETWORKS)
    assert translate(KernelState((device,)), NETWORKS) == device_states(KernelState((device,)), NETWORKS, 500)
