"""The embedded store: one SQLite file, shared by all daemons of a machine.

A thread of its own owns the file, so that a locked or slow disk never holds up the event loop. It sleeps until a call
arrives, inotify reports a change of the file's directory, a key expires, or a slow fallback tick (1 s; 15 ms where
inotify is missing) comes round; then it compares the store's revision with what it last told its watches. A writer's
last write to the file comes a moment before other processes can see its commit, so it looks again a few times.

When the file is deleted the connection is closed at once and a new file made after `SETTLE` seconds: every daemon has
let go of the old one by then, or two of them would disagree about the files beside it. A broken file is left alone and
looked at again with back-off until somebody repairs or removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from fabric.clock import steady, uptime
from fabric.errors import StoreCorruptError, StoreError, StoreUnavailableError
from fabric.store.base import Entry, Snapshot, Unavailable, WatchItem
from fabric.store.inotify import DirectoryWatch
from fabric.store.sqlite_file import SqliteFile

T = TypeVar("T")
TICK = 1.0
TICK_WITHOUT_INOTIFY = 0.015
RECHECKS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
SETTLE = 0.5
THOROUGH = 10.0
BACKOFF = (0.1, 2.0)


class SqliteStore:
    """See `fabric.store.base.Store`. `clock` gives Unix time in seconds and never jumps, `uptime` those since
    the machine started."""

    def __init__(
        self, path: Path, clock: Callable[[], float] = steady, uptime: Callable[[], float] = uptime
    ) -> None:
        self._path = path
        self._worker = _Worker(path, clock, uptime)

    async def open(self) -> None:
        self._worker.start()
        try:
            await self._call(self._worker.first_open)
        except StoreError:
            await self.close()
            raise

    async def list(self, prefix: str) -> Snapshot:
        return await self._call(lambda: self._worker.file.list(prefix))

    async def put(self, key: str, value: bytes, expected: int, ttl: float | None) -> Entry:
        return await self._call(lambda: self._worker.file.put(key, value, expected, ttl))

    async def delete(self, key: str, expected: int) -> None:
        await self._call(lambda: self._worker.file.delete(key, expected))

    async def limit_pages(self, pages: int) -> None:
        """Let the file grow to `pages` pages of 4 KiB at most, until it is opened again."""
        await self._call(lambda: self._worker.file.limit_pages(pages))

    async def watch(self, prefix: str) -> AsyncIterator[WatchItem]:
        watch = _Watch(prefix, asyncio.get_running_loop())
        self._worker.submit(lambda: self._worker.watches.append(watch))
        try:
            while (item := await watch.next()) is not None:
                yield item
        finally:
            self._worker.submit(lambda: self._worker.watches.remove(watch))

    async def close(self) -> None:
        self._worker.submit(self._worker.stop)
        if self._worker.is_alive():
            await asyncio.get_running_loop().run_in_executor(None, self._worker.join)

    async def _call(self, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            try:
                outcome: tuple[Any, BaseException | None] = (self._worker.guarded(function), None)
            except Exception as error:  # carried to the caller
                outcome = (None, error)
            _to_loop(loop, finish, *outcome)

        if not self._worker.submit(run):
            raise StoreUnavailableError(f"store {self._path} is closed")
        return await future


class _Watch:
    """One consumer: only the newest item is kept, since items are complete."""

    def __init__(self, prefix: str, loop: asyncio.AbstractEventLoop) -> None:
        self.prefix = prefix
        self.told: Snapshot | None = None  # the last one
        self.down = False
        self._loop = loop
        self._item: WatchItem | None = None
        self._ended = False
        self._ready = asyncio.Event()

    def post(self, item: WatchItem | None) -> None:
        """Hand an item over from the store's thread; None ends the watch."""
        _to_loop(self._loop, self._set, item)

    async def next(self) -> WatchItem | None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            item, self._item = self._item, None
            if item is not None or self._ended:
                return item

    def _set(self, item: WatchItem | None) -> None:
        if isinstance(item, Snapshot) and isinstance(self._item, Snapshot):
            item = item.after(self._item)
        self._item, self._ended = item, self._ended or item is None
        self._ready.set()


class _Worker(threading.Thread):
    """The thread that owns the file. Everything but `submit` runs in it."""

    def __init__(self, path: Path, clock: Callable[[], float], uptime: Callable[[], float]) -> None:
        super().__init__(name="fabric-store", daemon=True)
        self.file = SqliteFile(path, clock, uptime)
        self.watches: list[_Watch] = []
        self._path = path
        self._clock = clock
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._closed = False
        self._inotify: DirectoryWatch | None = None
        self._watching = False
        self._rechecks: list[float] = []
        self._delay = BACKOFF[0]
        self._retry_at = 0.0
        self._checked = -THOROUGH
        self._unchecked = False  # somebody wrote since the last thorough look
        self._reason = f"store {path} is not open"

    def submit(self, call: Callable[[], None]) -> bool:
        """Run `call` in the thread; False when it has ended. Any thread may call this."""
        with self._lock:
            if self._closed:
                return False
            self._calls.append(call)
            os.eventfd_write(self._wake, 1)
            return True

    def stop(self) -> None:
        """End the thread after the calls that are waiting."""
        self._stopping = True

    def first_open(self) -> None:
        """Open the file at start-up. A locked or missing one is tried again later, a broken one is an error."""
        try:
            self._open()
        except StoreCorruptError:
            raise
        except StoreUnavailableError as error:
            self._lost(error)

    def guarded(self, function: Callable[[], T]) -> T:
        """Call `function`; a store that fails in it is closed and opened again with back-off."""
        if function == self.first_open:
            return function()
        if self.file.is_open and self.file.replaced():
            self._lost_file()
        if not self.file.is_open:
            raise StoreUnavailableError(self._reason)
        try:
            return function()
        except StoreCorruptError as error:
            self._lost(error)
            raise

    def run(self) -> None:
        poller = self._poller()
        try:
            while not self._stopping:
                ready = {fd for fd, _ in poller.poll(self._timeout() * 1000)}
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                changed = self._inotify.read() if self._inotify and self._inotify.fileno() in ready else set()
                self._look(changed)
                while self._calls:
                    self._calls.popleft()()
                self._tell()
        finally:
            self._shut()

    def _poller(self) -> select.poll:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        with contextlib.suppress(OSError):
            self._inotify = DirectoryWatch()
            poller.register(self._inotify.fileno(), select.POLLIN)
        return poller

    def _timeout(self) -> float:
        tick = TICK if self._watching else TICK_WITHOUT_INOTIFY
        if not self.file.is_open:
            return min(tick, max(0.0, self._retry_at - monotonic())) + 0.001
        if self._rechecks:
            return self._rechecks.pop()
        waits = [end - self._clock() for watch in self.watches if (end := self.file.next_end(watch.prefix)) is not None]
        if self._unchecked:
            waits.append(self._checked + THOROUGH - monotonic())
        return max(0.0, min([tick, *waits])) + 0.001

    def _look(self, changed: set[str]) -> None:
        """Notice a file that went away, was replaced or overwritten; open it again when it is time."""
        if changed:
            self._rechecks = list(reversed(RECHECKS))
            self._watching = self._watching and "" not in changed
        if self.file.is_open:
            if self.file.replaced():
                self._lost_file()
            elif (self._path.name in changed or self._check_is_due()) and not self._intact():
                self._lost(StoreUnavailableError(f"store {self._path} was overwritten"))
        elif self._retry_at and monotonic() >= self._retry_at:
            try:
                self._open()
            except StoreUnavailableError as error:
                self._lost(error)

    def _check_is_due(self) -> bool:
        return self._unchecked and monotonic() >= self._checked + THOROUGH

    def _intact(self) -> bool:
        """Whether the file is whole: all of it is read every `THOROUGH` seconds at most, while others write to it."""
        thoroughly = monotonic() >= self._checked + THOROUGH
        if thoroughly:
            self._checked = monotonic()
        self._unchecked = not thoroughly
        return self.file.intact(thoroughly)

    def _open(self) -> None:
        self.file.open()
        self._delay, self._retry_at = BACKOFF[0], 0.0
        if self._inotify is not None:
            with contextlib.suppress(OSError):
                self._inotify.watch(self._path.parent)
                self._watching = True

    def _lost_file(self) -> None:
        self._lost(StoreUnavailableError(f"store {self._path} was deleted or replaced"))
        self._retry_at = monotonic() + SETTLE

    def _lost(self, error: StoreError) -> None:
        self.file.close()
        self._reason = str(error)
        self._retry_at = monotonic() + self._delay
        self._delay = min(self._delay * 2, BACKOFF[1])

    def _tell(self) -> None:
        for watch in self.watches:
            if not self.file.is_open:
                self._tell_down(watch)
                continue
            try:
                self._tell_up(watch)
            except StoreCorruptError as error:
                self._lost(error)
                self._tell_down(watch)
            except StoreUnavailableError as error:
                self._reason = str(error)
                self._tell_down(watch)

    def _tell_up(self, watch: _Watch) -> None:
        told, end = watch.told, self.file.next_end(watch.prefix)
        expired = end is not None and end <= self._clock()
        known = told is not None and (told.store_id, told.revision) == self.file.revision()
        if known and not watch.down and not expired:
            return
        snapshot = self.file.list(watch.prefix, told.version if told else None)
        news = told is None or watch.down or snapshot.version is not told.version
        watch.told, watch.down = snapshot, False
        if news:
            watch.post(snapshot)

    def _tell_down(self, watch: _Watch) -> None:
        if not watch.down:
            watch.down = True
            watch.post(Unavailable(self._reason))

    def _shut(self) -> None:
        with self._lock:
            self._closed = True
        while self._calls:  # their callers get "not open"
            self.file.close()
            self._calls.popleft()()
        for watch in self.watches:
            watch.post(None)
        self.file.close()
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._wake)


def _to_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
        loop.call_soon_threadsafe(call, *args)
