"""Following the file's record of changes against reading everything."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.store.base import Entry, Snapshot
from fabric.store.sqlite import SqliteStore
from fabric.store.sqlite_file import SqliteFile
from fabric.store.sqlite_listing import AT_ONCE, KEPT, has_record
from tests.fabric.clock import Clock

P = "/p/"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.none() | st.integers(1, 20)),
        st.tuples(st.just("delete"), st.integers(0, 5), st.none()),
        st.tuples(st.just("many"), st.sampled_from([3, AT_ONCE + 5]), st.none()),
        st.tuples(st.just("wait"), st.integers(-30, 30), st.none()),
        st.tuples(st.just("tool"), st.integers(0, 5), st.none()),
        st.tuples(st.just("forget"), st.just(0), st.none()),
        st.tuples(st.just("list"), st.just(0), st.none()),
    ),
    max_size=14,
)


def fresh(path: Path, clock: Clock) -> Snapshot:
    """What somebody sees who opens the file now."""
    other = SqliteFile(path, clock, clock)
    other.open()
    try:
        return other.list(P)
    finally:
        other.close()


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(path=steps)
def test_any_path_leads_to_what_is_there(
    path: list[tuple[str, int, int | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place, clock = tmp_path_factory.mktemp("store") / "s.db", Clock()
    reader, writer = SqliteFile(place, clock, clock), SqliteFile(place, clock, clock)
    reader.open()
    writer.open()
    tool = sqlite3.connect(place, isolation_level=None)
    told: Snapshot | None = None
    try:
        for what, number, ttl in path:
            act(writer, tool, clock, what, number, ttl)
            if what != "list":
                continue
            snapshot = reader.list(P, told.version if told else None)
            assert snapshot == fresh(place, clock)
            if told is not None and snapshot.since is not None:
                assert snapshot.since is told.version
                old, new = told.entries, snapshot.entries
                differs = {key for key in old.keys() | new.keys() if old.get(key) is not new.get(key)}
                assert differs <= snapshot.changed
            told = snapshot
        assert reader.list(P) == fresh(place, clock)
    finally:
        tool.close()
        writer.close()
        reader.close()


def act(writer: SqliteFile, tool: sqlite3.Connection, clock: Clock, what: str, number: int, ttl: int | None) -> None:
    """One thing that happens to the file, or to the clock."""
    key, there = f"{P}{number}", writer.list("").entries
    if what == "put":
        writer.put(key, b"1", there[key].revision if key in there else 0, ttl)
    elif what == "delete" and key in there:
        writer.delete(key, there[key].revision)
    elif what == "many":
        tool.execute("BEGIN")
        for each in range(number):
            tool.execute("INSERT OR REPLACE INTO entries VALUES (?, 'x', 1, 1, NULL)", (f"{P}many{each}",))
        tool.execute("COMMIT")
    elif what == "wait":
        clock.advance(number)
    elif what == "tool":  # somebody who knows nothing of revisions
        tool.execute("UPDATE entries SET value = 'text' WHERE key = ?", (key,))
    elif what == "forget":  # the record was cut short
        tool.execute("DELETE FROM changes WHERE number < (SELECT max(number) FROM changes)")


def test_a_file_of_an_earlier_version_gets_its_record(tmp_path: Path) -> None:
    path, clock = tmp_path / "s.db", Clock()
    first = SqliteFile(path, clock, clock)
    first.open()
    first.put(P + "a", b"1", 0, None)
    first.close()
    old = sqlite3.connect(path, isolation_level=None)
    for name in ("entry_made", "entry_written", "entry_removed"):
        old.execute(f"DROP TRIGGER {name}")
    old.execute("DROP TABLE changes")
    assert not has_record(old)
    reader = SqliteFile(path, clock, clock)
    reader.open()
    assert has_record(old)
    seen = reader.list(P)
    old.execute("INSERT OR REPLACE INTO entries VALUES ('/p/b', x'32', 2, 2, NULL)")  # as an earlier fabricd writes
    old.execute("UPDATE meta SET value = 2 WHERE name = 'revision'")
    found = reader.list(P, seen.version)
    assert (found.since, found.changed) == (seen.version, {P + "b"})
    assert found.entries[P + "b"] == Entry(P + "b", b"2", 2, 2)
    old.close()
    reader.close()


def test_a_file_that_cannot_be_written_is_read_whole(tmp_path: Path) -> None:
    path, clock = tmp_path / "s.db", Clock()
    first = SqliteFile(path, clock, clock)
    first.open()
    first.put(P + "a", b"1", 0, None)
    tool = sqlite3.connect(path, isolation_level=None)
    tool.execute("DROP TRIGGER entry_made")
    tool.execute("DROP TABLE changes")
    tool.execute("BEGIN EXCLUSIVE")
    tool.execute("ROLLBACK")
    assert first.list(P).entries.keys() == {P + "a"}
    tool.close()
    first.close()


def test_the_record_stays_short(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    clock = Clock()
    file = SqliteFile(path, clock, clock)
    file.open()
    tool = sqlite3.connect(path, isolation_level=None)
    tool.execute("BEGIN")
    for number in range(KEPT + 100):
        tool.execute("INSERT OR REPLACE INTO entries VALUES ('/p/a', 'x', 1, ?, NULL)", (number,))
    tool.execute("COMMIT")
    assert tool.execute("SELECT count(*), max(number) FROM changes").fetchone() == (KEPT, KEPT + 100)
    tool.close()
    file.close()


def test_a_watch_that_is_read_late_is_told_all_of_it(tmp_path: Path) -> None:
    async def body() -> None:
        store = SqliteStore(tmp_path / "s.db")
        await store.open()
        watch = store.watch(P)
        first = await anext(watch)
        assert isinstance(first, Snapshot)
        for name in "abc":
            await store.put(P + name, b"1", 0, None)
            await store.list(P)
        second = await anext(watch)
        while isinstance(second, Snapshot) and len(second.entries) < 3:  # an early look is fine
            assert second.since is first.version
            first, second = second, await anext(watch)
        assert isinstance(second, Snapshot)
        assert second.since is first.version
        assert {P + name for name in "abc"} - first.entries.keys() <= second.changed
        await watch.aclose()  # type: ignore[attr-defined]
        await store.close()

    asyncio.run(body())
