"""The kernel's VXLAN devices listed and removed, beside devices of other kinds."""

import errno
import socket
from ipaddress import ip_address, ip_interface

import pytest

from routes.vxlan import delete_vxlan, vxlan_devices
from tests.routes.conftest import ip, ip_json

pytestmark = pytest.mark.root


@pytest.fixture
def devices(underlay: str) -> None:
    """flannel's pair, up; a strange one, down; one without an underlay; and devices of other kinds."""
    ip("link add flannel.1 address 02:aa:bb:cc:dd:01 mtu 1400 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 "
       "nolearning")  # fmt: skip
    ip("link add flannel-v6.1 type vxlan id 1 dev eth0 local 2001:db8::1 dstport 8472 nolearning")
    ip("link add strange type vxlan id 99 group 239.1.1.1 dev eth0 dstport 4789 l2miss gbp")
    ip("link add loose type vxlan dstport 4790 external")
    ip("link add flannel.7 type bridge")
    for name in ("flannel.1", "flannel-v6.1", "loose"):
        ip(f"link set {name} up")
    ip("addr add 10.244.1.0/32 dev flannel.1")
    ip("addr add 10.244.1.0/32 dev eth0")


@pytest.mark.usefixtures("devices")
def test_what_is_there_is_listed() -> None:
    found = {device.link.name: device for device in vxlan_devices()}

    assert list(found) == ["flannel-v6.1", "flannel.1", "loose", "strange"]
    first = found["flannel.1"]
    (eth0,) = ip_json("link show dev eth0")
    assert (first.vni, first.port, first.local, first.group) == (1, 8472, ip_address("192.0.2.1"), None)
    assert (first.mac, first.link.mtu, first.underlay) == (bytes.fromhex("02aabbccdd01"), 1400, eth0["ifindex"])
    assert (first.learning, first.l2miss, first.gbp, first.external) == (False, False, False, False)
    assert {each for each in first.link.addresses if each.version == 4} == {ip_interface("10.244.1.0/32")}
    assert found["flannel-v6.1"].local == ip_address("2001:db8::1")
    strange = found["strange"]
    assert (strange.vni, strange.port, strange.local, strange.group) == (99, 4789, None, ip_address("239.1.1.1"))
    assert (strange.learning, strange.l2miss, strange.gbp) == (True, True, True)
    assert found["loose"].external


@pytest.mark.usefixtures("devices")
def test_the_ports_they_hold_are_those_that_nobody_else_can_bind() -> None:
    held = {pair for device in vxlan_devices() for pair in device.sockets}

    assert held == {(4, 8472), (6, 8472), (4, 4790), (6, 4790)}
    for version, port in [(4, 8472), (6, 8472), (4, 4789), (6, 4789), (4, 4790), (6, 4790), (4, 9999)]:
        assert can_bind(version, port) == ((version, port) not in held)


def can_bind(version: int, port: int) -> bool:
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as candidate:
        if version == 6:
            candidate.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            candidate.bind(("192.0.2.1" if version == 4 else "2001:db8::1", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
        return True


@pytest.mark.usefixtures("devices")
def test_one_is_removed_by_name() -> None:
    delete_vxlan("flannel.1")

    assert [device.link.name for device in vxlan_devices()] == ["flannel-v6.1", "loose", "strange"]
    assert can_bind(4, 8472)


@pytest.mark.usefixtures("devices")
def test_what_is_no_vxlan_device_is_not_removed() -> None:
    with pytest.raises(OSError, match=r"flannel\.7 is a bridge device, not a VXLAN device; it is left alone"):
        delete_vxlan("flannel.7")
    with pytest.raises(OSError, match="lo is a hardware device, not a VXLAN device"):
        delete_vxlan("lo")
    with pytest.raises(OSError, match=r"there is no device flannel\.9 in this network namespace"):
        delete_vxlan("flannel.9")
    assert ip_json("link show dev flannel.7")


@pytest.mark.usefixtures("netns")
def test_nothing_there_is_an_empty_list() -> None:
    assert vxlan_devices() == []
