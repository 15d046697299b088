"""The network configuration and what it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fabric.ipam import config
from fabric.ipam.errors import INVALID_CONFIG, INVALID_ENVIRONMENT, IPAMError
from tests.fabric.ipam.plugin import document

BASE = document(Path("/var/lib/cni/networks"), "10.244.1.0/24")


def conf(**fields: Any) -> dict[str, Any]:
    """BASE with other fields, those of the `ipam` section given as `ipam_NAME`."""
    inner = {key.removeprefix("ipam_"): value for key, value in fields.items() if key.startswith("ipam_")}
    outer = {key: value for key, value in fields.items() if not key.startswith("ipam_")}
    return {**BASE, "ipam": {**BASE["ipam"], **inner}, **outer}


def test_range_sets_are_numbered_in_the_reference_order() -> None:
    runtime = {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]}
    loaded = config.load(conf(runtimeConfig=runtime, ipam_subnet="10.2.0.0/24", ipam_rangeEnd="10.2.0.9"))
    assert list(map(str, loaded.range_sets)) == [
        "10.1.0.1-10.1.0.254", "10.2.0.1-10.2.0.9", "10.244.1.1-10.244.1.254",
    ]  # fmt: skip


def test_what_flannel_renders_is_understood() -> None:
    routes = [{"dst": "10.244.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.244.1.1", "mtu": 1450, "table": 0}]
    loaded = config.load(conf(ipam_routes=routes, ipam_resolvConf="/etc/resolv.conf", mtu=1450, isGateway=True))
    assert loaded.place == config.Place("/var/lib/cni/networks", "pods")
    assert loaded.resolv_conf == "/etc/resolv.conf"
    assert [route.destination for route in loaded.routes] == ["10.244.0.0/16", "0.0.0.0/0"]
    assert (str(loaded.routes[1].gateway), loaded.routes[1].numbers) == ("10.244.1.1", (("mtu", 1450), ("table", 0)))


REFUSED = [
    ({"ipam": None}, "IPAM config missing 'ipam' key"),
    ({"ipam": []}, "ipam is not a JSON object"),
    ({"ipam_ranges": []}, "no IP ranges specified"),
    ({"ipam_ranges": {}}, "ranges is not a list"),
    ({"ipam_ranges": [[]]}, "invalid range set 0: empty range set"),
    (
        {"ipam_ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/31"}]]},
        "invalid range set 1: Network 10.1.0.0/31 too small to allocate from",
    ),
    ({"ipam_subnet": "10.244.0.0/16"}, "range set 0 overlaps with 1"),
    ({"ipam_subnet": None}, "invalid range set 0: a range has no subnet"),
    ({"ipam_resolvConf": 5}, "resolvConf is not a text"),
    ({"ipam_routes": [{}]}, "invalid route: {}"),
    ({"ipam_routes": [{"dst": "10.0.0.0"}]}, "invalid route: {'dst': '10.0.0.0'}"),
    ({"ipam_routes": [{"dst": "10.0.0.0/8", "gw": 7}]}, "invalid route: {'dst': '10.0.0.0/8', 'gw': 7}"),
    ({"ipam_routes": [{"dst": "10.0.0.0/8", "mtu": True}]}, "invalid route: {'dst': '10.0.0.0/8', 'mtu': True}"),
    ({"ipam_routes": ["x"]}, "invalid route: 'x'"),
    ({"ipam_dataDir": "networks"}, "dataDir is not an absolute path of printable characters"),
    ({"ipam_dataDir": "/a\0b"}, "dataDir is not an absolute path of printable characters"),
    ({"ipam_dataDir": "/a\nb"}, "dataDir is not an absolute path of printable characters"),
    ({"ipam_dataDir": ["/"]}, "dataDir is not an absolute path of printable characters"),
    ({"name": None}, "missing network name"),
    ({"name": ""}, "missing network name"),
    ({"name": "../pods"}, "invalid characters found in network name"),
    ({"runtimeConfig": 5}, "runtimeconfig is not a JSON object"),
    (
        {"cniVersion": "0.2.0", "ipam_subnet": "10.9.0.0/24"},
        "CNI version 0.2.0 does not support more than 1 address per family",
    ),
    (
        {"cniVersion": None, "ipam_subnet": "10.9.0.0/24"},
        "CNI version None does not support more than 1 address per family",
    ),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED)
def test_a_bad_configuration_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(IPAMError) as error:
        config.load(conf(**fields))
    assert (error.value.code, error.value.msg) == (INVALID_CONFIG, reason)


def test_an_old_version_may_have_one_address_per_family() -> None:
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "2001:db8::/64"}]]
    assert len(config.load(conf(cniVersion="0.2.0", ipam_ranges=ranges)).range_sets) == 2


def test_del_needs_only_the_place() -> None:
    assert config.place({"name": "pods", "ipam": {"ranges": "broken", "dataDir": ""}}) == config.Place(
        config.DATA_DIR, "pods"
    )


def test_requested_addresses_come_from_three_places() -> None:
    asked = conf(args={"cni": {"ips": ["10.244.1.3/24"]}}, runtimeConfig={"ips": ["2001:db8::4"]})
    found = config.requested(asked, "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.244.1.2")
    assert list(map(str, found)) == ["10.244.1.2", "10.244.1.3", "2001:db8::4"]
    assert config.requested(BASE, "IP=") == config.requested(conf(args={"cni": None}, runtimeConfig=None)) == ()


BAD_REQUESTS: list[tuple[dict[str, Any], str, int]] = [
    ({}, "IP=x", INVALID_ENVIRONMENT),
    ({}, "IP", INVALID_ENVIRONMENT),
    ({}, "IP=10.244.1.2;", INVALID_ENVIRONMENT),
    ({}, "IP=10.244.1.2=3", INVALID_ENVIRONMENT),
    ({}, "K8S_POD_NAME=x", INVALID_ENVIRONMENT),
    ({}, "K8S_POD_NAME=x;IgnoreUnknown=0", INVALID_ENVIRONMENT),
    ({}, "IgnoreUnknown=perhaps", INVALID_ENVIRONMENT),
    ({"args": {"cni": {"ips": ["x"]}}}, "", INVALID_CONFIG),
    ({"args": {"cni": {"ips": [None]}}}, "", INVALID_CONFIG),
    ({"args": {"cni": {"ips": "10.244.1.2"}}}, "", INVALID_CONFIG),
    ({"args": {"cni": []}}, "", INVALID_CONFIG),
    ({"args": 5}, "", INVALID_CONFIG),
    ({"runtimeConfig": {"ips": [5]}}, "", INVALID_CONFIG),
    ({"runtimeConfig": {"ips": [""]}}, "", INVALID_CONFIG),
]


@pytest.mark.parametrize(("fields", "args", "code"), BAD_REQUESTS)
def test_bad_requests_are_refused(fields: dict[str, Any], args: str, code: int) -> None:
    with pytest.raises(IPAMError) as error:
        config.requested(conf(**fields), args)
    assert error.value.code == code
    assert "\n" not in str(error.value)
