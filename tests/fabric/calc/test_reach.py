"""By which way each type of peer is reached from each type of node, and what that asks of data path and kernel."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from fabric import calc
from fabric.leases import derived_mac
from fabric.model import (
    ExtensionPeer,
    KernelDevice,
    KernelFdbEntry,
    KernelNeighbour,
    KernelRoute,
    KernelVxlan,
    Peer,
)
from tests.fabric.calc.worlds import NODES, NODES6, OWN_MAC, conf, dual, lease, links, node, value

PEER = {
    "vxlan": lease("10.244.2.0-24", value("192.0.2.2")),
    "": lease("10.244.2.0-24", value("192.0.2.2", kind="")),
    "host-gw": lease("10.244.2.0-24", value("192.0.2.2", kind="host-gw")),
    "extension": lease("10.244.2.0-24", value("192.0.2.2", kind="extension")),
    "wireguard": lease("10.244.2.0-24", value("192.0.2.2", kind="wireguard")),
}
SUBNET, AT, MAC = ip_network("10.244.2.0/24"), ip_address("192.0.2.2"), bytes.fromhex("020000000002")
ONLINK = KernelRoute(SUBNET, ip_address("10.244.2.0"))
PLAIN = KernelRoute(SUBNET, AT, onlink=False)
NO_COMMAND = "backend is 'extension', ours is {!r}: there is no command for it"
HELD = "the udp format is not available: port 8285 is held by somebody"


def reached(own: str, kind: str, on_link: bool | None = True) -> tuple[calc.Verdict, calc.Outcome]:
    known = {} if on_link is None else links(n2="eth0" if on_link else None)
    outcome = calc.calculate(NODES[own], [PEER[kind]], None, known)
    (verdict,) = outcome.verdicts
    return verdict, outcome


@pytest.mark.parametrize(
    ("own", "kind", "way"),
    [
        ("vxlan", "vxlan", "vxlan"), ("vxlan", "", "udp"), ("vxlan", "host-gw", "host-gw"),
        ("vxlan, direct", "vxlan", "direct route"), ("vxlan, direct", "", "udp"),
        ("vxlan, direct", "host-gw", "host-gw"), ("vxlan, kernel", "vxlan", "vxlan (kernel)"),
        ("vxlan, kernel", "", "udp"), ("vxlan, kernel", "host-gw", "host-gw"),
        ("vxlan, kernel, direct", "vxlan", "direct route"),
        ("udp", "vxlan", "vxlan"), ("udp", "", "udp"), ("udp", "host-gw", "host-gw"),
        ("host-gw", "vxlan", "vxlan"), ("host-gw", "", "udp"), ("host-gw", "host-gw", "host-gw"),
        ("extension", "vxlan", "vxlan"), ("extension", "", "udp"), ("extension", "host-gw", "host-gw"),
        ("extension", "extension", "extension"), ("vxlan, udp held", "vxlan", "vxlan"),
    ],
)  # fmt: skip
def test_a_peer_is_reached_by_its_own_type(own: str, kind: str, way: str) -> None:
    verdict, _ = reached(own, kind)
    assert (verdict.way, verdict.reason, verdict.used) == (way, "", True)


@pytest.mark.parametrize(
    ("own", "kind", "on_link", "reason"),
    [
        *((own, "wireguard", True, "backend 'wireguard' is not available in this version") for own in NODES
          if own != "alloc"),
        *(("alloc", kind, True, 'our backend "alloc" has no data path') for kind in PEER),
        ("vxlan", "host-gw", False, "192.0.2.2 is not on link"),
        ("host-gw", "host-gw", False, "192.0.2.2 is not on link"),
        ("host-gw", "host-gw", None, "whether 192.0.2.2 is on link is not known yet"),
        ("vxlan", "extension", True, NO_COMMAND.format("vxlan")),
        ("host-gw", "extension", True, NO_COMMAND.format("host-gw")),
        ("vxlan, udp held", "", True, HELD),
    ],
)  # fmt: skip
def test_a_peer_that_cannot_be_reached_says_why(own: str, kind: str, on_link: bool | None, reason: str) -> None:
    verdict, outcome = reached(own, kind, on_link)
    assert (verdict.way, verdict.reason, verdict.used) == ("", reason, False)
    assert outcome.forwarding.peers == ()
    assert [route for device in outcome.kernel.devices for route in device.routes] == []
    assert outcome.extension == ()


@pytest.mark.parametrize("vni", [2, 0, True, None, "1", 1.0])
def test_another_vni_is_said(vni: object) -> None:
    data = value("192.0.2.2", BackendData={"VNI": vni, "VtepMAC": "02:00:00:00:00:02"})
    (verdict,) = calc.calculate(NODES["udp"], [lease("10.244.2.0-24", data)]).verdicts
    shown = vni if isinstance(vni, int) and not isinstance(vni, bool) else None
    assert verdict.reason == f"VNI is {shown}, ours is 1"


@pytest.mark.parametrize("on_link", [False, None])
@pytest.mark.parametrize(("own", "way"), [("vxlan, direct", "vxlan"), ("vxlan, kernel, direct", "vxlan (kernel)")])
def test_without_a_common_link_direct_routing_takes_the_tunnel(own: str, way: str, on_link: bool | None) -> None:
    assert reached(own, "vxlan", on_link)[0].way == way


@pytest.mark.parametrize(("own", "kind"), [("vxlan", "vxlan"), ("udp", "vxlan"), ("vxlan, direct", "")])
def test_direct_routing_is_for_vxlan_and_only_when_asked(own: str, kind: str) -> None:
    verdict, outcome = reached(own, kind)
    assert verdict.way != "direct route"
    assert outcome.asked == frozenset()


@pytest.mark.parametrize(
    ("own", "kind", "asked"),
    [("vxlan, direct", "vxlan", True), ("vxlan, kernel, direct", "vxlan", True), ("vxlan", "host-gw", True),
     ("host-gw", "host-gw", True), ("host-gw", "vxlan", False), ("udp", "", False), ("alloc", "host-gw", False)],
)  # fmt: skip
def test_only_addresses_whose_link_matters_are_asked_about(own: str, kind: str, asked: bool) -> None:
    for on_link in (True, False, None):
        assert reached(own, kind, on_link)[1].asked == ({AT} if asked else frozenset())


# --- what the data path gets ---


def peer(encapsulation: str | None, accepts: set[str], mtu: int, direct: bool = False) -> Peer:
    named = encapsulation == "vxlan"
    return Peer(
        "10.244.2.0/24", AT, (SUBNET,), encapsulation, MAC if named else bytes(6), mtu, frozenset(accepts), not named,  # type: ignore[arg-type]
        direct,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "kind", "expected", "formats"),
    [
        ("vxlan", "vxlan", peer("vxlan", {"vxlan"}, 1450), {"vxlan"}),
        ("vxlan", "", peer("udp", {"vxlan", "udp"}, 1472), {"vxlan", "udp"}),
        ("vxlan", "host-gw", peer(None, {"vxlan"}, 1450), {"vxlan"}),
        ("vxlan, direct", "vxlan", peer("vxlan", {"vxlan"}, 1450, direct=True), {"vxlan"}),
        ("udp", "", peer("udp", {"udp"}, 1472), {"udp"}),
        ("udp", "vxlan", peer("vxlan", {"vxlan", "udp"}, 1450), {"vxlan", "udp"}),
        ("udp", "host-gw", peer(None, {"udp"}, 1472), {"udp"}),
        ("host-gw", "vxlan", peer("vxlan", {"vxlan"}, 1450), {"vxlan"}),
        ("host-gw", "", peer("udp", {"udp"}, 1472), {"udp"}),
        ("host-gw", "host-gw", None, set()),
        ("vxlan, kernel", "vxlan", None, set()),
        ("vxlan, kernel", "", peer("udp", {"udp"}, 1472), {"udp"}),
        ("vxlan, kernel", "host-gw", None, set()),
        ("extension", "vxlan", peer("vxlan", {"vxlan"}, 1450), {"vxlan"}),
        ("extension", "extension", None, set()),
        ("alloc", "vxlan", None, set()),
        ("vxlan, udp held", "", None, {"vxlan", "udp"}),
    ],
)  # fmt: skip
def test_formats_sent_and_accepted(own: str, kind: str, expected: Peer | None, formats: set[str]) -> None:
    """Accepted are our own type's format and the peer's; a node with nothing to speak needs no data path at all."""
    _, outcome = reached(own, kind)
    assert outcome.forwarding.peers == ((expected,) if expected else ())
    assert outcome.formats_needed == formats


def test_our_mac_is_our_leases_or_follows_from_our_address() -> None:
    for own, mac in (("vxlan", OWN_MAC), ("vxlan, kernel", OWN_MAC), ("udp", derived_mac(ip_address("192.0.2.1")))):
        (vtep,) = calc.calculate(NODES[own], []).forwarding.vteps
        assert (vtep.underlay, vtep.mac, vtep.prefixes) == (
            ip_address("192.0.2.1"), mac, (ip_network("10.244.1.0/24"),),
        )  # fmt: skip
    derived = derived_mac(ip_address("192.0.2.1"))
    assert len(derived) == 6
    assert derived[0] & 3 == 2
    assert derived != derived_mac(ip_address("192.0.2.2"))


# --- what the kernel gets ---

NODE_PORT = KernelDevice("flannel.1", "node port", 1450, (ip_address("10.244.1.0"),))
UNDERLAY = KernelDevice("eth0", "underlay")
VXLAN = KernelVxlan(1, 8472, "eth0", ip_address("192.0.2.1"), OWN_MAC, learning=False, gbp=False)


def devices(own: str, kind: str, on_link: bool | None = True) -> tuple[KernelDevice, ...]:
    return reached(own, kind, on_link)[1].kernel.devices


def test_a_tunnelled_peer_has_a_route_into_the_node_port() -> None:
    port = KernelDevice("flannel.1", "node port", 1450, NODE_PORT.addresses, (ONLINK,))
    assert devices("vxlan", "vxlan") == (port, UNDERLAY)
    assert devices("vxlan", "") == (port, UNDERLAY)


def test_a_host_gw_peer_has_a_route_on_the_underlay() -> None:
    route = KernelDevice("eth0", "underlay", routes=(PLAIN,))
    assert devices("host-gw", "host-gw") == (route,)
    # What it sends us comes out of the node port, while its packets go by eth0.
    loose = KernelDevice("flannel.1", "node port", 1450, NODE_PORT.addresses, loose=True)
    assert devices("vxlan", "host-gw") == (loose, route)
    assert devices("vxlan, direct", "vxlan") == (loose, route)


def test_on_another_link_the_route_is_there() -> None:
    outcome = calc.calculate(NODES["host-gw"], [PEER["host-gw"]], None, links(n2="eth1"))
    assert outcome.kernel.devices == (UNDERLAY, KernelDevice("eth1", "underlay", routes=(PLAIN,)))


@pytest.mark.parametrize("device", ["flannel.1", "flannel-v6.1", "fabric.1"])
def test_what_is_on_link_of_a_device_of_ours_is_not_on_link(device: str) -> None:
    (verdict,) = calc.calculate(NODES["vxlan, kernel"], [PEER["host-gw"]], None, links(n2=device)).verdicts
    assert verdict.reason == "192.0.2.2 is not on link"
    (verdict,) = calc.calculate(NODES["vxlan, kernel, direct"], [PEER["vxlan"]], None, links(n2=device)).verdicts
    assert verdict.way == "vxlan (kernel)"


def test_the_kernels_vxlan_device_is_flannels() -> None:
    device = KernelDevice(
        "flannel.1", "vxlan", 1450, (ip_address("10.244.1.0"),), (ONLINK,),
        (KernelNeighbour(ip_address("10.244.2.0"), MAC),), (KernelFdbEntry(MAC, AT),), VXLAN,
    )  # fmt: skip
    assert devices("vxlan, kernel", "vxlan") == (device, UNDERLAY)


def test_beside_the_kernels_device_other_types_have_a_node_port_of_another_name() -> None:
    port = KernelDevice("fabric.1", "node port", 1450, (ip_address("10.244.1.0"),), (ONLINK,))
    vxlan = KernelDevice("flannel.1", "vxlan", 1450, (ip_address("10.244.1.0"),), vxlan=VXLAN, loose=True)
    assert devices("vxlan, kernel", "") == (port, vxlan, UNDERLAY)


def test_a_direct_route_leaves_nothing_on_the_vxlan_device() -> None:
    vxlan = KernelDevice("flannel.1", "vxlan", 1450, (ip_address("10.244.1.0"),), vxlan=VXLAN, loose=True)
    assert devices("vxlan, kernel, direct", "vxlan") == (vxlan, KernelDevice("eth0", "underlay", routes=(PLAIN,)))


def test_a_node_port_only_where_something_needs_it() -> None:
    port = KernelDevice("flannel.1", "node port", 1450, (ip_address("10.244.1.0"),), (ONLINK,))
    assert devices("host-gw", "") == (port, UNDERLAY)
    assert devices("extension", "extension") == (UNDERLAY,)
    assert devices("vxlan, udp held", "") == (NODE_PORT, UNDERLAY)
    assert [device.name for device in devices("udp", "wireguard")] == ["flannel.1", "eth0"]
    assert devices("alloc", "host-gw") == ()


def test_attributes_of_the_kernels_device() -> None:
    net = conf({"Type": "vxlan", "Datapath": "kernel", "VNI": 7, "Port": 4789, "MTU": 1400, "GBP": True,
                "Learning": True}, ipv6=True)  # fmt: skip
    four, six, underlay = calc.calculate(node(net), []).kernel.devices
    assert (four.name, four.mtu, six.name, six.mtu) == ("flannel.7", 1350, "flannel-v6.7", 1330)
    assert (four.addresses, six.addresses) == ((ip_address("10.244.1.0"),), (ip_address("fd00:0:0:1::"),))
    assert four.vxlan == KernelVxlan(7, 4789, "eth0", ip_address("192.0.2.1"), OWN_MAC, learning=True, gbp=True)
    assert six.vxlan is not None
    assert (six.vxlan.local, six.vxlan.mac.hex()) == (ip_address("2001:db8::1"), "020000000601")
    assert underlay == UNDERLAY


# --- two families ---


def test_dual_stack_rides_family_on_family() -> None:
    outcome = calc.calculate(NODES6["vxlan"], [lease(*dual(2))])
    assert [(str(peer.underlay), [str(p) for p in peer.prefixes], peer.mac.hex(), peer.mtu)
            for peer in outcome.forwarding.peers] == [
        ("192.0.2.2", ["10.244.2.0/24"], "020000000002", 1450),
        ("2001:db8::2", ["fd00:0:0:2::/64"], "020000000602", 1430),
    ]  # fmt: skip
    assert outcome.kernel.devices[0].addresses == (ip_address("10.244.1.0"), ip_address("fd00:0:0:1::"))
    assert [vtep.mac.hex() for vtep in outcome.forwarding.vteps] == ["020000000001", "020000000601"]


def test_each_family_has_a_way_of_its_own() -> None:
    on_link = {AT: "eth0", ip_address("2001:db8::2"): None}
    (verdict,) = calc.calculate(NODES6["vxlan"], [lease(*dual(2))], None, on_link).verdicts
    assert (verdict.way, verdict.reason) == ("direct route / vxlan", "")


def test_one_family_may_be_reached_and_the_other_not() -> None:
    on_link = {AT: "eth0", ip_address("2001:db8::2"): None}
    outcome = calc.calculate(NODES6["host-gw"], [lease(*dual(2, "host-gw"))], None, on_link)
    (verdict,) = outcome.verdicts
    assert (verdict.way, verdict.reason, verdict.used) == ("host-gw", "IPv6: 2001:db8::2 is not on link", True)
    assert outcome.kernel.devices == (KernelDevice("eth0", "underlay", routes=(PLAIN,)),)


def test_a_udp_peer_of_two_families_is_reached_by_ipv4() -> None:
    outcome = calc.calculate(NODES6["vxlan"], [lease(*dual(2, ""))])
    (verdict,) = outcome.verdicts
    assert (verdict.way, verdict.reason) == ("udp", "IPv6: the udp format carries IPv4 only")
    assert [peer.prefixes for peer in outcome.forwarding.peers] == [(SUBNET,)]


def test_an_ipv4_only_peer_of_a_dual_stack_node_is_used_for_ipv4() -> None:
    outcome = calc.calculate(NODES6["vxlan"], [PEER["vxlan"]])
    assert [str(peer.underlay) for peer in outcome.forwarding.peers] == ["192.0.2.2"]


def test_a_family_without_an_underlay_address_is_not_reached() -> None:
    lame = node(NODES6["vxlan"].conf, underlay=(ip_address("192.0.2.1"),), public=(ip_address("192.0.2.1"),))
    outcome = calc.calculate(lame, [lease(*dual(2))])
    (verdict,) = outcome.verdicts
    assert (verdict.way, verdict.reason) == ("vxlan", "IPv6: we have no IPv6 underlay address")


def test_a_peer_behind_our_own_address_is_not_reached() -> None:
    """Behind a NAT we send from another address than we publish; a peer that names it would be ourselves."""
    behind = node(NODES["vxlan"].conf, underlay=(AT,))
    (verdict,) = calc.calculate(behind, [PEER["vxlan"]]).verdicts
    assert (verdict.way, verdict.reason) == ("", "PublicIP 192.0.2.2 is our own")


# --- extension ---


def test_an_extension_peer_is_handed_to_the_commands() -> None:
    _, outcome = reached("extension", "extension")
    assert outcome.extension == (
        ExtensionPeer("10.244.2.0-24", SUBNET, None, AT, None, "data of 192.0.2.2"),  # type: ignore[arg-type]
    )


def test_an_extension_peer_may_have_no_data() -> None:
    found = lease("10.244.2.0-24", value("192.0.2.2", kind="extension", BackendData=None))
    (peer,) = calc.calculate(NODES["extension"], [found]).extension
    assert peer.data == ""


def test_nothing_of_a_hostile_value_gets_into_names() -> None:
    """The data path's name of a peer is its subnet, whatever else the lease says."""
    found = lease("10.244.2.0-24", value("192.0.2.2", Remark="$(reboot)"))
    (peer,) = calc.calculate(NODES["vxlan"], [found]).forwarding.peers
    assert peer.name == "10.244.2.0/24"
