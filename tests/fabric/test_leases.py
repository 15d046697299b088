"""Lease keys and values are flannel's, byte for byte."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import leases
from fabric.model import Lease

V4 = IPv4Network("10.244.1.0/24")
V6 = IPv6Network("fd00:12:13::/56")

# Values that real flannel nodes wrote (flannel documentation and issues).
SINGLE = (
    b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
)
DUAL = (
    b'{"PublicIP":"10.0.0.5","PublicIPv6":"fd00:5::5","BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"},"BackendV6Data":{"VNI":1,"VtepMAC":"da:5e:45:9f:12:73"}}'
)
UDP = b'{"PublicIP":"192.168.64.3","PublicIPv6":null}'


@pytest.mark.parametrize(
    ("key", "value"),
    [("10.244.1.0-24", SINGLE), ("10.244.1.0-24&fd00:12:13::-56", DUAL), ("10.5.52.0-24", UDP)],
)
def test_what_flannel_wrote_comes_back_byte_for_byte(key: str, value: bytes) -> None:
    lease = leases.parse(key, value)
    assert leases.emit_value(lease) == value
    assert leases.key_of(lease.subnet, lease.ipv6_subnet) == key


def test_fields() -> None:
    lease = leases.parse("10.244.1.0-24&fd00:12:13::-56", DUAL, 5.0, 7)
    assert (lease.subnet, lease.ipv6_subnet, lease.expires, lease.revision) == (V4, V6, 5.0, 7)
    assert (lease.public_ip, lease.public_ipv6) == (IPv4Address("10.0.0.5"), IPv6Address("fd00:5::5"))
    assert leases.parse_mac(lease.backend_data) == bytes.fromhex("12c66589b4e3")


def test_ipv6_only_round_trip() -> None:
    lease = Lease(None, V6, None, IPv6Address("2001:db8::5"), "vxlan", None, {"VNI": 1, "VtepMAC": "02:00:00:00:00:01"})
    key = leases.key_of(None, V6)
    back = leases.parse(key, leases.emit_value(lease))
    assert (back.subnet, back.ipv6_subnet, back.public_ip, back.public_ipv6) == (None, V6, None, lease.public_ipv6)


@pytest.mark.parametrize(
    "key",
    ["", "config", "10.244.1.0", "10.244.1.0-33", "10.244.1.5-24", "10.244.1.0-24\n", "10.244.1.0-24&fd00::1-64",
     "0.0.0.0-0", "10.244.1.0-24&", "fd00::-64", "../10.244.1.0-24", "300.1.1.0-24", "10.244.1.0-24/x",
     "10.244.1.0-24&fd00:::-64"],
)  # fmt: skip
def test_bad_keys(key: str) -> None:
    with pytest.raises(leases.LeaseFormatError):
        leases.parse(key, SINGLE)


@pytest.mark.parametrize(
    "value",
    [b"", b"null", b"[]", b'"x"', b'{"PublicIP":5}', b'{"PublicIP":"pods"}', b'{"PublicIP":"fd00::1"}',
     b'{"PublicIP":"192.0.2.1","PublicIPv6":"192.0.2.1"}', b'{"PublicIP":"192.0.2.1","BackendType":{}}',
     b'{"PublicIP":"192.0.2.1"', b"\xff\xfe", b'{"PublicIP":"192.0.2.1","PublicIP":"192.0.2.2"}', b"[" * 60_000,
     b" " * 70_000,
     # What cannot be written again would keep the node from saving any lease.
     b'{"PublicIP":"192.0.2.1","BackendData":"\\ud800"}', b'{"PublicIP":"192.0.2.1","BackendData":1e999}'],
)  # fmt: skip
def test_bad_values(value: bytes) -> None:
    with pytest.raises(leases.LeaseFormatError) as error:
        leases.parse("10.244.1.0-24", value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@given(st.text(max_size=60), st.binary(max_size=200))
def test_anything_is_a_lease_or_a_format_error(key: str, value: bytes) -> None:
    with pytest.raises(leases.LeaseFormatError):
        leases.parse(key, value)


@pytest.mark.parametrize(
    ("data", "mac"),
    [
        ({"VtepMAC": "c6:d2:32:6f:8f:44"}, "c6d2326f8f44"),
        ({"vtepmac": "C6:D2:32:6F:8F:44"}, "c6d2326f8f44"),
        ({"VtepMAC": "01:00:5e:00:00:01"}, None),
        ({"VtepMAC": "ff:ff:ff:ff:ff:ff"}, None),
        ({"VtepMAC": "00:00:00:00:00:00"}, None),
        ({"VtepMAC": "c6:d2:32:6f:8f:44\n"}, None),
        ({"VtepMAC": 5}, None),
        ({}, None),
        (None, None),
        ("c6:d2:32:6f:8f:44", None),
    ],
)
def test_only_unicast_macs_count(data: object, mac: str | None) -> None:
    assert leases.parse_mac(data) == (bytes.fromhex(mac) if mac else None)


@given(st.binary(min_size=6, max_size=6))
def test_new_macs_are_unicast_and_local(random: bytes) -> None:
    mac = leases.new_mac(random)
    assert (mac[0] & 3, mac[1:]) == (2, random[1:])
    assert leases.parse_mac(leases.vxlan_data(1, mac)) == mac


@pytest.mark.parametrize("node", ["node1", "ip-192-0-2-1.example.org", "a" * 253])
def test_a_key_may_name_its_node(node: str) -> None:
    key = leases.key_of(V4, V6, node)
    assert key == f"10.244.1.0-24&fd00:12:13::-56@{node}"
    lease = leases.parse(key, DUAL)
    assert (lease.subnet, lease.ipv6_subnet, lease.node, lease.key) == (V4, V6, node, key)
    assert leases.parse_key(f"10.244.1.0-24@{node}") == (V4, None)
    assert leases.parse("10.244.1.0-24", SINGLE).node == ""


@pytest.mark.parametrize("suffix", ["@", "@Node", "@a/b", "@a\n", "@-a", "@a@b", "@" + "a" * 254, "@\u00e4"])
def test_names_that_no_node_has(suffix: str) -> None:
    with pytest.raises(leases.LeaseFormatError):
        leases.parse("10.244.1.0-24" + suffix, SINGLE)


def test_a_store_can_say_why_a_value_is_unreadable() -> None:
    with pytest.raises(leases.LeaseFormatError, match=r"^annotation x is missing$"):
        leases.parse("10.244.1.0-24@n", leases.unreadable("annotation x is missing"))
    with pytest.raises(leases.LeaseFormatError, match=r"^\\x1b\[31m\\n$"):
        leases.parse("10.244.1.0-24@n", b"!\x1b[31m\n")
