"""Which addresses are on link, compared with `ip route get`."""

from ipaddress import ip_address

import pytest

from routes.reachable import on_link
from routes.state import IPAddress
from tests.routes.conftest import ip, ip_json

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("underlay")]


def iproute2_says(address: IPAddress) -> str | None:
    found = ip_json_or_nothing(f"route get {address}")
    if not found or found[0].get("type", "unicast") != "unicast" or "gateway" in found[0] or "via" in found[0]:
        return None
    return str(found[0]["dev"])


def ip_json_or_nothing(command: str) -> list[dict[str, str]]:
    try:
        return ip_json(command)
    except AssertionError:
        return []


ADDRESSES = {
    "192.0.2.77": "eth0",
    "198.51.100.1": None,  # behind a router
    "203.0.113.5": "wire0",  # a route without a gateway
    "203.0.113.9": None,  # a blackhole
    "192.0.2.1": None,  # our own
    "192.0.2.66": None,  # a more specific route has a gateway
    "192.0.2.88": "wire0",  # policy rules count
    "10.99.0.1": None,  # no route at all
    "2001:db8::77": "eth0",
    "2001:db8:5::1": None,
    "2001:db8:6::1": "wire0",
    "2001:db8:7::1": None,
    "2001:db8:ffff:ffff::1": None,
}


@pytest.fixture
def routed(underlay: str) -> None:
    for command in (
        "addr add 203.0.113.1/32 dev wire0",
        "route add 198.51.100.0/24 via 192.0.2.254",
        "route add 203.0.113.0/29 dev wire0",
        "route add blackhole 203.0.113.9/32",
        "route add 192.0.2.66/32 via 192.0.2.254",
        "route add 192.0.2.88/32 dev wire0 table 77",
        "rule add to 192.0.2.88 lookup 77",
        "-6 route add 2001:db8:5::/48 via 2001:db8::ffff",
        "-6 route add 2001:db8:6::/48 dev wire0",
        "-6 route add unreachable 2001:db8:7::/48",
    ):
        ip(command)


@pytest.mark.usefixtures("routed")
def test_the_answer_is_that_of_ip_route_get() -> None:
    addresses = [ip_address(text) for text in ADDRESSES]

    found = on_link(addresses)

    assert found == {ip_address(text): device for text, device in ADDRESSES.items()}
    assert found == {address: iproute2_says(address) for address in addresses}


def test_more_addresses_than_one_batch_carries() -> None:
    ip("route add 198.51.100.0/24 via 192.0.2.254")
    near = [ip_address(f"192.0.2.{number}") for number in range(2, 250)]
    far = [ip_address(f"198.51.100.{number}") for number in range(2, 250)]

    found = on_link([*near, *far])

    assert found == {**dict.fromkeys(near, "eth0"), **dict.fromkeys(far, None)}


def test_no_addresses_no_answers() -> None:
    assert on_link([]) == {}
