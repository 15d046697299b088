"""The configuration on stdin: decoding, names, sections, attachments of GC, the MAC that is asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.cni import kinds
from fabric.cni.config import MAX_BYTES, Conf, load, parse, refuse, valid_attachments, wanted_mac
from fabric.cni.errors import CniError
from tests.fabric.cni.codes import code_of

MINIMAL = {"cniVersion": "1.1.0", "name": "n", "type": "fabric-cni"}


def conf(**changes: Any) -> Conf:
    return load(MINIMAL | changes)


UNDECODABLE = [
    b"", b"{", b"null", b"[]", b'"x"', b"{}{}", b"\xff\xfe", b'{"a":NaN}', b'{"a":1,"a":2}', b"[" * 100_000,
    b'{"a":' * 1000, b'{"a":' + b"9" * 5000 + b"}", b'{"name":"' + b"x" * MAX_BYTES + b'"}', b"\xef\xbb\xbf{}",
]  # fmt: skip


@pytest.mark.parametrize("data", UNDECODABLE, ids=range(len(UNDECODABLE)))
def test_what_is_no_object_cannot_be_decoded(data: bytes) -> None:
    assert code_of(lambda: parse(data)) == 6


def test_a_megabyte_is_read() -> None:
    document = MINIMAL | {"filler": ""}
    text = json.dumps(document | {"filler": "x" * (MAX_BYTES - len(json.dumps(document)))})
    assert len(text) == MAX_BYTES
    assert parse(text.encode())[1] == "1.1.0"


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_error_6(data: bytes) -> None:
    assert code_of(lambda: parse(data)) in (0, 6)


@pytest.mark.parametrize("name", ["", None, "a/b", "../x", ".x", "-x", "a b", "a\n", "ä", 3, ["n"], "x" * 201])
def test_network_names_are_those_of_libcni(name: Any) -> None:
    assert code_of(lambda: load(MINIMAL | {"name": name})) == 7


@pytest.mark.parametrize("name", ["cbr0", "k8s-pod-network", "a.b_c-d", "0", "x" * 200])
def test_usual_network_names_are_taken(name: str) -> None:
    assert conf(name=name).name == name


@pytest.mark.parametrize("kind", ["", None, "../bridge", "/bin/sh", "a b", 7])
def test_a_type_is_the_name_of_a_plugin(kind: Any) -> None:
    assert code_of(lambda: load(MINIMAL | {"type": kind})) == 7


def test_a_version_is_a_text_and_010_when_absent() -> None:
    assert load({"name": "n", "type": "t"}).version == "0.1.0"
    assert code_of(lambda: load(MINIMAL | {"cniVersion": 1.0})) == 6


def test_keys_match_without_case_and_the_document_stays_as_it_came() -> None:
    document = {"CNIVersion": "1.0.0", "NAME": "n", "Type": "t", "MTU": 1400, "dataDIR": "/x", "Odd": {"Key": 1}}
    loaded = load(document)
    assert (loaded.version, loaded.name, loaded.type, loaded.mtu()) == ("1.0.0", "n", "t", 1400)
    assert loaded.path("datadir", "/y") == "/x"
    assert loaded.document == document


WRONG = [
    ("mtu", "mtu", v) for v in ("1500", 67, 65_536, 1.5, True, False, [])
] + [
    ("section", "ipam", v) for v in ("x", [], 3)
] + [
    ("text", "bridge", v) for v in (3, {}, True)
] + [
    ("flag", "hairpinmode", v) for v in ("true", 1, {})
] + [
    ("path", "datadir", v) for v in ("relative", "../x", 3, "/a\0b")
]  # fmt: skip


@pytest.mark.parametrize(("getter", "key", "value"), WRONG)
def test_a_key_of_the_wrong_type_is_named(getter: str, key: str, value: Any) -> None:
    loaded = conf(**{key: value})
    arguments = {"mtu": (), "path": (key, "/x")}.get(getter, (key,))
    with pytest.raises(CniError, match=key) as caught:
        getattr(loaded, getter)(*arguments)
    assert caught.value.code == 7


def test_absent_and_null_keys_have_defaults() -> None:
    for loaded in (conf(), conf(mtu=None, ipam=None, bridge=None, hairpinmode=None, datadir=None), conf(mtu=0)):
        found = (loaded.mtu(), loaded.section("ipam"), loaded.text("bridge", "cni0"), loaded.path("datadir", "/d"))
        assert found == (0, {}, "cni0", "/d")
        assert (loaded.flag("hairpinmode"), loaded.flag("isgateway", True)) == (False, True)


def test_unsupported_fields_are_refused_with_key_and_value() -> None:
    refuse(conf(vlan=0, portIsolation=False), {"vlan": "x", "portisolation": "x"})
    with pytest.raises(CniError, match="unsupported field vlan=7: use another") as caught:
        refuse(conf(vlan=7), {"vlan": "use another"})
    assert caught.value.code == 2


def test_kinds() -> None:
    assert kinds.wanted(conf()) == "tun"
    assert [kinds.wanted(conf(kind=name)) for name in kinds.NAMES] == list(kinds.NAMES)
    for value in ("Tun", "ipvlan", "os", "common", 3, {}):
        assert code_of(lambda wrong=value: kinds.wanted(conf(kind=wrong))) == 7
    assert code_of(lambda: kinds.load("common")) == 7


def test_valid_attachments() -> None:
    key = "cni.dev/valid-attachments"
    listed = [{"containerID": "a", "ifname": "eth0"}, {"containerid": "b", "IfName": "net1", "more": 1}]
    assert valid_attachments(conf(**{key: listed})) == {("a", "eth0"), ("b", "net1")}
    assert valid_attachments(conf(**{key: []})) == valid_attachments(conf(**{key: None})) == frozenset()


INVALID_LISTS = ["x", {}, [3], [{}], [{"containerID": "a"}], [{"containerID": 3, "ifname": "e"}], [None]]


@pytest.mark.parametrize("value", INVALID_LISTS)
def test_a_list_of_attachments_that_cannot_be_read_frees_nothing(value: Any) -> None:
    assert code_of(lambda: valid_attachments(conf(**{"cni.dev/valid-attachments": value}))) == 7


def test_gc_without_its_list_frees_nothing() -> None:
    assert code_of(lambda: valid_attachments(conf())) == 7


def test_the_mac_is_taken_in_the_bridge_plugins_order() -> None:
    runtime = {"runtimeConfig": {"mac": "02:00:00:00:00:01"}}
    args = {"args": {"cni": {"mac": "02:00:00:00:00:02"}}}
    text = "MAC=02:00:00:00:00:03"
    assert wanted_mac(conf(**runtime, **args), text) == "02:00:00:00:00:01"
    assert wanted_mac(conf(**args), text) == "02:00:00:00:00:02"
    assert wanted_mac(conf(), text) == "02:00:00:00:00:03"
    assert wanted_mac(conf(), "") == wanted_mac(conf(runtimeConfig={}), "IgnoreUnknown=1") == ""
    assert wanted_mac(conf(runtimeConfig={"mac": "0A:00:00:00:00:0b"}), "") == "0a:00:00:00:00:0b"


@pytest.mark.parametrize(
    "mac", ["x", "02:00:00:00:00", "01:00:00:00:00:00", "00:00:00:00:00:00", 3, "02-00-00-00-00-01"]
)
def test_a_mac_is_a_unicast_mac(mac: Any) -> None:
    assert code_of(lambda: wanted_mac(conf(runtimeConfig={"mac": mac}), "")) == 7
