"""Start-up questions to the kernel, answered in a namespace laid out with `ip`."""

from ipaddress import ip_address, ip_interface

import pytest

from routes.lookup import (
    RouteAnswer,
    default_route_interface,
    interface_addresses,
    interface_mtu,
    interface_of_address,
    interface_state,
    route_get,
)
from tests.routes.conftest import ip

pytestmark = pytest.mark.root


@pytest.fixture
def uplinks(netns: str) -> None:
    """Two uplinks; IPv4's best default route is over the second, IPv6's only one over the first."""
    for name, number in (("up1", 1), ("up2", 2)):
        ip(f"tuntap add dev {name} mode tun")
        ip(f"link set {name} mtu {1400 + number} up")
        ip(f"addr add 192.0.2.{number}/32 dev {name}")
        ip(f"addr add 2001:db8::{number}/128 dev {name} nodad")
    ip("route add default via 198.51.100.1 dev up1 onlink metric 200")
    ip("route add default via 203.0.113.1 dev up2 onlink metric 100")
    ip("route add default dev up1 table 77")
    ip("-6 route add default via 2001:db8::ffff dev up1 onlink")
    ip("route add 10.244.0.0/16 dev up1")


@pytest.mark.usefixtures("uplinks")
def test_default_route_interface_is_that_of_the_lowest_metric() -> None:
    assert (default_route_interface(4), default_route_interface(6)) == ("up2", "up1")


@pytest.mark.usefixtures("uplinks")
def test_default_route_over_several_next_hops_names_the_first() -> None:
    ip("route add default metric 5 nexthop via 198.51.100.1 dev up1 onlink nexthop via 203.0.113.1 dev up2 onlink")

    assert default_route_interface(4) == "up1"


@pytest.mark.usefixtures("netns")
def test_no_default_route() -> None:
    assert (default_route_interface(4), default_route_interface(6)) == (None, None)


@pytest.mark.usefixtures("uplinks")
def test_interface_facts() -> None:
    ip("addr add 2001:db8::3/64 dev up1 nodad")

    assert interface_mtu("up1") == 1401
    ip("addr add 192.0.2.9/32 dev up1 valid_lft 900 preferred_lft 0")

    found = {each.interface: each for each in interface_addresses("up1") if not each.interface.is_link_local}
    permanent = {address: (each.permanent, each.deprecated) for address, each in found.items()}
    assert permanent == {
        ip_interface("192.0.2.1/32"): (True, False),
        ip_interface("192.0.2.9/32"): (False, True),
        ip_interface("2001:db8::1/128"): (True, False),
        ip_interface("2001:db8::3/64"): (True, False),
    }
    assert [each.version for each in found] == [4, 4, 6, 6]
    assert interface_state("up2").up
    assert interface_of_address("192.0.2.2") == "up2"
    assert interface_of_address(ip_address("2001:db8::3")) == "up1"
    assert interface_of_address("192.0.2.99") is None


@pytest.mark.usefixtures("uplinks")
def test_route_get() -> None:
    assert route_get("198.51.100.77") == RouteAnswer(
        ip_address("198.51.100.77"), "up2", ip_address("203.0.113.1"), ip_address("192.0.2.2")
    )
    assert route_get("10.244.3.4") == RouteAnswer(ip_address("10.244.3.4"), "up1", None, ip_address("192.0.2.1"))
    assert route_get(ip_address("2001:db8:5::1")).gateway == ip_address("2001:db8::ffff")
    assert route_get("127.0.0.1").interface == "lo"


@pytest.mark.usefixtures("netns")
def test_what_is_missing_is_said() -> None:
    with pytest.raises(OSError, match="there is no interface nope0 in this network namespace"):
        interface_mtu("nope0")
    with pytest.raises(OSError, match=r"no route to 192\.0\.2\.9: Network is unreachable"):
        route_get("192.0.2.9")
    with pytest.raises(ValueError, match="'here' does not appear to be an IPv4 or IPv6 address"):
        interface_of_address("here")
