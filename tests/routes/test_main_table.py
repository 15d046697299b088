"""Routes of several devices in the one main table: plain ones, moves, blackholes, leftovers of flannel's, sweeping."""

from ipaddress import ip_address, ip_network

import pytest

from routes.namespace import NamespaceReconciler
from routes.state import DesiredState, DeviceState, Route
from tests.routes.conftest import ip, ip_json, kernel_blackholes, kernel_routes, only
from tests.routes.overlay import Peer, is_programmed, overlay

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("underlay")]

PLAIN = {("10.244.2.0/24", "192.0.2.2"), ("2001:db8:42:2::/64", "2001:db8::2")}
OWN = frozenset({ip_network("10.244.1.0/24"), ip_network("2001:db8:42:1::/64")})


def host_gateway(*routes: tuple[str, str]) -> DeviceState:
    """The underlay as host-gw and direct routing use it: nothing but routes."""
    return DeviceState(
        "eth0", up=None, routes=frozenset(Route(ip_network(prefix), ip_address(via)) for prefix, via in routes)
    )


def test_plain_routes_go_through_the_underlay_and_nothing_else_of_it_changes() -> None:
    before = ip("addr show dev eth0"), ip("link show dev eth0")
    reconciler = NamespaceReconciler()

    first, second = (reconciler.reconcile(only(host_gateway(*PLAIN))) for _ in range(2))

    assert (first.errors, second.errors, second.changes) == ((), (), ())
    assert kernel_routes("eth0") == PLAIN
    assert not any("onlink" in route["flags"] for route in ip_json("route show dev eth0 proto 112"))
    assert (ip("addr show dev eth0"), ip("link show dev eth0")) == before


def test_a_gateway_that_is_not_on_link_is_said_and_the_others_are_made() -> None:
    reconciler = NamespaceReconciler()
    state = host_gateway(*PLAIN, ("10.244.3.0/24", "198.51.100.3"))

    result = reconciler.reconcile(only(state))

    (error,) = result.errors
    assert error.object == "route 10.244.3.0/24"
    assert "gateway" in error.reason
    assert kernel_routes("eth0") == PLAIN


def test_an_onlink_route_in_the_place_of_a_plain_one_is_made_anew() -> None:
    ip("route add 10.244.2.0/24 via 192.0.2.2 dev eth0 onlink proto 112")
    reconciler = NamespaceReconciler()

    result = reconciler.reconcile(only(host_gateway(*PLAIN)))

    assert "route 10.244.2.0/24 removed" in result.changes
    assert not any("onlink" in route["flags"] for route in ip_json("route show dev eth0 proto 112"))


def test_a_peer_moves_between_overlay_and_underlay() -> None:
    reconciler = NamespaceReconciler()
    over = DesiredState((overlay([2, 3]), host_gateway()))
    direct = DesiredState((overlay([3]), host_gateway(("10.244.2.0/24", "192.0.2.2"))))
    reconciler.reconcile(over)

    there = reconciler.flush(direct)
    routes_there = kernel_routes("eth0"), is_programmed(overlay([3]))
    back = reconciler.flush(over)

    assert (there.errors, back.errors) == ((), ())
    assert there.changes == (
        "route 10.244.2.0/24 removed",
        "route 10.244.2.0/24 via 192.0.2.2 added",
        "fdb 02:00:00:00:00:02 dev flannel.1 removed",
        "neighbour 10.244.2.0 dev flannel.1 removed",
    )
    assert routes_there == ({("10.244.2.0/24", "192.0.2.2")}, True)
    assert kernel_routes("eth0") == set()
    assert is_programmed(overlay([2, 3]))
    assert reconciler.reconcile(over).changes == ()


def test_an_underlay_that_is_down_is_one_problem_and_its_routes_come_back() -> None:
    reconciler = NamespaceReconciler()
    many = [(f"10.244.{number}.0/24", f"192.0.2.{number}") for number in range(2, 40)]
    reconciler.reconcile(only(host_gateway(*many)))
    ip("link set eth0 down")  # takes the IPv4 routes with it

    down = reconciler.reconcile(only(host_gateway(*many)))
    ip("link set eth0 up")
    up = reconciler.reconcile(only(host_gateway(*many)))

    assert [str(error) for error in down.errors] == ["device eth0: it is down or unusable; routes that wait for it: 38"]
    assert down.changes == ()
    assert (up.errors, len(up.changes)) == ((), 38)
    assert kernel_routes("eth0") == set(many)


def test_blackholes_are_made_kept_and_swept() -> None:
    reconciler = NamespaceReconciler()
    state = overlay([2])
    ip("route add blackhole 10.244.77.0/24 proto 112")
    ip("route add blackhole 203.0.113.0/24 proto static")
    ip("-6 route add blackhole 2001:db8:42:77::/64 proto 112")

    made = reconciler.reconcile(DesiredState((state,), OWN))
    kept = kernel_blackholes()
    ip("route del blackhole 10.244.1.0/24")
    ip("-6 route del blackhole 2001:db8:42:1::/64")
    restored = reconciler.reconcile(DesiredState((state,), OWN))
    swept = reconciler.flush(DesiredState((state,)))

    assert (made.errors, restored.errors, swept.errors) == ((), (), ())
    assert {"blackhole 10.244.77.0/24 removed", "blackhole 10.244.1.0/24 added"} <= set(made.changes)
    assert kept == set(map(str, OWN))
    assert set(restored.changes) == {f"blackhole {prefix} added" for prefix in OWN}
    assert set(swept.changes) == {f"blackhole {prefix} removed" for prefix in OWN}
    assert kernel_blackholes() == set()
    assert ip("route show 203.0.113.0/24")
    assert is_programmed(state)


def test_removing_a_blackhole_removes_no_other_route_of_its_prefix() -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(DesiredState(blackholes=OWN))
    foreign = [
        "route add 10.244.1.0/24 dev wire0 proto 112 metric 9",
        "route add 10.244.1.0/24 dev wire0 proto static metric 3",
        "-6 route append 2001:db8:42:1::/64 dev wire0 proto 112 metric 1024",
    ]
    for command in foreign:
        ip(command)

    reconciler.reconcile(DesiredState())

    assert kernel_blackholes() == set()
    for command in foreign:
        ip(command.replace(" add ", " del ", 1).replace(" append ", " del ", 1))  # fails if it is no longer there


def test_a_bridge_route_in_the_place_of_a_blackhole_is_reported() -> None:
    """Where a CNI bridge owns the pod subnet, its route is there already."""
    ip("link add cni0 type bridge")
    ip("addr add 10.244.1.1/24 dev cni0")
    ip("link set cni0 up")

    result = NamespaceReconciler().reconcile(DesiredState(blackholes=frozenset({ip_network("10.244.1.0/24")})))

    (error,) = result.errors
    assert error.object == "blackhole 10.244.1.0/24"
    assert "in the place of ours" in error.reason


def test_devices_that_were_never_named_are_not_swept() -> None:
    ip("route add 10.244.9.0/24 via 192.0.2.9 dev eth0 proto 112")

    untouched = NamespaceReconciler().reconcile(only(overlay([2])))
    named = NamespaceReconciler().reconcile(DesiredState((overlay([2]), host_gateway())))

    assert not any("10.244.9.0" in change for change in untouched.changes)
    assert named.changes == ("route 10.244.9.0/24 removed",)


def test_a_device_that_nobody_names_any_more_is_cleared() -> None:
    ip("link add eth1 type veth peer name wire1")
    ip("link set eth1 up")
    ip("addr add 203.0.113.1/24 dev eth1")
    other = DeviceState(
        "eth1", up=None, routes=frozenset({Route(ip_network("10.244.3.0/24"), ip_address("203.0.113.3"))})
    )
    reconciler = NamespaceReconciler()
    reconciler.reconcile(DesiredState((host_gateway(*PLAIN), other)))

    result = reconciler.flush(only(other))

    assert set(result.changes) == {f"route {prefix} removed" for prefix, _ in PLAIN}
    assert (kernel_routes("eth0"), kernel_routes("eth1")) == (set(), {("10.244.3.0/24", "203.0.113.3")})
    ip("route add 10.244.9.0/24 via 192.0.2.9 dev eth0 proto 112")
    assert reconciler.reconcile(only(other)).changes == ()  # forgotten: no longer ours to look at


FLANNELS = [
    "route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
    "route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink",
    "route add blackhole 10.244.1.0/24",
    "route add 10.244.3.0/24 via 192.0.2.3 dev eth0",
]


def test_what_flannel_left_is_taken_over() -> None:
    """flannel names no protocol: `boot`. What ours would say is marked as ours, its stale overlay routes go."""
    ip("link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning")
    ip("link set flannel.1 up")
    for command in FLANNELS:
        ip(command)
    wanted = DesiredState(
        (overlay([2]), host_gateway(("10.244.3.0/24", "192.0.2.3"))), frozenset({ip_network("10.244.1.0/24")})
    )
    reconciler = NamespaceReconciler()

    result = reconciler.reconcile(wanted)

    assert result.errors == ()
    assert is_programmed(overlay([2]))
    assert kernel_routes("eth0") == {("10.244.3.0/24", "192.0.2.3")}
    assert kernel_blackholes() == {"10.244.1.0/24"}
    assert ip("route show proto boot") == ""
    assert reconciler.reconcile(wanted).changes == ()


def test_unmarked_routes_of_another_kind_are_somebody_elses() -> None:
    ip("link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning")
    ip("link set flannel.1 up")
    foreign = [
        "route add 198.51.100.0/24 via 10.244.2.0 dev flannel.1 onlink",
        "route add 203.0.113.0/24 dev flannel.1 scope link",
        "route add 10.244.9.0/24 via 192.0.2.9 dev eth0",
        "route add 10.244.3.0/24 via 192.0.2.77 dev eth0",
        "route add blackhole 10.244.8.0/24",
    ]
    for command in foreign:
        ip(command)

    wanted = DesiredState((overlay([2]), host_gateway(("10.244.3.0/24", "192.0.2.3"))))
    result = NamespaceReconciler().reconcile(wanted)

    assert [error.object for error in result.errors] == ["route 10.244.3.0/24"]
    assert "another program has a route via 192.0.2.77" in result.errors[0].reason
    for command in foreign:
        ip(command.replace(" add ", " del ", 1))  # fails if it is no longer there


def test_two_routes_of_ours_in_one_place_through_two_devices_become_one() -> None:
    ip("route add 10.244.2.0/24 via 10.244.2.0 dev wire0 onlink proto 112")
    reconciler = NamespaceReconciler()
    wanted = DesiredState((overlay([2]), DeviceState("wire0", up=None)))
    reconciler.reconcile(wanted)
    ip("route append 10.244.2.0/24 via 10.244.2.0 dev wire0 onlink proto 112")

    for _ in range(3):
        last = reconciler.reconcile(wanted)

    assert (last.changes, last.errors) == ((), ())
    assert kernel_routes("wire0") == set()
    assert is_programmed(overlay([2]))


def test_peer_numbers_beyond_one_network_are_distinct() -> None:
    """The helper that makes peers makes a thousand different ones."""
    prefixes = {Peer(number).route(version).prefix for number in range(1002) for version in (4, 6)}

    assert len(prefixes) == 2 * 1002


def unreachables() -> set[tuple[str, int]]:
    """Ours in the kernel, with their metrics."""
    routes = [route for f in (4, 6) for route in ip_json(f"-{f} route show type unreachable proto 112")]
    return {(route["dst"], route["metric"]) for route in routes}


def test_unreachable_prefixes_are_made_kept_and_swept_behind_a_bridges_route() -> None:
    """A bridge with the subnet is no conflict: its route is preferred, whoever came first."""
    reconciler = NamespaceReconciler()
    ip("-6 route add unreachable 2001:db8:42:77::/64 proto 112 metric 1000000")
    made = reconciler.reconcile(DesiredState(unreachables=OWN))
    ip("link add cni1 type bridge")
    ip("link set cni1 up")
    ip("addr add 10.244.1.1/24 dev cni1")
    ip("addr add 2001:db8:42:1::1/64 dev cni1 nodad")
    beside = reconciler.reconcile(DesiredState(unreachables=OWN))
    preferred = [ip_json(f"route get {address}")[0]["dev"] for address in ("10.244.1.9", "2001:db8:42:1::9")]
    ip("link del cni1")
    ip("route del unreachable 10.244.1.0/24")
    restored = NamespaceReconciler().reconcile(DesiredState(unreachables=OWN))
    kept = unreachables()
    swept = reconciler.reconcile(DesiredState())

    assert set(made.changes) == {"unreachable 2001:db8:42:77::/64 removed", *(f"unreachable {p} added" for p in OWN)}
    assert (made.errors, beside.errors, restored.errors, swept.errors) == ((), (), (), ())
    assert (beside.changes, preferred) == ((), ["cni1", "cni1"])
    assert restored.changes == ("unreachable 10.244.1.0/24 added",)
    assert kept == {(str(prefix), 1_000_000) for prefix in OWN}
    assert unreachables() == set()


def test_a_prefix_that_is_unreachable_and_a_blackhole_has_both_places() -> None:
    reconciler = NamespaceReconciler()
    result = reconciler.reconcile(DesiredState(blackholes=OWN, unreachables=OWN))
    assert (result.errors, kernel_blackholes()) == ((), set(map(str, OWN)))
    assert unreachables() == {(str(prefix), 1_000_000) for prefix in OWN}
    result = reconciler.reconcile(DesiredState(unreachables=OWN))
    assert (result.errors, kernel_blackholes(), len(unreachables())) == ((), set(), 2)
