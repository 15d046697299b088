"""The pure part: a prefix's content against a naive model, ranges, and whether a history was replaced."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.store.base import Entry
from fabric.store.etcd import content as module
from fabric.store.etcd.content import Content, Identity, TooMuchError, decode_key, encode_key, prefix_range

P = "/p/"
PUT, DELETE = 0, 1
BLOCK = b"x" * (1 << 17)


def kv(key: str, revision: int, value: bytes = b"v", lease: int = 0, created: int = 1) -> Any:
    return SimpleNamespace(
        key=encode_key(key), value=value, create_revision=created, mod_revision=revision, lease=lease
    )


def ends(lease: int) -> float:
    return 1000.0 + lease


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("/a/", (b"/a/", b"/a0")),
        ("a\x7f", (b"a\x7f", b"a\x80")),
        ("a\udcff", (b"a\xff", b"b")),
        ("\udcff\udcff", (b"\xff\xff", b"\0")),
        ("", (b"\0", b"\0")),
    ],
)
def test_ranges(prefix: str, expected: tuple[bytes, bytes]) -> None:
    assert prefix_range(prefix) == expected


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_a_range_holds_what_begins_with_the_prefix(prefix: bytes, key: bytes) -> None:
    start, end = prefix_range(decode_key(prefix))
    if key:  # etcd has no empty key
        assert (key >= start and (end == b"\0" or key < end)) == key.startswith(prefix)


@given(st.binary())
def test_keys_survive_the_way_in_and_out(key: bytes) -> None:
    assert encode_key(decode_key(key)) == key


events = st.lists(
    st.tuples(st.sampled_from([PUT, DELETE]), st.sampled_from(["/p/a", "/p/b", "/p/c", "/q/a"]), st.integers(0, 3)),
    max_size=30,
)


@given(events, st.integers(1, 5))
def test_events_against_a_dict(changes: list[tuple[int, str, int]], size: int) -> None:
    content = Content(P, "s", 10)
    model: dict[str, Entry] = {}
    revision = 10
    for start in range(0, len(changes), size):
        batch = []
        touched = False
        for kind, key, lease in changes[start : start + size]:
            revision += 1
            batch.append(SimpleNamespace(type=kind, kv=kv(key, revision, b"%d" % revision, lease)))
            if key.startswith(P):
                touched = True
                if kind == DELETE:
                    model.pop(key, None)
                else:
                    model[key] = Entry(key, b"%d" % revision, 1, revision, ends(lease) if lease else None)
        before = content.snapshot()
        kept = dict(before.entries)
        assert content.apply(batch, DELETE, ends) == touched
        content.reached(revision)
        after = content.snapshot()
        assert after.since is before.version
        old, new = before.entries, after.entries
        assert {key for key in old.keys() | new.keys() if old.get(key) is not new.get(key)} <= after.changed
        assert after.entries == model
        assert content.snapshot().revision == revision
        assert before.entries == kept  # a snapshot stays what it is
        assert not content.apply(batch, DELETE, ends)  # what comes twice counts once
        newest = max(model.values(), key=lambda entry: entry.revision, default=None)
        assert content.matches(len(model), kv(newest.key, newest.revision) if newest else None)
    assert content.leases() == {int(entry.expires - 1000) for entry in model.values() if entry.expires}


@pytest.mark.slow
@given(events)
def test_the_size_is_that_of_what_is_there(changes: list[tuple[int, str, int]]) -> None:
    content = Content(P, "s", 0)
    for number, (kind, key, _) in enumerate(changes, 1):
        content.apply([SimpleNamespace(type=kind, kv=kv(key, number, b"x" * number))], DELETE, ends)
        content.reached(number)
    # Room for what is missing to the limit, and no more.
    held = sum(len(entry.key) + len(entry.value) for entry in content.snapshot().entries.values())
    room = module.MAX_BYTES - held
    filler = [kv(f"/p/fill{number:05}", 99, BLOCK) for number in range(room // (len(BLOCK) + 12))]
    content.put(filler, ends)
    with pytest.raises(TooMuchError):
        content.put([kv("/p/last0", 99, BLOCK)], ends)


def test_a_huge_value_is_cut() -> None:
    content = Content(P, "s", 0)
    content.put([kv("/p/a", 1, b"x" * 1_000_000)], ends)
    assert len(content.snapshot().entries["/p/a"].value) == module.MAX_VALUE


@pytest.mark.slow
def test_too_many_keys() -> None:
    content = Content(P, "s", 0)
    content.put((kv(f"/p/{number}", 1) for number in range(module.MAX_KEYS)), ends)
    with pytest.raises(TooMuchError, match="65536 keys"):
        content.put([kv("/p/more", 1)], ends)


def test_another_end_of_a_lease_reaches_its_keys() -> None:
    content = Content(P, "s", 0)
    content.put([kv("/p/a", 1, lease=5), kv("/p/b", 1, lease=6), kv("/p/c", 1)], ends)
    content.retime({5}, lambda lease: 7.0)
    found = content.snapshot().entries
    assert [found[f"/p/{name}"].expires for name in "abc"] == [7.0, 1006.0, None]


MISMATCHES = [
    (3, kv("/p/b", 9, created=4)),
    (1, kv("/p/b", 9, created=4)),
    (2, kv("/p/a", 9, created=4)),
    (2, kv("/p/b", 8, created=4)),
    (2, kv("/p/b", 9, created=5)),
    (2, None),
    (0, None),
]


@pytest.mark.parametrize(("count", "newest"), MISMATCHES)
def test_what_does_not_match(count: int, newest: Any) -> None:
    content = Content(P, "s", 9)
    content.put([kv("/p/a", 3), kv("/p/b", 9, created=4)], ends)
    assert content.matches(2, kv("/p/b", 9, created=4))
    assert not content.matches(count, newest)


def header(revision: int, cluster: int = 7) -> Any:
    return SimpleNamespace(cluster_id=cluster, revision=revision)


def test_the_identity_is_the_clusters_until_its_history_is_replaced() -> None:
    identity = Identity()
    assert identity.observe(header(5), identity.mark())
    first = identity.store_id
    assert first == "7.0"
    assert identity.observe(header(9), identity.mark())
    assert identity.observe(header(9), identity.mark())
    assert not identity.observe(header(8), identity.mark())  # backwards
    assert identity.store_id == "7.1"
    assert identity.observe(header(8), identity.mark())
    assert not identity.observe(header(20, cluster=8), identity.mark())
    assert identity.store_id == "8.2"
    assert identity.observe(header(20, cluster=8), identity.mark())


def test_answers_that_overtake_each_other_replace_nothing() -> None:
    identity = Identity()
    identity.observe(header(5), identity.mark())
    slow, quick = identity.mark(), identity.mark()
    assert identity.observe(header(9), quick)
    assert identity.observe(header(6), slow)
    assert identity.store_id == "7.0"
    identity.reached("7.0", 30)  # a watch saw more
    late = identity.mark()
    assert not identity.observe(header(20), identity.mark())
    assert identity.observe(header(21), late)  # asked before, answered after: the same replacement
    assert identity.store_id == "7.1"


def test_a_replacement_counts_once_whoever_sees_it() -> None:
    identity = Identity()
    identity.observe(header(5), identity.mark())
    old = identity.store_id
    assert identity.replaced(old)
    assert not identity.replaced(old)
    assert identity.store_id == "7.1"
    identity.reached(old, 1000)  # of the old history: no measure for the new one
    assert identity.observe(header(3), identity.mark())
