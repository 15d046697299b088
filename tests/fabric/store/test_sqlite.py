"""What only the SQLite store has to stand: other processes' locks, a file that goes, breaks, fills up or comes back."""

# ruff: noqa: ASYNC240 (small files, and the store does its own in a thread)

import asyncio
import os
import sqlite3
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fabric.errors import StoreCorruptError, StoreUnavailableError
from fabric.store.base import Snapshot, Unavailable, WatchItem
from fabric.store.sqlite import SqliteStore
from tests.fabric.clock import eventually

P = "/p/"


class Watcher:
    """Reads a watch into a list."""

    def __init__(self, store: SqliteStore) -> None:
        self.items: list[WatchItem] = []
        self._task = asyncio.create_task(self._read(store))

    async def _read(self, store: SqliteStore) -> None:
        async for item in store.watch(P):
            self.items.append(item)

    @property
    def last(self) -> WatchItem | None:
        return self.items[-1] if self.items else None

    @property
    def keys(self) -> list[str] | None:
        return sorted(self.last.entries) if isinstance(self.last, Snapshot) else None

    @property
    def down(self) -> bool:
        return isinstance(self.last, Unavailable)

    async def end(self) -> None:
        await self._task


def run(path: Path, body: Callable[[SqliteStore, Watcher], Awaitable[None]]) -> None:
    async def whole() -> None:
        store = SqliteStore(path)
        await store.open()
        watcher = Watcher(store)
        try:
            async with asyncio.timeout(30):
                await eventually(lambda: watcher.items)
                await body(store, watcher)
        finally:
            await store.close()
            await watcher.end()

    asyncio.run(whole())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "fabric.db"


def test_the_file_is_private(path: Path) -> None:
    async def body(store: SqliteStore, watcher: Watcher) -> None:
        await store.put(P + "a", b"1", 0, None)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600

    run(path, body)


def test_content_survives_a_restart(path: Path) -> None:
    async def write(store: SqliteStore, watcher: Watcher) -> None:
        await store.put(P + "a", b"1", 0, None)

    async def read(store: SqliteStore, watcher: Watcher) -> None:
        assert (await store.list(P)).entries[P + "a"].value == b"1"

    run(path, write)
    run(path, read)


def test_another_daemons_change_is_seen_long_before_the_regular_look(path: Path) -> None:
    async def body(store: SqliteStore, watcher: Watcher) -> None:
        other = SqliteStore(path)
        await other.open()
        delays = []
        for number in range(9):
            key = f"{P}{number}"
            begin = time.perf_counter()
            await other.put(key, b"1", 0, None)
            await eventually(lambda key=key: key in (watcher.keys or ()))
            delays.append(time.perf_counter() - begin)
        await other.close()
        assert sorted(delays)[4] < 0.25  # 5 ms on an idle machine; without inotify's word it takes a second

    run(path, body)


def test_waiting_costs_nothing(path: Path) -> None:
    async def body(store: SqliteStore, watcher: Watcher) -> None:
        before = time.process_time()
        await asyncio.sleep(0.5)  # the thing measured, not a wait for something
        assert time.process_time() - before < 0.025

    run(path, body)


def test_many_stores_on_one_new_file_agree(path: Path) -> None:
    async def whole() -> None:
        stores = [SqliteStore(path) for _ in range(8)]
        await asyncio.gather(*(store.open() for store in stores))
        await asyncio.gather(*(store.put(f"{P}{number}", b"1", 0, None) for number, store in enumerate(stores)))
        found = [await store.list(P) for store in stores]
        assert all(item == found[0] for item in found)
        assert len(found[0].entries) == 8
        await asyncio.gather(*(store.close() for store in stores))

    asyncio.run(whole())


def test_an_empty_file_is_filled(path: Path) -> None:
    path.parent.mkdir()
    path.touch(0o600)

    async def body(store: SqliteStore, watcher: Watcher) -> None:
        await store.put(P + "a", b"1", 0, None)

    run(path, body)


@pytest.mark.slow
def test_locked_for_writing_the_watch_goes_on(path: Path) -> None:
    async def body(store: SqliteStore, watcher: Watcher) -> None:
        locker = sqlite3.connect(path, isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailableError, match="is locked by another process"):
            await store.put(P + "a", b"1", 0, None)
        assert watcher.keys == []
        locker.execute("ROLLBACK")
        locker.close()
        await store.put(P + "a", b"1", 0, None)
        await eventually(lambda: watcher.keys == [P + "a"])
        assert not any(isinstance(item, Unavailable) for item in watcher.items)

    run(path, body)


def test_deleted_it_is_made_anew_with_another_identity(path: Path) -> None:
    async def body(store: SqliteStore, watcher: Watcher) -> None:
        await store.put(P + "a", b"1", 0, None)
        old = (await store.list(P)).store_id
        for file in list(path.parent.iterdir()):
            file.unlink()
        await eventually(lambda: watcher.down)
        await eventually(lambda: watcher.keys == [])
        assert (await store.list(P)).store_id != old
        await store.put(P + "b", b"1", 0, None)
        await eventually(lambda: watcher.keys == [P + "b"])

    run(path, body)


def test_its_directory_deleted_it_recovers(path: Path) -> None:
    async def body(store: SqliteStore, watcher: Watcher) -> None:
        for file in list(path.parent.iterdir()):
            file.unlink()
        path.parent.rmdir()
        await eventually(lambda: watcher.down)
        await eventually(lambda: watcher.keys == [])
        await store.put(P + "b", b"1", 0, None)
        await eventually(lambda: watcher.keys == [P + "b"])

    run(path, body)


def replace_with_garbage(path: Path) -> None:
    """As a person would: another file in its place, the side files gone."""
    garbage = path.with_name("garbage")
    garbage.write_bytes(os.urandom(8192))
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)
    garbage.rename(path)


@pytest.mark.slow
def test_replaced_by_garbage_it_is_left_alone_until_repaired(path: Path) -> None:
    async def body(store: SqliteStore, watcher: Watcher) -> None:
        await store.put(P + "a", b"1", 0, None)
        replace_with_garbage(path)
        await eventually(lambda: watcher.down)
        garbage = path.read_bytes()
        with pytest.raises(StoreUnavailableError, match=r"store .* (is broken|was (deleted or replaced|overwritten))"):
            await store.list(P)
        await asyncio.sleep(1)  # several tries with back-off lie in here
        assert path.read_bytes() == garbage
        path.unlink()
        await eventually(lambda: watcher.keys == [])
        downs = [item for item in watcher.items if isinstance(item, Unavailable)]
        assert len(downs) == 1  # said once, not at every try

    run(path, body)


def test_overwritten_in_place_it_recovers_when_a_copy_comes_back(path: Path) -> None:
    async def body(store: SqliteStore, watcher: Watcher) -> None:
        await store.put(P + "a", b"1", 0, None)
        copy = path.with_name("copy")
        source, target = sqlite3.connect(path), sqlite3.connect(copy)
        source.backup(target)
        source.close()
        target.close()
        for side in ("-wal", "-shm"):
            path.with_name(path.name + side).unlink(missing_ok=True)
        path.write_bytes(b"garbage" * 1000)
        await eventually(lambda: watcher.down)
        path.unlink()
        copy.rename(path)
        await eventually(lambda: watcher.keys == [P + "a"])

    run(path, body)


def corrupt(path: Path, data: bytes) -> str:
    async def whole() -> str:
        path.parent.mkdir()
        path.write_bytes(data)
        store = SqliteStore(path)
        try:
            await store.open()
        except StoreCorruptError as error:
            return str(error)
        finally:
            await store.close()
        return ""

    return asyncio.run(whole())


@pytest.mark.parametrize("data", [b"garbage" * 1000, b"x", b"SQLite format 3\0" + bytes(5000)])
def test_a_broken_file_at_start_is_an_error_and_untouched(path: Path, data: bytes) -> None:
    message = corrupt(path, data)
    assert message.startswith(f"store {path} is broken")
    assert "\n" not in message
    assert path.read_bytes() == data


def test_another_programs_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (x)")
    other.close()
    data = path.read_bytes()
    path.unlink()
    path.parent.rmdir()
    assert "is an SQLite file of another program" in corrupt(path, data)


def test_a_directory_that_cannot_be_made_is_unavailable_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def whole() -> None:
        store = SqliteStore(tmp_path / "file" / "f.db")
        await store.open()
        with pytest.raises(StoreUnavailableError, match="cannot be opened"):
            await store.list(P)
        await store.close()

    asyncio.run(whole())


def test_a_full_disk_fails_the_write_only(path: Path) -> None:
    # A page limit makes SQLite answer SQLITE_FULL as a full disk does.
    async def body(store: SqliteStore, watcher: Watcher) -> None:
        limit = sqlite3.connect(path)
        limit.close()
        big = b"x" * 2_000_000
        await store.put(P + "a", b"1", 0, None)
        await store.limit_pages(20)
        with pytest.raises(StoreUnavailableError, match="no space left"):
            await store.put(P + "b", big, 0, None)
        assert sorted((await store.list(P)).entries) == [P + "a"]
        await store.limit_pages(100_000)
        await store.put(P + "b", big, 0, None)
        await eventually(lambda: watcher.keys == [P + "a", P + "b"])

    run(path, body)


def test_text_values_from_the_sqlite3_tool_are_taken(path: Path) -> None:
    async def body(store: SqliteStore, watcher: Watcher) -> None:
        tool = sqlite3.connect(path, isolation_level=None)
        tool.execute("BEGIN IMMEDIATE")
        tool.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision'")
        tool.execute("INSERT INTO entries VALUES ('/p/a', 'text', 1, 1, NULL)")
        tool.execute("COMMIT")
        tool.close()
        await eventually(lambda: watcher.keys == [P + "a"])
        assert (await store.list(P)).entries[P + "a"].value == b"text"

    run(path, body)
