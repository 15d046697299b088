"""`runtimeConfig.portMappings`, `ipMasq` and a pod's identity as a runtime gives them, hostile ones among them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.cni.config import Conf, load
from fabric.cni.identity import MAX_LABELS, identity
from fabric.cni.mappings import HostSide, Mapping, wanted
from fabric.cni.protocol import Request
from fabric.traffic.portmap import MAX_OWNER, owner_name
from tests.fabric.cni.codes import code_of

WEB = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


def conf(mappings: Any = None, **changes: Any) -> Conf:
    document = {"cniVersion": "1.1.0", "name": "net", "type": "fabric-cni", **changes}
    return load(document | ({"runtimeConfig": {"portMappings": mappings}} if mappings is not None else {}))


def test_what_runtimes_give() -> None:
    found = wanted(conf([WEB, {"HostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"}]))
    assert found == HostSide((Mapping("tcp", 8080, 80), Mapping("udp", 53, 5353, ip_address("192.0.2.1"), 4)))
    assert [str(mapping) for mapping in found.mappings] == ["*:8080/tcp", "192.0.2.1:53/udp"]


@pytest.mark.parametrize(
    ("text", "host", "version"),
    [
        ("", None, 0),
        ("0.0.0.0", None, 4),
        ("::", None, 6),
        ("2001:db8::1", "2001:db8::1", 6),
        ("::ffff:192.0.2.1", "192.0.2.1", 4),
    ],
)
def test_unspecified_addresses_are_all_of_their_version(text: str, host: str | None, version: int) -> None:
    (mapping,) = wanted(conf([WEB | {"hostIP": text}])).mappings
    assert (mapping.host, mapping.version) == (host and ip_address(host), version)


def test_without_mappings_nothing_is_to_be_done() -> None:
    assert not wanted(conf())
    assert not wanted(conf([]))
    assert wanted(conf(ipMasq=True)).masquerade
    assert not wanted(conf([WEB], type="bridge")), "flannel's delegate leaves them to portmap"


HOSTILE: list[tuple[Any, int]] = [
    ("x", 7), ({}, 7), (["x"], 7), ([None], 7), ([{}], 7), ([WEB | {"hostPort": 0}], 7),
    ([WEB | {"hostPort": 65536}], 7),
    ([WEB | {"hostPort": "80"}], 7), ([WEB | {"hostPort": True}], 7), ([WEB | {"containerPort": -1}], 7),
    ([WEB | {"containerPort": 80.0}], 7), ([WEB | {"protocol": "icmp"}], 7), ([WEB | {"protocol": ["tcp"]}], 7),
    ([WEB | {"hostIP": "x\n"}], 7), ([WEB | {"hostIP": "fe80::1%eth0"}], 7), ([WEB | {"hostIP": 7}], 7),
    ([WEB, WEB | {"containerPort": 81}], 7), ([WEB | {"hostIP": "0.0.0.0"}, WEB | {"containerPort": 81}], 7),
    ([WEB, WEB], 0),
    ([WEB, WEB | {"protocol": "udp"}], 0), ([WEB, WEB | {"hostIP": "192.0.2.1", "containerPort": 1}], 0),
]  # fmt: skip


@pytest.mark.parametrize(("value", "code"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_mappings_are_refused_in_one_line(value: Any, code: int) -> None:
    assert code_of(lambda: wanted(conf(value))) == code


@pytest.mark.parametrize("key", ["masqAll", "conditionsV4", "conditionsV6"])
def test_keys_of_portmap_that_change_the_meaning_are_refused(key: str) -> None:
    assert code_of(lambda: wanted(conf([WEB], **{key: ["x"]}))) == 2
    assert code_of(lambda: wanted(conf(**{key: ["x"]}))) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    )
)
def test_no_identity_is_a_reason_to_fail(value: Any) -> None:
    asked = conf(args={"cni": {"labels": value}}) if value else conf(args=value or {})
    found = identity(asked, Request("ADD", "c1", args="K8S_POD_NAME"))
    assert found.pod == {"container_id": "c1"}
    assert all(isinstance(item, str) for pair in found.labels.items() for item in pair)


def test_an_identity_is_bounded() -> None:
    labels = [{"key": f"k{number}", "value": "v"} for number in range(1000)]
    assert len(identity(conf(args={"cni": {"labels": labels}}), Request("ADD", "c1")).labels) == MAX_LABELS


def test_names_of_owners_are_short_and_unique_and_begin_with_the_network() -> None:
    long = ["a" * 199, "b" * 199]
    names = {owner_name(network, container, "eth0") for network in long for container in long}
    assert len(names) == 4
    for name in names:
        assert len(name.encode()) <= MAX_OWNER
        assert name.startswith(tuple(f"{network}/" for network in long))
