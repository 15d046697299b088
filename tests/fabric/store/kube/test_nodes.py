"""API objects become entries; whatever stands in one Node never matters to another."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import leases
from fabric.leases import LeaseFormatError
from fabric.store.kube import annotate, nodes
from fabric.store.kube.nodes import DecodeError, Event, Failure, Node, NodeError
from tests.apiserver.process import F, node

N = annotate.names()
P = "/coreos.com/network/subnets/"
MAC = "12:c6:65:89:b4:e3"


def document(**changes: Any) -> dict[str, Any]:
    found = node("node1", "10.244.1.0/24", mac=MAC, public="192.0.2.1")
    found["metadata"] |= {"resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return found | changes


def decoded(found: Any) -> Node:
    return nodes.decode_node(json.dumps(found).encode(), N)


def value_of(**annotations: str | None) -> bytes:
    found = document()
    for name, text in annotations.items():
        found["metadata"]["annotations"][F + name.replace("_", "-")] = text
    found["metadata"]["annotations"] = {k: v for k, v in found["metadata"]["annotations"].items() if v is not None}
    entry = nodes.entry_of(decoded(found), N, P)
    assert entry is not None
    return entry.value


def test_a_flannel_node_is_a_lease() -> None:
    entry = nodes.entry_of(decoded(document()), N, P)
    assert entry is not None
    assert (entry.key, entry.created, entry.revision) == (P + "10.244.1.0-24@node1", 1767225600, 7)
    lease = leases.parse(entry.key.removeprefix(P), entry.value, None, entry.created)
    assert (str(lease.subnet), str(lease.public_ip), lease.node) == ("10.244.1.0/24", "192.0.2.1", "node1")
    assert leases.parse_mac(lease.backend_data) == bytes.fromhex(MAC.replace(":", ""))
    assert leases.emit_value(lease) == entry.value


def test_dual_stack() -> None:
    found = node("n", "10.244.1.0/24", "2001:db8:1::/64", mac=MAC, public="192.0.2.1",
                 backend_v6_data=f'{{"VNI":1,"VtepMAC":"{MAC}"}}', public_ipv6="2001:db8::1")  # fmt: skip
    entry = nodes.entry_of(decoded(found), N, P)
    assert entry is not None
    assert entry.key == P + "10.244.1.0-24&2001:db8:1::-64@n"
    assert str(leases.parse(entry.key.removeprefix(P), entry.value).public_ipv6) == "2001:db8::1"


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({"podCIDR": "10.244.1.0/24"}, "10.244.1.0-24@node1"),
        ({"podCIDRs": ["2001:db8:1::/64"]}, "0.0.0.0-0&2001:db8:1::-64@node1"),
        ({"podCIDRs": ["2001:db8:1::/64", "10.244.1.7/24"]}, "10.244.1.0-24&2001:db8:1::-64@node1"),
        ({}, None),
        ({"podCIDR": ""}, None),
    ],
)
def test_pod_cidrs(spec: Any, key: str | None) -> None:
    entry = nodes.entry_of(decoded(document(spec=spec)), N, P)
    assert (entry.key if entry else None) == (P + key if key else None)


@pytest.mark.parametrize(
    ("cidrs", "message"),
    [
        (["10.1.0.0/24", "10.2.0.0/24"], 'node "node1" pod cidrs should be IPv4/IPv6 only or dualstack'),
        (["10.1.0.0/24", "2001:db8::/64", "10.3.0.0/24"], 'node "node1" pod cidrs should be IPv4/IPv6 only or dual'),
        (["10.1.0.0"], "none"),
        (["10.1.0.0/255.255.255.0x"], "none"),
        (["fe80::%eth0/64"], "none"),
        (["0.0.0.0/0"], "whole address space"),
    ],
)
def test_bad_pod_cidrs(cidrs: list[str], message: str) -> None:
    with pytest.raises(NodeError, match=message):
        nodes.entry_of(decoded(document(spec={"podCIDRs": cidrs})), N, P)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend_data": "{"}, "annotation flannel.alpha.coreos.com/backend-data is not valid JSON"),
        ({"backend_data": "[" * 5000}, "nested deeper than 32"),
        ({"backend_data": '{"VNI":' + "9" * 5000 + "}"}, "digits is too large"),
        ({"backend_data": '{"a":1,"a":2}'}, "given twice"),
        ({"backend_data": '"' + "x" * 70000 + '"'}, "more than the limit"),
        ({"backend_v6_data": "NaN"}, "not a JSON number"),
        ({"public_ip": None}, "annotation flannel.alpha.coreos.com/public-ip is missing"),
        ({"public_ip": "nonsense"}, "PublicIP is not an address"),
        ({"public_ip": "::1"}, "PublicIP is not an address"),
        ({"backend_type": "x" * 100}, "BackendType is not a short string"),
    ],
)
def test_annotations_that_cannot_be_read_keep_the_last_good_lease(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(LeaseFormatError, match=reason):
        leases.parse("10.244.1.0-24@node1", value_of(**changes))


def test_only_flannels_annotations_are_kept() -> None:
    found = document()
    found["metadata"]["annotations"] |= {"other": "x" * 1000, F + "more": "y"}
    assert sorted(decoded(found).annotations) == sorted(node("n", mac=MAC, public="x")["metadata"]["annotations"])


def test_a_poisoned_item_is_put_aside() -> None:
    good = [document(metadata=document()["metadata"] | {"name": f"node{number}"}) for number in range(3)]
    bad = [
        {"metadata": {"name": "bad1", "annotations": {"a": 1}}},
        {"metadata": {"name": "bad2"}, "spec": {"podCIDRs": "10.0.0.0/8"}},
        {"metadata": {}},
        {"spec": {}},
        17,
    ]
    text = {"kind": "NodeList", "metadata": {"resourceVersion": "9"}, "items": [*bad, *good]}
    page = nodes.decode_list(json.dumps(text).encode(), N)
    assert [item.name for item in page.nodes] == ["node0", "node1", "node2"]
    assert [item.name for item in page.bad] == ["bad1", "bad2", "", "", ""]
    assert (page.version, page.more) == ("9", "")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"metadata":{}}', b'{"metadata":{"resourceVersion":1}}',
                                  b"[" * 100000, b"\xff"])  # fmt: skip
def test_what_is_no_list(text: bytes) -> None:
    with pytest.raises(DecodeError):
        nodes.decode_list(text, N)


def event(kind: str, item: Any) -> Event | Failure:
    return nodes.decode_event(json.dumps({"type": kind, "object": item}).encode(), N)


def test_events() -> None:
    found = event("MODIFIED", document())
    assert isinstance(found, Event)
    assert (found.kind, found.name, found.version, found.problem) == ("MODIFIED", "node1", "7", "")
    assert event("BOOKMARK", {"metadata": {"resourceVersion": "99"}}) == Event("BOOKMARK", "99")
    opaque = event("ADDED", document(metadata={"name": "n", "resourceVersion": "opaque"}))
    assert isinstance(opaque, Event)
    assert opaque.version == "opaque"
    bad = event("ADDED", {"metadata": {"name": "bad", "resourceVersion": "8", "annotations": []}})
    assert isinstance(bad, Event)
    assert (bad.name, bad.version, bad.node) == ("bad", "8", None)
    assert "annotations" in bad.problem
    expired = event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too\nold"})
    assert expired == Failure(410, "Expired", "too old")
    with pytest.raises(DecodeError, match="unknown watch event"):
        event("SOMETHING", document())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
TEXTS = st.text(max_size=60) | JSON.map(lambda value: json.dumps(value)) | st.sampled_from(
    ["null", "true", "", '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}', "192.0.2.1", "2001:db8::1", "[" * 100, "vxlan"]
)  # fmt: skip


def problem_of(call: Callable[[], object]) -> str:
    """What is said about an input that is refused; empty for one that is taken."""
    try:
        call()
    except (DecodeError, LeaseFormatError) as error:
        return str(error)
    return ""


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(N.all()), TEXTS), st.lists(TEXTS | st.sampled_from(["10.1.0.0/24"]), max_size=3))
def test_hostile_annotations_never_raise_anything_else(annotations: dict[str, str], cidrs: list[str]) -> None:
    text = json.dumps(document(metadata={"name": "n", "annotations": annotations}, spec={"podCIDRs": cidrs}))
    try:
        entry = nodes.entry_of(nodes.decode_node(text.encode("utf-8", "replace"), N), N, P)
    except (NodeError, DecodeError):
        return
    if entry is not None:
        assert "\n" not in problem_of(lambda: leases.parse(entry.key.removeprefix(P), entry.value, None, 1))


@pytest.mark.slow
@given(JSON | st.fixed_dictionaries({"metadata": JSON, "spec": JSON, "items": st.lists(JSON, max_size=3)}))
def test_hostile_documents_never_raise_anything_else(found: Any) -> None:
    text = json.dumps(found).encode("utf-8", "replace")
    for decode in (nodes.decode_list, nodes.decode_node, nodes.decode_event):
        assert "\n" not in problem_of(lambda decode=decode: decode(text, N))  # type: ignore[misc]
    nodes.decode_status(text)
