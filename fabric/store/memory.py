"""A store in memory, for tests and for several daemons in one process. Same contract as the real ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from time import time
from uuid import uuid4

from fabric.errors import ConflictError, StoreUnavailableError
from fabric.store.base import Entry, Snapshot, Unavailable, WatchItem


class MemoryStore:
    """Content in a dict. `clock` gives Unix time in seconds; `fail` makes it unavailable until `recover`."""

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._clock = clock
        self._id = uuid4().hex
        self._entries: dict[str, Entry] = {}
        self._revision = 0
        self._down: str | None = None
        self._closed = False
        self._changed = asyncio.Event()

    async def open(self) -> None:
        return None  # as with the real ones, a store that does not answer yet may do so later

    async def list(self, prefix: str) -> Snapshot:
        self._check()
        self._expire()
        found = {key: entry for key, entry in self._entries.items() if key.startswith(prefix)}
        return Snapshot(self._id, self._revision, found)

    async def put(self, key: str, value: bytes, expected: int, ttl: float | None) -> Entry:
        self._check()
        self._fence(key, expected)
        self._revision += 1
        old = self._entries.get(key)
        created = old.created if old else self._revision
        entry = Entry(key, value, created, self._revision, None if ttl is None else self._clock() + ttl)
        self._entries[key] = entry
        self._wake()
        return entry

    async def delete(self, key: str, expected: int) -> None:
        self._check()
        self._fence(key, expected)
        if key not in self._entries:
            raise ConflictError(f"{key} does not exist")
        self._revision += 1
        del self._entries[key]
        self._wake()

    async def watch(self, prefix: str) -> AsyncIterator[WatchItem]:
        last: WatchItem | None = None
        while not self._closed:
            changed = self._changed
            item: WatchItem
            try:
                item = await self.list(prefix)
            except StoreUnavailableError as error:
                item = Unavailable(str(error))
            if not _same(item, last):
                last = item
                yield item
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_expiry()):
                    await changed.wait()

    async def close(self) -> None:
        self._closed = True
        self._wake()

    def entry(self, key: str) -> Entry:
        """The entry under `key`, whatever the store's state. Raises KeyError."""
        return self._entries[key]

    def has(self, key: str) -> bool:
        """Whether `key` exists, whatever the store's state."""
        return key in self._entries

    def fail(self, reason: str) -> None:
        """Stop answering."""
        self._down = reason
        self._wake()

    def recover(self, empty: bool = False) -> None:
        """Answer again; with `empty` as a store that was made anew."""
        self._down = None
        if empty:
            self._id, self._entries, self._revision = uuid4().hex, {}, 0
        self._wake()

    def _check(self) -> None:
        if self._down is not None:
            raise StoreUnavailableError(self._down)

    def _fence(self, key: str, expected: int) -> None:
        self._expire()
        entry = self._entries.get(key)
        if (entry.revision if entry else 0) != expected:
            raise ConflictError(f"{key} is at revision {entry.revision if entry else 0}, not {expected}")

    def _expire(self) -> None:
        now = self._clock()
        gone = [key for key, entry in self._entries.items() if entry.expires is not None and entry.expires <= now]
        for key in gone:
            self._revision += 1
            del self._entries[key]

    def _until_expiry(self) -> float:
        ends = [entry.expires for entry in self._entries.values() if entry.expires is not None]
        return min(1.0, max(0.0, min(ends) - self._clock())) if ends else 1.0

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _same(item: WatchItem, last: WatchItem | None) -> bool:
    if isinstance(item, Snapshot) and isinstance(last, Snapshot):
        return item.store_id == last.store_id and item.entries == last.entries
    return isinstance(item, Unavailable) and isinstance(last, Unavailable)
