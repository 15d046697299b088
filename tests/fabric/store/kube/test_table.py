"""The table of Nodes: whatever the order of events, it ends with what is there."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.store.kube import annotate
from fabric.store.kube.nodes import Bad, Event, Node
from fabric.store.kube.table import NodeTable
from tests.apiserver.process import F

N = annotate.names()
P = "/p/"


CIDR = "10.244.1.0/24"


def node(name: str, version: int, address: str = "192.0.2.1", cidr: str = CIDR, managed: bool = True) -> Node:
    found = {F + "kube-subnet-manager": "true"} if managed else {}
    return Node(name, version, 100, (cidr,) if cidr else (), found | {F + "public-ip": address})


def modified(found: Node) -> Event:
    return Event("MODIFIED", str(found.version), found.name, found)


def deleted(name: str, version: int) -> Event:
    return Event("DELETED", str(version), name, node(name, version))


def table(limit: int = 100) -> NodeTable:
    return NodeTable(N, "own", limit)


def view(found: NodeTable) -> dict[str, str]:
    """Address by node name, as the entries have them."""
    return {key.partition("@")[2]: entry.value.decode().split('"')[3] for key, entry in found.entries(P).items()}


def test_unmanaged_nodes_and_nodes_without_pod_cidr_are_ignored() -> None:
    found = table()
    assert found.replace([node("a", 1), node("b", 2, managed=False), node("c", 3, cidr="")], [])
    assert view(found) == {"a": "192.0.2.1"}
    assert not found.apply(modified(node("b", 4, "192.0.2.9", managed=False)))
    assert found.apply(modified(node("b", 5)))
    assert found.apply(modified(node("a", 6, managed=False))), "kube-subnet-manager was removed"
    assert view(found) == {"b": "192.0.2.1"}
    assert found.complaints() == []


def test_a_heartbeat_changes_nothing() -> None:
    found = table()
    found.replace([node("a", 1)], [])
    before = found.entries(P)
    assert not found.apply(modified(node("a", 2)))
    assert not found.replace([node("a", 3)], [])
    after = found.entries(P)
    assert after == before
    assert all(after[key] is before[key] for key in after)
    assert [entry.revision for entry in after.values()] == [1]


def test_a_pod_cidr_that_changed_is_another_key() -> None:
    found = table()
    found.replace([node("a", 1)], [])
    assert found.apply(modified(node("a", 2, cidr="10.244.9.0/24")))
    assert list(found.entries(P)) == [P + "10.244.9.0-24@a"]


def test_one_family_of_two_is_enough() -> None:
    found = table()
    both = node("a", 1)
    found.replace([both], [])
    for number, name in enumerate(("public-ipv6", "backend-v6-data", "backend-data"), 2):
        changed = Node("a", number, 100, both.pod_cidrs, {**both.annotations, F + name: f'"{number}"'})
        assert found.apply(modified(changed)), name


def test_any_change_of_our_own_node_counts() -> None:
    found = table()
    found.replace([node("own", 1, managed=False)], [])
    overwritten = Node("own", 2, 100, ("10.244.1.0/24",), {F + "public-ip-overwrite": "203.0.113.1"})
    assert found.apply(modified(overwritten))
    assert found.node("own") == overwritten
    assert found.apply(deleted("own", 3))
    assert found.node("own") is None


def test_a_bad_object_keeps_the_last_good_value_and_is_said_once() -> None:
    found = table()
    found.replace([node("a", 1), node("b", 1)], [Bad("c", "no use")])
    assert found.complaints() == ["node 'c' is not used: no use"]
    for version in ("2", "3"):
        assert not found.apply(Event("MODIFIED", version, "a", None, "annotations is no object"))
    assert view(found) == {"a": "192.0.2.1", "b": "192.0.2.1"}
    assert found.complaints() == ["node 'a' is not used: annotations is no object"]
    assert found.problems() == {"a": "annotations is no object", "c": "no use"}
    assert not found.replace([node("b", 1)], [Bad("a", "annotations is no object"), Bad("c", "no use")])
    assert view(found) == {"a": "192.0.2.1", "b": "192.0.2.1"}
    assert found.complaints() == []
    found.apply(modified(node("a", 4, "192.0.2.4")))
    assert found.problems() == {"c": "no use"}


def test_pod_cidrs_without_use_are_a_problem_of_that_node() -> None:
    found = table()
    found.replace([node("a", 1), node("b", 1, cidr="10.0.0.0/99")], [])
    assert view(found) == {"a": "192.0.2.1"}
    assert found.complaints() == ["node 'b' is not used: node \"b\" has a pod cidr that is none: '10.0.0.0/99'"]
    found.apply(modified(node("b", 2, cidr="10.0.0.0/99")))
    assert view(found) == {"a": "192.0.2.1"}
    assert list(found.problems()) == ["b"]
    assert found.complaints() == []


def test_there_is_a_limit_and_deletions_make_room() -> None:
    found = table(limit=2)
    found.replace([node("a", 1), node("b", 1), node("c", 1)], [])
    assert sorted(view(found)) == ["a", "b"]
    found.apply(modified(node("d", 2)))
    assert sorted(view(found)) == ["a", "b"]
    assert len(found.complaints()) == 1
    found.apply(deleted("a", 3))
    found.apply(modified(node("d", 4)))
    assert sorted(view(found)) == ["b", "d"]


def test_names_of_deleted_nodes_are_forgotten_in_time() -> None:
    found = table(limit=100_000)
    for number in range(10_000):
        found.apply(modified(node(f"n{number}", 2 * number + 1)))
        found.apply(deleted(f"n{number}", 2 * number + 2))
    found.apply(modified(node("last", 30_000)))
    assert view(found) == {"last": "192.0.2.1"}
    assert found.apply(modified(node("n1", 30_001)))


class Change(NamedTuple):
    name: str
    address: str  # empty: delete


ADDRESSES = st.sampled_from(["", "192.0.2.1", "192.0.2.2"])
CHANGES = st.lists(st.builds(Change, st.sampled_from("abc"), ADDRESSES), max_size=12)


def history(changes: Sequence[Change]) -> tuple[list[Event], dict[str, str]]:
    """Events as an API server would number them, and what is there in the end."""
    events: list[Event] = []
    now: dict[str, str] = {}
    for version, change in enumerate(changes, 1):
        if change.address:
            now[change.name] = change.address
            events.append(modified(node(change.name, version, change.address)))
        elif now.pop(change.name, None):
            events.append(deleted(change.name, version))
    return events, now


@pytest.mark.slow
@given(CHANGES, st.randoms(use_true_random=False))
def test_duplicates_and_any_order_end_in_the_same_table(changes: list[Change], rng: object) -> None:
    events, expected = history(changes)
    disordered = events * 2
    rng.shuffle(disordered)  # type: ignore[attr-defined]
    found = table()
    for event in disordered:
        found.apply(event)
    assert view(found) == expected


@given(CHANGES, CHANGES)
def test_a_list_replaces_everything(before: list[Change], after: list[Change]) -> None:
    found = table()
    for event in history(before)[0]:
        found.apply(event)
    held = view(found)
    _, expected = history(after)
    changed = found.replace([node(name, 50, address) for name, address in expected.items()], [])
    assert view(found) == expected
    assert changed or held == expected
