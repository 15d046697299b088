"""One device brought to its desired state, checked by iproute2. Each test has a network namespace of its own."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routes.namespace import NamespaceReconciler
from routes.state import DeviceState, Route, Sysctl, overlay_sysctls
from tests.routes.conftest import ip, ip_batch, ip_json, kernel_addresses, kernel_routes, only, read_sysctl

pytestmark = pytest.mark.root

PEERS = {
    ("10.244.2.0/24", "10.244.2.0"),
    ("10.244.3.0/24", "10.244.3.0"),
    ("2001:db8:2::/64", "2001:db8:2::"),
    ("2001:db8:3::/64", "2001:db8:3::"),
}


def onlink(prefix: str, via: str) -> Route:
    return Route(ip_network(prefix), ip_address(via), onlink=True)


def node_port(device: str = "flannel.1") -> DeviceState:
    return DeviceState(
        name=device,
        mtu=1450,
        txqueuelen=1000,
        up=True,
        addresses=frozenset({ip_interface("10.244.1.0/32"), ip_interface("2001:db8:1::/128")}),
        routes=frozenset(onlink(*peer) for peer in PEERS),
        sysctls=overlay_sysctls(device),
        networks=frozenset({ip_network("10.244.0.0/16"), ip_network("2001:db8::/32")}),
    )


def reasons(reconciler: NamespaceReconciler, state: DeviceState) -> dict[str, str]:
    return {error.object: error.reason for error in reconciler.reconcile(only(state)).errors}


def test_a_new_device_gets_everything_and_then_nothing(device: str) -> None:
    reconciler = NamespaceReconciler()

    first, second = reconciler.reconcile(only(node_port())), reconciler.reconcile(only(node_port()))

    (link,) = ip_json(f"-d link show dev {device}")
    assert (link["mtu"], link["txqlen"], "UP" in link["flags"]) == (1450, 1000, True)
    assert kernel_addresses(device) == {"10.244.1.0/32", "2001:db8:1::/128"}
    assert kernel_routes(device) == PEERS
    assert all("onlink" in route["flags"] for route in ip_json(f"route show dev {device} proto 112"))
    assert read_sysctl(f"net/ipv6/conf/{device}/accept_ra") == "0"
    assert (first.errors, second.errors, second.changes) == ((), (), ())
    assert "route 10.244.2.0/24 via 10.244.2.0 added" in first.changes
    assert f"device {device} MTU set to 1450 (was 1500)" in first.changes
    assert first.devices == {device: link["ifindex"]}


def test_a_process_without_memory_keeps_what_is_right_and_sweeps_what_is_stale(device: str) -> None:
    NamespaceReconciler().reconcile(only(node_port()))
    ip(f"route add 10.244.9.0/24 via 10.244.9.0 dev {device} onlink proto 112")
    ip(f"-6 route add 2001:db8:9::/64 via 2001:db8:9:: dev {device} onlink proto 112 metric 7")
    ip(f"addr add 10.244.8.0/32 dev {device}")
    ip(f"addr add 192.0.2.1/32 dev {device}")

    result = NamespaceReconciler().reconcile(only(node_port()))

    assert set(result.changes) == {
        "route 10.244.9.0/24 removed",
        "route 2001:db8:9::/64 removed",
        "address 10.244.8.0/32 removed",
    }
    assert kernel_routes(device) == PEERS
    assert kernel_addresses(device) == {"10.244.1.0/32", "2001:db8:1::/128", "192.0.2.1/32"}


@pytest.mark.parametrize(
    "change",
    [
        "route replace 10.244.2.0/24 via 10.244.2.9 dev flannel.1 onlink proto 112",
        "route replace 10.244.2.0/24 dev flannel.1 proto 112",
        "route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 112 mtu 1000",
        "route append 10.244.2.0/24 via 10.244.2.9 dev flannel.1 onlink proto 112",
        "-6 route replace 2001:db8:2::/64 via 2001:db8:2::9 dev flannel.1 onlink proto 112 metric 1024",
        "-6 route replace 2001:db8:2::/64 via 2001:db8:2:: dev flannel.1 onlink proto 112 metric 1024 mtu 1300",
    ],
)
def test_a_changed_route_of_ours_is_made_anew(device: str, change: str) -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(node_port()))
    ip(change)

    looks = [reconciler.reconcile(only(node_port())) for _ in range(3)]

    assert kernel_routes(device) == PEERS
    assert looks[0].changes
    assert (looks[-1].changes, looks[-1].errors) == ((), ())
    assert "mtu" not in ip(f"route show dev {device}") + ip(f"-6 route show dev {device}")


@pytest.mark.parametrize(
    ("foreign", "effect"),
    [
        ("route add 10.244.2.0/24 dev other proto static", "in the place of ours"),
        ("route add 10.244.2.0/24 dev flannel.1 proto bird scope link", "in the place of ours"),
        ("route add 10.244.2.0/24 dev other proto 112", "in the place of ours"),
        ("route add blackhole 10.244.2.0/24 proto static", "in the place of ours"),
        ("route add 10.244.2.0/24 dev other proto static metric 50", "beside ours"),
        ("-6 route add 2001:db8:2::/64 dev other proto static metric 10", "preferred to ours"),
        ("-6 route add 2001:db8:2::/64 dev other proto static metric 1024", "in the place of ours"),
    ],
)
def test_a_foreign_route_for_our_prefix_is_reported_and_left_alone(device: str, foreign: str, effect: str) -> None:
    ip("tuntap add dev other mode tun")
    ip("link set other up")
    ip("link set flannel.1 up")
    ip(foreign)
    reconciler = NamespaceReconciler()

    results = [reconciler.reconcile(only(node_port())) for _ in range(2)]

    concerned = {error.object for error in results[-1].errors}
    assert concerned in ({"route 10.244.2.0/24"}, {"route 2001:db8:2::/64"})
    assert any(effect in error.reason for error in results[-1].errors)
    assert results[-1].changes == ()
    assert kernel_routes(device) >= {peer for peer in PEERS if f"route {peer[0]}" not in concerned}
    ip(foreign.replace(" add ", " del ", 1))  # fails if it is no longer there
    reconciler.reconcile(only(node_port()))
    assert kernel_routes(device) == PEERS


def test_other_programs_objects_are_untouched(device: str) -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(node_port()))
    ip("tuntap add dev other mode tun")
    ip("link set other up")
    foreign = [
        f"route add 198.51.100.0/24 dev {device} proto static",
        f"route add 203.0.113.0/24 dev {device} proto 112 table 77",
        "route add 203.0.113.0/24 dev other proto 112",
        f"-6 route add 2001:db8:ffff::/48 dev {device} proto bird",
    ]
    for command in foreign:
        ip(command)

    result = reconciler.reconcile(only(replace(node_port(), routes=frozenset())))

    assert len(result.changes) == len(PEERS)
    for command in foreign:
        ip(command.replace(" add ", " del ", 1))  # fails if it is no longer there


def test_flush_writes_only_the_difference(device: str) -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(node_port()))
    without = frozenset(route for route in node_port().routes if route.prefix.version == 6)
    more = without | {onlink("10.244.4.0/24", "10.244.4.0")}
    ip("route del 10.244.3.0/24")  # behind its back: a flush does not look

    result = reconciler.flush(
        only(replace(node_port(), routes=more, addresses=frozenset({ip_interface("10.244.1.0/32")})))
    )

    assert set(result.changes) == {
        "address 2001:db8:1::/128 removed",
        "route 10.244.2.0/24 removed",
        "route 10.244.4.0/24 via 10.244.4.0 added",
    }
    assert result.errors == ()
    assert kernel_routes(device) == {(str(route.prefix), str(route.via)) for route in more}


def test_flush_with_other_settings_is_a_full_reconcile(device: str) -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(node_port()))

    result = reconciler.flush(only(replace(node_port(), mtu=1400)))

    assert result.changes == (f"device {device} MTU set to 1400 (was 1450)",)


def test_flush_that_meets_an_unseen_foreign_route_reports_it(device: str) -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(node_port()))
    ip(f"route add 10.244.4.0/24 dev {device} proto static")

    result = reconciler.flush(only(replace(node_port(), routes=frozenset({onlink("10.244.4.0/24", "10.244.4.0")}))))

    assert [error.object for error in result.errors] == ["route 10.244.4.0/24"]
    assert "left alone" in result.errors[0].reason
    assert ip(f"route show 10.244.4.0/24 dev {device} proto static")


def test_a_missing_device_is_an_error_value(netns: str) -> None:
    reconciler = NamespaceReconciler()

    result = reconciler.reconcile(only(node_port()))

    assert (result.devices, result.changes) == ({"flannel.1": None}, ())
    assert str(result.errors[0]) == "device flannel.1: it is gone; its owner has to make it again"


def test_a_recreated_device_is_filled_again(device: str) -> None:
    reconciler = NamespaceReconciler()
    before = reconciler.reconcile(only(node_port())).devices
    ip(f"link del {device}")
    ip(f"tuntap add dev {device} mode tun")

    result = reconciler.flush(
        only(replace(node_port(), routes=node_port().routes | {onlink("10.244.4.0/24", "10.244.4.0")}))
    )
    again = reconciler.reconcile(only(node_port()))

    assert result.errors  # nothing was looked at: the old index is no device any more
    assert again.devices != before
    assert kernel_routes(device) == PEERS


def test_one_refused_object_does_not_keep_the_others_back(device: str) -> None:
    state = replace(
        node_port(),
        mtu=70_000,
        sysctls=frozenset({*overlay_sysctls(device), Sysctl("net/ipv6/conf/flannel.1/no_such", "1")}),
        routes=node_port().routes | {onlink("10.244.7.0/24", "127.0.0.1")},
    )

    errors = reasons(NamespaceReconciler(), state)

    assert set(errors) == {"device flannel.1", "sysctl net/ipv6/conf/flannel.1/no_such", "route 10.244.7.0/24"}
    assert errors["sysctl net/ipv6/conf/flannel.1/no_such"] == "No such file or directory"
    assert kernel_routes(device) == PEERS
    assert kernel_addresses(device) == {"10.244.1.0/32", "2001:db8:1::/128"}


def test_ipv6_switched_off_on_the_device_is_said_and_ipv4_works(device: str) -> None:
    ip("link set lo up")
    with open(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6", "w") as file:
        file.write("1")

    errors = reasons(NamespaceReconciler(), node_port())

    assert "disable" in errors["address 2001:db8:1::/128"]
    assert kernel_routes(device) >= {peer for peer in PEERS if "." in peer[0]}
    assert kernel_addresses(device) == {"10.244.1.0/32"}


def test_an_mtu_too_small_for_ipv6_heals_when_the_mtu_does(device: str) -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(node_port()))
    ip(f"link set {device} mtu 1000")  # takes IPv6, its addresses, routes and sysctls away

    reconciler.reconcile(only(node_port()))
    last = reconciler.reconcile(only(node_port()))

    assert (last.changes, last.errors) == ((), ())
    assert kernel_routes(device) == PEERS
    assert read_sysctl(f"net/ipv6/conf/{device}/accept_ra") == "0"


def test_settings_given_as_none_are_left_alone(device: str) -> None:
    ip(f"link set {device} mtu 1234 txqueuelen 77")

    result = NamespaceReconciler().reconcile(only(DeviceState(device, mtu=None, txqueuelen=None, up=None)))

    assert result.changes == ()


def test_a_device_that_should_be_down_is_asked_to_carry_no_routes(device: str) -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(node_port()))

    result = reconciler.reconcile(only(replace(node_port(), up=False)))

    assert result.errors == ()
    assert f"device {device} set down" in result.changes
    assert reconciler.reconcile(only(replace(node_port(), up=False))).changes == ()


def test_one_prefix_has_one_next_hop() -> None:
    routes = frozenset({onlink("10.244.2.0/24", "10.244.2.0"), onlink("10.244.2.0/24", "10.244.2.1")})

    with pytest.raises(ValueError, match=r"device flannel\.1: two routes for 10\.244\.2\.0/24"):
        DeviceState("flannel.1", routes=routes)


SUBNETS = st.sampled_from([f"10.244.{number}.0" for number in range(4)])
MESSES = st.lists(
    st.one_of(
        st.builds("route replace {0}/24 via {0} dev flannel.1 onlink proto 112".format, SUBNETS),
        st.builds("route replace {0}/24 via 10.244.77.7 dev flannel.1 onlink proto 112".format, SUBNETS),
        st.builds("route append {0}/24 dev flannel.1 proto 112 metric 0".format, SUBNETS),
        st.builds("route add {0}/24 dev flannel.1 proto 112 metric 9".format, SUBNETS),
        st.builds("route add {0}/24 dev flannel.1 proto static metric 20".format, SUBNETS),
        st.builds("route del {0}/24 proto 112".format, SUBNETS),
        st.builds("addr add {0}/32 dev flannel.1".format, SUBNETS),
        st.builds("addr del {0}/32 dev flannel.1".format, SUBNETS),
        st.sampled_from(["link set flannel.1 down", "link set flannel.1 mtu 1300", "link set flannel.1 up"]),
    ),
    max_size=8,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mess=MESSES, wanted=st.frozensets(SUBNETS))
def test_any_mess_is_brought_to_the_desired_state(device: str, mess: list[str], wanted: frozenset[str]) -> None:
    ip_batch(mess, force=True)
    foreign = kernel_routes(device, "static")
    address = ip_interface("10.244.100.0/32")
    state = replace(
        node_port(),
        addresses=frozenset({address}),
        routes=frozenset(onlink(f"{subnet}/24", subnet) for subnet in wanted),
    )
    reconciler = NamespaceReconciler()

    for _ in range(3):
        reconciler.reconcile(only(state))

    assert kernel_routes(device) == {(f"{subnet}/24", subnet) for subnet in wanted}
    assert kernel_addresses(device) == {str(address)}
    assert kernel_routes(device, "static") == foreign
    assert reconciler.reconcile(only(state)).changes == ()
