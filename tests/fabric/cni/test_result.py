"""Results in all versions: what each can say, there and back, merged in a chain."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.cni.errors import CniError
from fabric.cni.protocol import VERSIONS
from fabric.cni.result import Interface, IPConfig, Result, emit, parse
from tests.fabric.cni.codes import code_of

# One result as each version writes it, after CNI's documents and pkg/types of each.
NEWEST: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01", "mtu": 1450},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/x", "socketPath": "/s",
         "pciID": "0000:01"},
    ],
    "ips": [
        {"address": "10.244.1.2/24", "gateway": "10.244.1.1", "interface": 1},
        {"address": "2001:db8::2/64", "interface": 1},
    ],
    "routes": [
        {"dst": "0.0.0.0/0", "gw": "10.244.1.1", "mtu": 1400, "advmss": 1360, "priority": 5, "table": 7, "scope": 0},
        {"dst": "2001:db8::/32"},
    ],
    "dns": {"nameservers": ["192.0.2.53"], "domain": "example.org", "search": ["a"], "options": ["b"]},
}  # fmt: skip
V100 = NEWEST | {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}, {"dst": "2001:db8::/32"}],
}
V040 = V100 | {
    "cniVersion": "0.4.0",
    "ips": [
        {"version": "4", "address": "10.244.1.2/24", "gateway": "10.244.1.1", "interface": 1},
        {"version": "6", "address": "2001:db8::2/64", "interface": 1},
    ],
}
V020 = {
    "cniVersion": "0.2.0",
    "ip4": {
        "ip": "10.244.1.2/24", "gateway": "10.244.1.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}],
    },
    "ip6": {"ip": "2001:db8::2/64", "routes": [{"dst": "2001:db8::/32"}]},
    "dns": NEWEST["dns"],
}  # fmt: skip
EXPECTED: dict[str, dict[str, Any]] = {
    "0.1.0": V020 | {"cniVersion": "0.1.0"},
    "0.2.0": V020,
    "0.3.0": V040 | {"cniVersion": "0.3.0"},
    "0.3.1": V040 | {"cniVersion": "0.3.1"},
    "0.4.0": V040,
    "1.0.0": V100,
    "1.1.0": NEWEST,
}


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_says_what_it_can(version: str) -> None:
    assert emit(parse(NEWEST), version) == EXPECTED[version]
    assert emit(parse(EXPECTED[version]), version) == EXPECTED[version], "a result passes through unchanged"


def test_every_version_of_a_previous_result_is_understood() -> None:
    for document in EXPECTED.values():
        assert [str(ip.address) for ip in parse(document).ips] == ["10.244.1.2/24", "2001:db8::2/64"]
    assert parse({key: item for key, item in NEWEST.items() if key != "cniVersion"}) == parse(NEWEST)


def test_before_030_one_address_of_each_family_is_said_and_none_is_an_error() -> None:
    more = NEWEST | {"ips": [*NEWEST["ips"], {"address": "10.9.9.9/8"}]}
    assert emit(parse(more), "0.2.0") == V020
    with pytest.raises(CniError) as caught:
        emit(Result(), "0.2.0")
    assert caught.value.code == 7


def test_behind_a_previous_result_indices_move() -> None:
    before = Result((Interface("lo"), Interface("x0")), (an_ip("192.0.2.1/24", 1),), dns={"domain": "a"})
    ours = Result((Interface("eth0"),), (an_ip("10.244.1.2/32", 0), an_ip("10.244.1.3/32", None)))
    merged = ours.after(before)
    assert [item.name for item in merged.interfaces] == ["lo", "x0", "eth0"]
    assert [ip.interface for ip in merged.ips] == [1, 2, None]
    assert merged.dns == {"domain": "a"}
    assert ours.after(Result()) == ours


def an_ip(address: str, interface: int | None) -> IPConfig:
    return parse({"ips": [{"address": address, "interface": interface}]}).ips[0]


BAD: list[Any] = [
    None, [], "x", 3,
    {"cniVersion": "9.0.0"}, {"cniVersion": [1]},
    {"ips": {"a": 1}}, {"ips": [3]}, {"ips": [{}]}, {"ips": [{"address": "x"}]},
    {"ips": [{"address": 167772161}]}, {"ips": [{"address": "10.0.0.1/24", "interface": "1"}]},
    {"ips": [{"address": "10.0.0.1/24", "interface": -1}]}, {"ips": [{"address": "10.0.0.1/24", "gateway": "x"}]},
    {"interfaces": [{}]}, {"interfaces": [{"name": 3}]}, {"interfaces": ["eth0"]}, {"routes": [{"dst": "10.0.0.0/33"}]},
    {"routes": [{"dst": "10.0.0.0/8", "mtu": "1"}]}, {"routes": [{"dst": "10.0.0.0/8", "priority": True}]},
    {"dns": ["x"]}, {"ip4": {"ip": "x"}}, {"ip4": ["x"]}, {"ip4": 3},
]  # fmt: skip


@pytest.mark.parametrize("value", BAD, ids=range(len(BAD)))
def test_what_is_no_result_is_refused(value: Any) -> None:
    assert code_of(lambda: parse(value)) in (6, 7)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["10.0.0.1/24", "::1/128", "eth0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ips", "ip4", "ip", "address", "gateway", "interface", "routes", "dst", "name", "dns"]),
            inner,
        )
    ),
)


@pytest.mark.slow
@given(JSON)
def test_anything_is_a_result_or_an_error_of_ours(value: Any) -> None:
    assert code_of(lambda: parse(value)) in (0, 6, 7)
    with contextlib.suppress(CniError):
        result = parse(value)
        assert parse(emit(result, "1.1.0")) == result


def test_routes_keep_no_host_bits() -> None:
    assert str(parse({"routes": [{"dst": "10.1.2.3/16"}]}).routes[0].dst) == "10.1.0.0/16"
    assert parse({"routes": [{"dst": "10.0.0.0/8", "mtu": 9}]}).routes[0].number("mtu") == 9
