"""The lease table loses no good lease to a bad write, a lost store or a long outage."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import leases
from fabric.lease_table import GRACE, LeaseTable
from fabric.store.base import Entry, Snapshot

P = "/coreos.com/network/subnets/"
A, B = "10.244.2.0-24", "10.244.3.0-24"
GOOD_A = b'{"PublicIP":"192.0.2.2","PublicIPv6":null}'
GOOD_B = b'{"PublicIP":"192.0.2.3","PublicIPv6":null}'
NOW = 1_800_000_000.0


def snap(revision: int, store: str = "one", expires: float | None = None, **values: bytes) -> Snapshot:
    keys = {"a": A, "b": B}
    entries = {
        P + keys.get(name, name): Entry(P + keys.get(name, name), value, 1, revision, expires)
        for name, value in values.items()
    }
    return Snapshot(store, revision, entries)


def current(table: LeaseTable, now: float = NOW) -> dict[str, str]:
    return {lease.key: str(lease.public_ip) for lease in table.current(now)}


def test_leases_come_change_and_go() -> None:
    table = LeaseTable(P)
    assert table.update(snap(1, a=GOOD_A, b=GOOD_B), NOW) == []
    assert current(table) == {A: "192.0.2.2", B: "192.0.2.3"}
    table.update(snap(2, a=GOOD_A.replace(b".2.2", b".2.9")), NOW)
    assert current(table) == {A: "192.0.2.9"}
    table.update(snap(3), NOW)
    assert current(table) == {}


@pytest.mark.parametrize("bad", [b"", b"{", b"[]", b'{"PublicIP":7}', b"\xff", b"[" * 10_000])
def test_a_bad_value_leaves_the_last_good_one_and_is_said_once(bad: bytes) -> None:
    table = LeaseTable(P)
    table.update(snap(1, a=GOOD_A, b=GOOD_B), NOW)
    said = table.update(snap(2, a=bad, b=GOOD_B), NOW)
    assert len(said) == 1
    assert said[0].startswith(f"lease '{A}' keeps its last good value: ")
    assert "\n" not in said[0]
    assert current(table) == {A: "192.0.2.2", B: "192.0.2.3"}
    same = Snapshot("one", 3, {**snap(2, a=bad).entries, **snap(3, b=GOOD_A.replace(b".2.2", b".2.4")).entries})
    assert table.update(same, NOW) == []
    assert current(table) == {A: "192.0.2.2", B: "192.0.2.4"}
    assert (table.malformed, list(table.problems())) == (1, [A])
    table.update(snap(4, a=GOOD_A), NOW)
    assert not table.problems()


def test_a_bad_value_from_the_start_is_ignored() -> None:
    table = LeaseTable(P)
    said = table.update(snap(1, a=b"{", b=GOOD_B), NOW)
    assert said[0].startswith(f"lease '{A}' is ignored: the value is not valid JSON")
    assert current(table) == {B: "192.0.2.3"}


def test_an_unreadable_key_is_never_a_snapshot_of_its_own() -> None:
    table = LeaseTable(P)
    table.update(snap(1, a=GOOD_A), NOW)
    said = table.update(Snapshot("one", 2, {**snap(1, a=GOOD_A).entries, **snap(2, rubbish=GOOD_B).entries}), NOW)
    assert len(said) == 1
    assert current(table) == {A: "192.0.2.2"}


def test_a_store_made_anew_removes_nobody_until_it_knew_them() -> None:
    table = LeaseTable(P)
    table.update(snap(5, expires=NOW + 100, a=GOOD_A, b=GOOD_B), NOW)
    table.update(snap(0, "two"), NOW)
    assert current(table) == {A: "192.0.2.2", B: "192.0.2.3"}
    assert table.remembered() == {A, B}
    table.update(snap(1, "two", expires=NOW + 200, b=GOOD_B), NOW)
    assert table.remembered() == {A}
    table.update(snap(2, "two"), NOW)
    assert current(table) == {A: "192.0.2.2"}  # b was removed from the store that knew it
    assert table.next_end() == NOW + 100
    assert current(table, NOW + 100) == {}  # a's lease ended


def test_a_node_that_published_again_elsewhere_is_not_remembered_twice() -> None:
    table = LeaseTable(P)
    table.update(snap(5, a=GOOD_A), NOW)
    table.update(snap(1, "two", b=GOOD_A), NOW)
    assert current(table) == {B: "192.0.2.2"}


def test_what_the_disk_remembers_holds_until_the_store_speaks() -> None:
    table = LeaseTable(P)
    table.seed([leases.parse(A, GOOD_A, NOW + 10)])
    assert current(table) == {A: "192.0.2.2"}
    table.update(snap(1, a=GOOD_A.replace(b".2.2", b".2.9")), NOW)
    assert current(table) == {A: "192.0.2.9"}


def test_leases_that_ended_in_an_outage_get_a_little_time() -> None:
    table = LeaseTable(P)
    table.update(snap(1, expires=NOW + 10, a=GOOD_A, b=GOOD_B), NOW)
    later = NOW + 72 * 3600
    assert current(table, later) == {A: "192.0.2.2", B: "192.0.2.3"}  # the store is silent: nothing ends
    table.update(snap(2, expires=later + 10, b=GOOD_B), later)
    assert current(table, later) == {A: "192.0.2.2", B: "192.0.2.3"}
    assert table.next_end() == later + GRACE
    assert current(table, later + GRACE) == {B: "192.0.2.3"}


def test_nothing_ends_before_the_store_has_spoken_for_the_first_time() -> None:
    table = LeaseTable(P)
    table.seed([leases.parse(A, GOOD_A, NOW + 10), leases.parse(B, GOOD_B, NOW + 10)])
    later = NOW + 72 * 3600
    assert current(table, later) == {A: "192.0.2.2", B: "192.0.2.3"}
    table.update(snap(1, b=GOOD_B), later)
    assert current(table, later) == {A: "192.0.2.2", B: "192.0.2.3"}
    assert current(table, later + GRACE) == {B: "192.0.2.3"}


def test_a_lease_without_time_limit_that_only_we_remember_ends_after_a_day() -> None:
    table = LeaseTable(P)
    table.seed([leases.parse(A, GOOD_A)])
    assert current(table, NOW + 30 * leases.TTL) == {A: "192.0.2.2"}  # the store is silent
    table.update(snap(1, b=GOOD_B), NOW)
    assert current(table) == {A: "192.0.2.2", B: "192.0.2.3"}
    assert table.next_end() == NOW + leases.TTL
    assert current(table, NOW + leases.TTL) == {B: "192.0.2.3"}  # in the store: no limit


VALUES = {0: b"{", 1: GOOD_A, 2: GOOD_B, 3: GOOD_A.replace(b".2.2", b".2.9")}
steps = st.tuples(
    st.dictionaries(st.integers(0, 5), st.none() | st.tuples(st.sampled_from([0, 1, 2, 3]), st.integers(1, 300))),
    st.sampled_from(["one", "one", "one", "two"]),
    st.integers(0, 150),
    st.sampled_from(["told", "told", "missed", "not told"]),
)


@pytest.mark.slow
@given(st.lists(steps, max_size=12))
def test_being_told_what_changed_makes_no_difference(
    path: list[tuple[dict[int, tuple[int, int] | None], str, int, str]],
) -> None:
    """One table is given stores' own words about what changed, the other has to find out; some snapshots are lost."""
    told, untold = LeaseTable(P), LeaseTable(P)
    for table in (told, untold):
        table.seed([leases.parse("10.244.0.0-24", GOOD_A, NOW + 10)])
    contents: dict[str, dict[str, Entry]] = {"one": {}, "two": {}}
    last: Snapshot | None = None
    now = NOW
    for revision, (changes, store, wait, word) in enumerate(path, 1):
        now += wait
        entries = contents[store] = dict(contents[store])
        for number, new in changes.items():
            key = f"{P}10.244.{number}.0-24"
            entries.pop(key, None)
            if new is not None:
                entries[key] = Entry(key, VALUES[new[0]], revision, revision, now + new[1])
        changed = frozenset(f"{P}10.244.{number}.0-24" for number in changes)
        snapshot = Snapshot(store, revision, entries)
        if last is not None and last.store_id == store and word != "not told":
            snapshot = replace(snapshot, since=last.version, changed=changed)
        if word != "missed":
            assert sorted(told.update(snapshot, now)) == sorted(untold.update(Snapshot(store, revision, entries), now))
        last = snapshot
        assert told.current(now) == untold.current(now)
        assert [lease.key for lease in told.current(now)] == sorted(lease.key for lease in told.current(now))
        assert (told.next_end(), told.remembered(), told.problems()) == (
            untold.next_end(), untold.remembered(), untold.problems()
        )  # fmt: skip
        assert told.current(now) == told.current(now)
