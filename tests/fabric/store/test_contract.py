"""What every store must do; run on the real ones and on the one in memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from time import time

import pytest

from fabric.errors import ConflictError
from fabric.store.base import Snapshot, Store, Unavailable, WatchItem
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.store import EtcdStore
from fabric.store.memory import MemoryStore
from fabric.store.sqlite import SqliteStore
from tests.fabric.clock import Clock
from tests.fabric.store.etcd_server import EtcdServer, running

P = "/coreos.com/network/subnets/"
Body = Callable[[Store], Awaitable[None]]
Run = Callable[[Body], None]


class Time:
    """The stores' time. Ours stands still until it is told to pass; etcd's cannot be told anything."""

    def __init__(self, real: bool) -> None:
        self.clock: Callable[[], float] = time if real else Clock()
        self.life = 4.0 if real else 100.0

    async def passes(self, seconds: float) -> None:
        if isinstance(self.clock, Clock):
            self.clock.advance(seconds)
        else:
            await asyncio.sleep(seconds)


KINDS = ["memory", "sqlite", pytest.param("etcd", marks=pytest.mark.root)]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def passing(kind: str) -> Time:
    return Time(kind == "etcd")


@pytest.fixture(scope="module")
def etcds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], EtcdServer]]:
    """One etcd for all tests, started when it is first needed and emptied for each."""
    with ExitStack() as stack:
        started: list[EtcdServer] = []

        def empty() -> EtcdServer:
            if not started:
                started.append(stack.enter_context(running(tmp_path_factory.mktemp("etcd"))))
            started[0].ctl("del", "", "--from-key")
            return started[0]

        yield empty


@pytest.fixture
def run(kind: str, tmp_path: Path, passing: Time, etcds: Callable[[], EtcdServer]) -> Run:
    def make() -> Store:
        if kind == "memory":
            return MemoryStore(passing.clock)
        if kind == "sqlite":
            return SqliteStore(tmp_path / "store" / "f.db", passing.clock, passing.clock)
        return EtcdStore(EtcdSettings((etcds().url,)), passing.clock)

    async def whole(body: Body) -> None:
        store = make()
        await store.open()
        try:
            await asyncio.wait_for(body(store), 40)
        finally:
            await store.close()

    return lambda body: asyncio.run(whole(body))


@asynccontextmanager
async def watching(store: Store, prefix: str = P) -> AsyncIterator[AsyncIterator[WatchItem]]:
    items = store.watch(prefix)
    try:
        yield items
    finally:
        await items.aclose()  # type: ignore[attr-defined]


async def content(items: AsyncIterator[WatchItem], expected: dict[str, bytes]) -> Snapshot:
    """Read the watch until it shows `expected`: intermediate states may or may not be seen."""
    async with asyncio.timeout(5):
        async for item in items:
            assert isinstance(item, Snapshot)
            if {key.removeprefix(P): entry.value for key, entry in item.entries.items()} == expected:
                return item
    raise AssertionError("the watch ended")


def test_put_and_list(run: Run) -> None:
    async def body(store: Store) -> None:
        first = await store.put(P + "a", b"1", 0, None)
        second = await store.put(P + "b", b"2", 0, None)
        again = await store.put(P + "a", b"3", first.revision, None)
        assert (first.created, again.created) == (first.revision, first.revision)
        assert first.revision < second.revision < again.revision
        snapshot = await store.list(P)
        assert snapshot.entries == {P + "a": again, P + "b": second}
        assert snapshot.revision == again.revision

    run(body)


def test_list_is_limited_to_the_prefix(run: Run) -> None:
    async def body(store: Store) -> None:
        for key in ("/coreos.com/network/config", P + "a", P + "ä\U0010fffe", P[:-1] + "0x", "zz"):
            await store.put(key, b"x", 0, None)
        assert sorted((await store.list(P)).entries) == [P + "a", P + "ä\U0010fffe"]

    run(body)


def test_writes_are_fenced(run: Run) -> None:
    async def body(store: Store) -> None:
        entry = await store.put(P + "a", b"1", 0, None)
        for expected in (0, entry.revision + 1, entry.revision - 1 or 7):
            with pytest.raises(ConflictError):
                await store.put(P + "a", b"2", expected, None)
            with pytest.raises(ConflictError):
                await store.delete(P + "a", expected)
        with pytest.raises(ConflictError):
            await store.put(P + "new", b"2", entry.revision, None)
        assert (await store.list(P)).entries == {P + "a": entry}

    run(body)


def test_delete(run: Run) -> None:
    async def body(store: Store) -> None:
        entry = await store.put(P + "a", b"1", 0, None)
        await store.delete(P + "a", entry.revision)
        assert not (await store.list(P)).entries
        with pytest.raises(ConflictError):
            await store.delete(P + "a", 0)
        back = await store.put(P + "a", b"1", 0, None)
        assert back.created > entry.revision

    run(body)


def test_of_many_at_once_exactly_one_wins(run: Run) -> None:
    async def body(store: Store) -> None:
        puts = [store.put(P + "a", b"%d" % number, 0, None) for number in range(20)]
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert sum(not isinstance(result, BaseException) for result in results) == 1
        assert sum(isinstance(result, ConflictError) for result in results) == 19

    run(body)


def test_a_key_lives_as_long_as_it_was_given(run: Run, passing: Time) -> None:
    life = passing.life

    async def body(store: Store) -> None:
        before = passing.clock()
        entry = await store.put(P + "a", b"1", 0, life)
        await store.put(P + "b", b"1", 0, None)
        assert entry.expires is not None
        assert before + life <= entry.expires <= passing.clock() + life
        await passing.passes(0.6 * life)
        renewed = await store.put(P + "a", b"1", entry.revision, life)
        await passing.passes(0.6 * life)
        assert (await store.list(P)).entries[P + "a"] == renewed
        await passing.passes(0.5 * life)
        async with watching(store) as items:
            await content(items, {"b": b"1"})
        with pytest.raises(ConflictError):
            await store.put(P + "a", b"2", renewed.revision, life)
        anew = await store.put(P + "a", b"2", 0, life)
        assert anew.created > renewed.revision

    run(body)


def test_watch_shows_the_content_at_once_and_after_changes(run: Run) -> None:
    async def body(store: Store) -> None:
        await store.put(P + "a", b"1", 0, None)
        async with watching(store) as items:
            await content(items, {"a": b"1"})
            entry = await store.put(P + "b", b"2", 0, None)
            await content(items, {"a": b"1", "b": b"2"})
            await store.delete(P + "b", entry.revision)
            last = await content(items, {"a": b"1"})
            assert last.store_id == (await store.list(P)).store_id

    run(body)


def test_watch_shows_that_a_key_expired(run: Run, passing: Time) -> None:
    async def body(store: Store) -> None:
        await store.put(P + "a", b"1", 0, passing.life)
        async with watching(store) as items:
            await content(items, {"a": b"1"})
            await passing.passes(1.1 * passing.life)
            await content(items, {})

    run(body)


def test_two_watches_see_the_same(run: Run) -> None:
    async def body(store: Store) -> None:
        async with watching(store) as left, watching(store) as right:
            await content(left, {})
            await content(right, {})
            await store.put(P + "a", b"1", 0, None)
            assert await content(left, {"a": b"1"}) == await content(right, {"a": b"1"})

    run(body)


def test_closing_ends_the_watches(run: Run) -> None:
    async def body(store: Store) -> None:
        seen: list[WatchItem] = []

        async def read() -> None:
            seen.extend([item async for item in store.watch(P)])

        task = asyncio.create_task(read())
        async with watching(store) as items:
            await content(items, {})
        await store.close()
        await asyncio.wait_for(task, 5)
        assert not any(isinstance(item, Unavailable) for item in seen)

    run(body)
