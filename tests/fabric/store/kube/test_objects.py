"""What is kept of the objects that policy needs, and the table of those that exist."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fabric.store.kube.nodes import Bad, DecodeError, Event, Failure
from fabric.store.kube.objects import KINDS, Kept, ObjectTable

BY_KIND = {kind.kind: kind for kind in KINDS}
POD = {
    "metadata": {
        "name": "web-1", "namespace": "shop", "uid": "u", "resourceVersion": "7", "labels": {"app": "web"},
        "annotations": {"podfabric.io/staged": "true", "other": "x"}, "managedFields": [{"manager": "kubelet"}],
    },
    "spec": {"nodeName": "n1", "volumes": [{"name": "v"}],
             "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "name": "http"}]}]},
    "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.5"}], "conditions": [{"type": "Ready"}]},
}  # fmt: skip
POLICY = {
    "metadata": {"name": "all", "namespace": "shop", "resourceVersion": "9"},
    "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]},
}


def listed(kind: str, *items: Any, **meta: Any) -> Any:
    document = {"metadata": {"resourceVersion": "20", **meta}, "items": list(items)}
    return BY_KIND[kind].decode_list(json.dumps(document).encode())


def test_of_a_pod_what_policy_needs_is_kept() -> None:
    page = listed("Pod", POD, **{"continue": "more"})
    assert (page.version, page.more, page.bad) == ("20", "more", ())
    assert page.nodes == (
        Kept("shop/web-1", 7, {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"},
                         "annotations": {"podfabric.io/staged": "true"}},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"containerPort": 80, "name": "http"}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.5"}]},
        }),
    )  # fmt: skip


def test_of_a_policy_the_whole_spec() -> None:
    (kept,) = listed("NetworkPolicy", POLICY).nodes
    assert kept.value["spec"] == POLICY["spec"]
    assert (kept.value["apiVersion"], kept.name) == ("networking.k8s.io/v1", "shop/all")


def test_what_has_no_name_or_is_of_another_shape_is_put_aside() -> None:
    odd = {"metadata": {"name": "odd", "namespace": "shop"}, "spec": {"hostNetwork": "yes"}}
    page = listed("Pod", odd, {"metadata": {}}, POD)
    assert [item.name for item in page.bad] == ["shop/odd", "/"]
    assert len(page.nodes) == 1
    with pytest.raises(DecodeError):
        BY_KIND["Pod"].decode_list(b'{"metadata": {}, "items": []}')


def test_events() -> None:
    def event(kind: str, item: Any) -> Any:
        return BY_KIND["Pod"].decode_event(json.dumps({"type": kind, "object": item}).encode())

    assert event("BOOKMARK", {"metadata": {"resourceVersion": "30"}}) == Event("BOOKMARK", "30")
    added = event("ADDED", POD)
    assert (added.kind, added.version, added.name, added.node.version) == ("ADDED", "7", "shop/web-1", 7)
    bad = event("MODIFIED", {"metadata": {"name": "odd", "resourceVersion": "8"}, "spec": 3})
    assert (bad.name, bad.node, bool(bad.problem)) == ("/odd", None, True)
    assert event("ERROR", {"code": 410, "reason": "Expired"}) == Failure(410, "Expired", "")
    with pytest.raises(DecodeError):
        event("NEWS", POD)


def kept(name: str, version: int, value: int = 0) -> Kept:
    return Kept(name, version, {"value": value})


def put(version: int, name: str, value: int = 0) -> Event[Kept]:
    return Event("MODIFIED", str(version), name, kept(name, version, value))


def test_the_table_follows_lists_and_events() -> None:
    table = ObjectTable("Pod")
    assert table.replace([kept("a/1", 1), kept("a/2", 2)], [])
    assert not table.apply(put(3, "a/1"))  # a heartbeat: nothing that is kept has changed
    assert table.apply(put(4, "a/1", 5))
    assert table.apply(Event("DELETED", "5", "a/2"))
    assert not table.apply(put(4, "a/2", 1))  # of before its deletion
    assert not table.apply(put(4, "a/1", 9))  # twice, or out of order
    assert {name: row.value["value"] for name, row in table.objects().items()} == {"a/1": 5}
    assert table.apply(put(6, "a/2", 1))
    assert table.replace([kept("a/2", 6, 1)], [])
    assert not table.replace([kept("a/2", 6, 1)], [])
    assert list(table.objects()) == ["a/2"]
    assert table.number == 5


def test_an_object_that_cannot_be_read_keeps_its_last_good_value_and_is_said_once() -> None:
    table = ObjectTable("Pod")
    table.replace([kept("a/1", 1, 7)], [])
    assert table.apply(Event("MODIFIED", "2", "a/1", None, "spec is no object"))  # users of problems() look again
    assert not table.apply(Event("MODIFIED", "3", "a/1", None, "spec is no object"))
    assert table.complaints() == ["Pod 'a/1' is not used: spec is no object"]
    table.replace([], [Bad("a/1", "spec is no object"), Bad("a/2", "no")])
    assert table.complaints() == ["Pod 'a/2' is not used: no"]
    assert {name: row.value["value"] for name, row in table.objects().items()} == {"a/1": 7}
    table.apply(put(9, "a/1", 8))
    assert table.problems() == {"a/2": "no"}


def test_the_table_is_bounded() -> None:
    table = ObjectTable("Pod", limit=2)
    table.replace([kept(f"a/{i}", i) for i in range(1, 4)], [])
    assert list(table.objects()) == ["a/1", "a/2"]
    assert not table.apply(put(9, "a/9"))
    assert table.complaints() == ["Pods: more than 2: the rest is not used"]


def test_of_a_policy_is_known_which_object_it_is_and_of_one_that_cannot_be_read() -> None:
    meta = {"name": "all", "namespace": "shop", "uid": "u1", "generation": 3, "resourceVersion": "9"}
    page = listed("NetworkPolicy", {"metadata": meta}, {"metadata": meta | {"name": "odd", "labels": {"a": 3}}})
    (kept,), (bad,) = page.nodes, page.bad
    assert (kept.uid, kept.generation, kept.version) == ("u1", 3, 9)
    assert kept.value["metadata"] == {"name": "all", "namespace": "shop"}
    assert (bad.name, bad.uid, bad.generation, bad.version) == ("shop/odd", "u1", 3, 9)
    line = json.dumps({"type": "MODIFIED", "object": {"metadata": meta | {"labels": 3}}}).encode()
    event = BY_KIND["NetworkPolicy"].decode_event(line)
    assert (event.node, event.name, event.uid, event.generation) == (None, "shop/all", "u1", 3)
    table = ObjectTable("NetworkPolicy")
    table.apply(event)
    assert table.bad() == {"shop/all": Bad("shop/all", event.problem, 9, "u1", 3)}


def test_an_equal_value_stays_the_same_one_under_its_new_version() -> None:
    table = ObjectTable("NetworkPolicy")
    table.replace([Kept("a/1", 1, {"value": 0}, "u1", 1)], [])
    value = table.objects()["a/1"].value
    again = Kept("a/1", 5, {"value": 0}, "u1", 3)
    assert not table.replace([again], [])
    assert table.objects()["a/1"] == again
    assert not table.apply(put(4, "a/1", 9))  # of before that list
    assert not table.apply(Event("MODIFIED", "6", "a/1", Kept("a/1", 6, {"value": 0}, "u1", 3)))
    assert table.replace([Kept("a/1", 7, {"value": 0}, "u2", 1)], [])  # another object in its place
    assert table.objects()["a/1"].value is value
