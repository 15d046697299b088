"""A kernel VXLAN device of our own: made as flannel makes it, adopted, made anew, kept, removed. Real devices."""

import socket
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from routes.codec import ifinfmsg
from routes.namespace import NamespaceReconciler
from routes.netlink import NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK, Netlink
from routes.state import DesiredState, DeviceState, ReconcileResult, VxlanLink
from tests.routes.conftest import ip, ip_json, kernel_addresses, only, read_sysctl
from tests.routes.overlay import MAC, VXLAN, VXLAN6, is_programmed, overlay

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("underlay")]

MADE_BY_HAND = "link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning"


def link_of(name: str) -> dict[str, Any]:
    (link,) = ip_json(f"-d link show dev {name}")
    return link


def index_of(name: str) -> int:
    return int(link_of(name)["ifindex"])


def reconcile(state: DeviceState) -> ReconcileResult:
    return NamespaceReconciler().reconcile(only(state))


def make_as_flannel(name: str, vxlan: VxlanLink) -> None:
    """Every attribute that flannel's netlink library sends (vishvananda/netlink, link_linux.go, addVxlanAttrs)."""
    local = "IFLA_VXLAN_LOCAL" if vxlan.local.version == 4 else "IFLA_VXLAN_LOCAL6"
    zeros = ("TTL", "TOS", "PROXY", "RSC", "L2MISS", "L3MISS", "UDP_ZERO_CSUM6_TX", "UDP_ZERO_CSUM6_RX")
    data = [
        ("IFLA_VXLAN_ID", vxlan.vni),
        ("IFLA_VXLAN_LINK", index_of(vxlan.underlay)),
        (local, str(vxlan.local)),
        *((f"IFLA_VXLAN_{option}", 0) for option in zeros),
        ("IFLA_VXLAN_LEARNING", int(vxlan.learning)),
        *([("IFLA_VXLAN_GBP", True)] if vxlan.gbp else []),
        ("IFLA_VXLAN_PORT", vxlan.port),
    ]
    message = ifinfmsg()
    information = [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": data})]
    message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": information})]
    with Netlink() as netlink:
        assert netlink.perform([(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message)]) == [None]


@pytest.mark.parametrize(
    "vxlan",
    [VXLAN, VXLAN6, replace(VXLAN, vni=4097, port=4789, learning=True, gbp=True)],
    ids=["IPv4", "IPv6", "other options"],
)
def test_the_device_has_the_attributes_that_flannel_gives_it(vxlan: VxlanLink) -> None:
    make_as_flannel("reference", vxlan)
    reference = link_of("reference")["linkinfo"]
    ip("link del reference")

    result = reconcile(overlay([], vxlan.local.version, vxlan))

    link = link_of(overlay([], vxlan.local.version).name)
    assert result.errors == ()
    assert link["linkinfo"] == reference
    assert (link["address"], "UP" in link["flags"]) == (vxlan.mac.hex(":"), True)
    data = reference["info_data"]
    assert (data["udp_csum"], data["udp_zero_csum6_tx"], data["udp_zero_csum6_rx"]) == (True, False, False)
    assert (data["id"], data["port"], data["learning"], data.get("gbp", False)) == (
        (vxlan.vni, vxlan.port, vxlan.learning, vxlan.gbp)
    )


def test_two_families_have_a_device_each() -> None:
    states = overlay([2, 3], 4), overlay([2, 3], 6)
    reconciler = NamespaceReconciler()

    first, second = reconciler.reconcile(DesiredState(states)), reconciler.reconcile(DesiredState(states))

    assert (first.errors, second.errors, second.changes) == ((), (), ())
    assert all(map(is_programmed, states))
    assert first.devices == {name: index_of(name) for name in ("flannel.1", "flannel-v6.1")}
    assert read_sysctl("net/ipv6/conf/flannel-v6.1/accept_ra") == "0"
    assert kernel_addresses("flannel.1") == {"10.244.1.0/32"}  # and no link-local one


def test_a_compatible_device_is_adopted_and_what_differs_is_set_in_place() -> None:
    ip(MADE_BY_HAND.replace("nolearning", "learning"))
    ip("link set flannel.1 address 02:00:00:00:00:99 mtu 1400 up")
    ip("addr add 10.244.7.0/32 dev flannel.1")
    index = index_of("flannel.1")

    result = reconcile(overlay([2]))

    assert result.errors == ()
    assert {
        f"device flannel.1 MAC set to {MAC.hex(':')} (was 02:00:00:00:00:99)",
        "device flannel.1 MTU set to 1450 (was 1400)",
        "device flannel.1 learning switched off",
        "address 10.244.7.0/32 removed",
    } <= set(result.changes)
    assert index_of("flannel.1") == index
    assert link_of("flannel.1")["linkinfo"]["info_data"]["learning"] is False
    assert is_programmed(overlay([2]))


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (MADE_BY_HAND.replace("id 1", "id 2"), "VNI 2 is not 1"),
        (MADE_BY_HAND.replace("dstport 8472", "dstport 4789"), "port 4789 is not 8472"),
        (MADE_BY_HAND.replace("local 192.0.2.1", "local 192.0.2.9"), "local address 192.0.2.9 is not 192.0.2.1"),
        (MADE_BY_HAND.replace("local 192.0.2.1", ""), "local address None is not 192.0.2.1"),
        (MADE_BY_HAND.replace("dev eth0", "dev wire0"), "underlay index"),
        (MADE_BY_HAND.replace("dev eth0", ""), "underlay index 0"),
        (MADE_BY_HAND + " group 239.1.1.1", "group 239.1.1.1 is not None"),
        (MADE_BY_HAND + " remote 192.0.2.7", "group 192.0.2.7 is not None"),
        (MADE_BY_HAND + " l2miss", "l2miss True is not False"),
        (MADE_BY_HAND + " gbp", "GBP True is not False"),
        ("link add flannel.1 type vxlan dstport 8472 external", "external True is not False"),
    ],
)
def test_an_incompatible_device_is_made_anew(command: str, reason: str) -> None:
    ip(command)
    index = index_of("flannel.1")

    result = reconcile(overlay([2, 3]))

    assert result.errors == ()
    assert result.changes[0].startswith("device flannel.1 removed, to be made anew: ")
    assert reason in result.changes[0]
    assert index_of("flannel.1") != index
    assert is_programmed(overlay([2, 3]))


@pytest.mark.parametrize("change", [{"vni": 2}, {"port": 4789}, {"local": ip_address("192.0.2.200")}, {"gbp": True}])
def test_another_desired_device_replaces_ours_with_all_that_was_on_it(change: dict[str, Any]) -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2, 3])))
    other = overlay([2, 3], vxlan=replace(VXLAN, **change))

    result = reconciler.flush(only(other))

    assert result.errors == ()
    assert is_programmed(other)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("tuntap add dev flannel.1 mode tun", "a tun device"),
        ("link add flannel.1 type bridge", "a bridge device"),
        ("link add flannel.1 type veth peer name other", "a veth device"),
    ],
)
def test_a_device_of_another_kind_is_never_touched(command: str, kind: str) -> None:
    ip(command)
    ip("link set flannel.1 up")
    ip("addr add 10.244.1.0/32 dev flannel.1")
    ip("route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink proto 112")
    before = ip("link show dev flannel.1"), ip("route show"), kernel_addresses("flannel.1")
    reconciler = NamespaceReconciler()

    first = reconciler.reconcile(only(overlay([2])))
    last = reconciler.reconcile(DesiredState())

    (error,) = first.errors
    assert str(error) == (
        f"device flannel.1: it is {kind}, not a VXLAN device, and is left alone; remove it with `ip link del flannel.1`"
    )
    assert (first.changes, first.devices) == ((), {"flannel.1": None})
    assert (last.changes, last.errors) == ((), ())
    assert (ip("link show dev flannel.1"), ip("route show"), kernel_addresses("flannel.1")) == before


def test_a_device_that_was_ours_and_is_now_somebody_elses_is_not_removed() -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2])))
    ip("link del flannel.1")
    ip("link add flannel.1 type vxlan id 77 dev wire0 dstport 4789")

    result = reconciler.reconcile(DesiredState())

    assert (result.changes, result.errors) == ((), ())
    assert link_of("flannel.1")["linkinfo"]["info_data"]["id"] == 77


@pytest.mark.parametrize("adopt", [False, True])
def test_a_device_that_nobody_names_any_more_is_removed(adopt: bool) -> None:
    if adopt:
        ip(MADE_BY_HAND)
    reconciler = NamespaceReconciler()
    both = DesiredState((overlay([2], 4), overlay([2], 6)))
    reconciler.reconcile(both)

    result = reconciler.flush(only(overlay([2], 6)))

    assert "device flannel.1 removed" in result.changes
    assert {link["ifname"] for link in ip_json("link show type vxlan")} == {"flannel-v6.1"}
    assert is_programmed(overlay([2], 6))
    assert reconciler.reconcile(only(overlay([2], 6))).changes == ()


def test_without_memory_no_vxlan_device_is_removed() -> None:
    ip(MADE_BY_HAND)

    result = reconcile(DeviceState("wire0", up=None))

    assert (result.changes, result.errors) == ((), ())
    assert index_of("flannel.1")


def test_the_name_can_pass_to_a_device_that_somebody_else_makes() -> None:
    """From the kernel's data path to one of user space: ours goes, its owner's comes."""
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2])))
    given = DeviceState("flannel.1", addresses=frozenset({ip_interface("10.244.1.0/32")}))

    waiting = reconciler.reconcile(only(given))
    ip("tuntap add dev flannel.1 mode tun")
    done = reconciler.reconcile(only(given))

    assert waiting.changes == ("device flannel.1 removed",)
    assert waiting.devices == {"flannel.1": None}
    assert done.errors == ()
    assert kernel_addresses("flannel.1") == {"10.244.1.0/32"}


def test_a_mac_that_another_program_changes_is_reported_and_set_back() -> None:
    """systemd's MACAddressPolicy=persistent does so to a new device (flannel issue 1155)."""
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2])))
    ip("link set flannel.1 address 02:00:00:00:00:99")

    results = [reconciler.reconcile(only(overlay([2]))) for _ in range(2)]

    (error,) = results[0].errors
    assert error.object == "device flannel.1"
    assert f"its MAC {MAC.hex(':')} was changed to 02:00:00:00:00:99 by another program" in error.reason
    assert "MACAddressPolicy=none" in error.reason
    assert link_of("flannel.1")["address"] == MAC.hex(":")
    assert (results[1].changes, results[1].errors) == ((), ())


def test_another_desired_mac_is_set_on_the_device_in_use() -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2])))
    index = index_of("flannel.1")
    other = overlay([2], vxlan=replace(VXLAN, mac=bytes.fromhex("02aabbccdd0e")))

    result = reconciler.flush(only(other))

    assert result.errors == ()
    assert result.changes == (
        f"device flannel.1 MAC set to 02:aa:bb:cc:dd:0e (was {MAC.hex(':')})",
        "neighbour 10.244.2.0 dev flannel.1 set to 02:00:00:00:00:02",  # a new MAC makes the kernel forget neighbours
    )
    assert is_programmed(other)
    assert index_of("flannel.1") == index


def test_an_mtu_that_does_not_fit_is_said_and_comes_as_near_as_it_can() -> None:
    reconciler = NamespaceReconciler()
    large = overlay([2], mtu=8950)

    first, second = (reconciler.reconcile(only(large)) for _ in range(2))
    ip("link set wire0 mtu 9000")
    ip("link set eth0 mtu 9000")
    third = reconciler.reconcile(only(large))

    expected = "device flannel.1: its MTU 8950 does not fit: eth0 has 1500, which leaves 1450"
    assert [str(error) for error in first.errors] == [str(error) for error in second.errors] == [expected]
    assert second.changes == ()
    assert (third.changes, third.errors) == (("device flannel.1 MTU set to 8950 (was 1450)",), ())


def test_over_ipv6_the_mtu_leaves_20_bytes_less() -> None:
    result = reconcile(overlay([], 6, mtu=1450))

    assert [error.reason for error in result.errors] == ["its MTU 1450 does not fit: eth0 has 1500, which leaves 1430"]
    assert link_of("flannel-v6.1")["mtu"] == 1430


def test_a_missing_underlay_is_said_and_a_new_one_is_used() -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2])))
    ip("link del eth0")

    without = reconciler.reconcile(only(overlay([2])))
    ip("link add eth0 type veth peer name wire0")
    ip("link set eth0 up")
    again = reconciler.reconcile(only(overlay([2])))

    assert "device flannel.1: its underlay interface eth0 is missing" in map(str, without.errors)
    assert (without.changes, without.devices) == ((), {"flannel.1": None})  # the kernel removes it with its underlay
    assert again.errors == ()
    assert is_programmed(overlay([2]))


def test_a_port_that_is_taken_is_said_and_the_peers_wait() -> None:
    ip("link add other type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning")
    ip("link set other up")
    reconciler = NamespaceReconciler()

    refused = reconciler.reconcile(only(overlay([2])))
    ip("link del other")
    done = reconciler.reconcile(only(overlay([2])))

    assert refused.errors
    assert all(error.object == "device flannel.1" for error in refused.errors)
    assert done.errors == ()
    assert is_programmed(overlay([2]))


def test_a_udp_port_that_a_socket_holds_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("0.0.0.0", 8472))
        result = reconcile(overlay([2]))

    assert any("Address already in use; another socket or VXLAN device holds the UDP port" in error.reason
               for error in result.errors)  # fmt: skip
    assert {error.object for error in result.errors} == {"device flannel.1"}
