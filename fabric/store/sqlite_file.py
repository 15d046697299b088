"""The SQLite file behind `SqliteStore`: one connection, used by one thread, errors turned into the store's own.

Tables: `meta` holds the store's identity and its revision counter, `entries` the keys, `changes` which of them changed
(`fabric.store.sqlite_listing`). The journal is SQLite's plain
one, never WAL: WAL maps its `-shm` file into memory, and a process whose mapped file somebody truncates is killed
(SIGBUS), data path included. Writes are rare and short, so readers wait for them without harm. The identity of the file
(device and inode) is remembered, since SQLite itself never notices that a file it has open was deleted or replaced.

Times in it are in the file's own time: that of the process which first opened it since the machine started, so that the
wall clock may be set without a lease ending for anybody. `meta.clock` says how far it is from the machine's uptime.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from uuid import uuid4

from fabric.errors import ConflictError, StoreCorruptError, StoreUnavailableError
from fabric.files import make_dir
from fabric.store.base import Entry, Snapshot
from fabric.store.sqlite_clock import file_offset
from fabric.store.sqlite_listing import Listing, keep_record

APPLICATION_ID = 0x66616272  # "fabr"
BUSY_SECONDS = 1.0
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA}
_WORDS = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_LOCKED: "is locked by another process",
    sqlite3.SQLITE_FULL: "cannot be written: no space left",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
}
_SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    "CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL,"
    " revision INTEGER NOT NULL, expires REAL) WITHOUT ROWID",
    "INSERT INTO meta VALUES ('revision', 0)",
    f"PRAGMA application_id = {APPLICATION_ID}",
)

FileId = tuple[int, int] | None


class SqliteFile:
    """The open file. Every method may raise StoreUnavailableError; after one, `close` and `open` again.

    `clock` gives Unix time and `uptime` seconds that nobody can set; their difference may not change.
    """

    def __init__(self, path: Path, clock: Callable[[], float], uptime: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._uptime = uptime
        self._ahead = 0.0  # our clock of the file's time
        self._connection: sqlite3.Connection | None = None
        self._identity: FileId = None
        self._listings: dict[str, Listing] = {}  # by prefix

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    def open(self) -> None:
        """Open the file, creating it (mode 0600) when it does not exist. Raises StoreCorruptError for a broken one."""
        self.close()
        try:
            make_dir(self._path.parent, 0o700)
            if not self._path.exists():
                with self._errors():
                    _create(self._path)
            size = self._path.stat().st_size
        except OSError as error:
            raise StoreUnavailableError(f"store {self._path} cannot be opened: {error.strerror}") from None
        if 0 < size < 512:  # SQLite takes so small a file for an empty one and writes over it
            raise StoreCorruptError(f"store {self._path} is broken (too small): {_ADVICE}")
        with self._errors():
            self._connection = _connect(self._path)
        try:
            with self._errors():
                self._prepare()
                keep_record(self._open_connection())
                offset = self._clock() - self._uptime()
                self._ahead = offset - file_offset(self._open_connection(), offset)
                self.revision()
        except BaseException:
            self.close()
            raise
        self._identity = self._files()

    def close(self) -> None:
        """Close the connection, if any. Never raises."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        self._listings.clear()  # the next file may count its changes anew

    def replaced(self) -> bool:
        """Whether the files on disk are no longer the ones that are open."""
        return self._identity != self._files()

    def intact(self, thoroughly: bool = True) -> bool:
        """Whether a fresh look at the file gives the same store: its pages may have been overwritten under us.

        A thorough one reads all entries, any other the store's identity only.
        """
        try:
            with contextlib.closing(_connect(self._path)) as fresh:
                rows = fresh.execute("SELECT value FROM meta WHERE name = 'store_id'").fetchone()
                if thoroughly:
                    fresh.execute("SELECT count(*), max(revision) FROM entries").fetchone()
            return bool(rows and rows[0] == self._meta("store_id"))
        except sqlite3.OperationalError as error:
            return _primary(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        except (sqlite3.Error, StoreUnavailableError):
            return False

    def revision(self) -> tuple[str, int]:
        """The store's identity and its revision."""
        return str(self._meta("store_id")), int(str(self._meta("revision")))

    def list(self, prefix: str, since: object = None) -> Snapshot:
        """Every key under `prefix` that has not expired, in one read transaction; `since` as for `Listing.snapshot`.

        What is as it was at the last `list` is the same `Entry`, so that nobody need look at it again.
        """
        listing = self._listings.setdefault(prefix, Listing(prefix, self._ahead))
        with self._errors(), self._transaction("DEFERRED") as connection:
            listing.read(connection, self.revision(), self._now(), monotonic())
        return listing.snapshot(since)

    def next_end(self, prefix: str) -> float | None:
        """Unix time from which on a key that the last `list` found may have expired, None when none can."""
        listing = self._listings.get(prefix)
        return listing.next_end if listing else None

    def put(self, key: str, value: bytes, expected: int, ttl: float | None) -> Entry:
        """See `Store.put`."""
        now = self._now()
        expires = None if ttl is None else now + ttl
        with self._errors(), self._transaction("IMMEDIATE") as connection:
            created = self._fence(connection, key, expected, now)
            revision = self._bump(connection, now)
            created = created or revision
            connection.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", (key, value, created, revision, expires)
            )
        return Entry(key, value, created, revision, None if expires is None else expires + self._ahead)

    def delete(self, key: str, expected: int) -> None:
        """See `Store.delete`."""
        now = self._now()
        with self._errors(), self._transaction("IMMEDIATE") as connection:
            if not self._fence(connection, key, expected, now):
                raise ConflictError(f"{key} does not exist")
            self._bump(connection, now)
            connection.execute("DELETE FROM entries WHERE key = ?", (key,))

    def limit_pages(self, pages: int) -> None:
        """Let the file grow to `pages` pages of 4 KiB at most; beyond, writes fail as on a full disk."""
        with self._errors():
            self._open_connection().execute(f"PRAGMA max_page_count = {int(pages)}")

    def _prepare(self) -> None:
        connection = self._open_connection()
        with contextlib.suppress(sqlite3.OperationalError):  # WAL that somebody chose ends with its last user
            connection.execute("PRAGMA journal_mode = DELETE")
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            _fill(connection)  # an empty file that somebody put there
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise StoreCorruptError(f"store {self._path} is an SQLite file of another program: give another --store")

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreUnavailableError(f"store {self._path} is not open")
        return self._connection

    def _now(self) -> float:
        """The file's time."""
        return self._clock() - self._ahead

    def _meta(self, name: str) -> object:
        with self._errors():
            row = self._open_connection().execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise StoreCorruptError(f"store {self._path} is broken: meta.{name} is missing; {_ADVICE}")
        return row[0]

    def _fence(self, connection: sqlite3.Connection, key: str, expected: int, now: float) -> int:
        """The key's creation revision, 0 when it does not exist. An expired key does not exist."""
        row = connection.execute(
            "SELECT created, revision FROM entries WHERE key = ? AND (expires IS NULL OR expires > ?)", (key, now)
        ).fetchone()
        created, revision = row or (0, 0)
        if revision != expected:
            raise ConflictError(f"{key} is at revision {revision}, not {expected}")
        return int(created)

    def _bump(self, connection: sqlite3.Connection, now: float) -> int:
        connection.execute("DELETE FROM entries WHERE expires <= ?", (now,))
        connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision'")
        return self.revision()[1]

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        connection = self._open_connection()
        connection.execute(f"BEGIN {kind}")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = _primary(error)
            if code in _CORRUPT or not isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError):
                raise StoreCorruptError(f"store {self._path} is broken ({error}): {_ADVICE}") from None
            words = _WORDS.get(code, f"does not answer ({error})")
            raise StoreUnavailableError(f"store {self._path} {words}") from None

    def _files(self) -> FileId:
        return _file_id(self._path)


_ADVICE = "move the file away (leases are made anew) or restore a copy"


def _create(path: Path) -> None:
    """Make a complete store beside `path` and link it there; one that is there by then stays. Raises OSError.

    Daemons that come at once would otherwise all fill an empty file, and wait for each other until their time is up.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with contextlib.closing(_connect(temporary)) as connection:
            _fill(connection)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        for name in (temporary, temporary.with_name(temporary.name + "-journal")):
            name.unlink(missing_ok=True)


def _fill(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES ('store_id', ?)", (uuid4().hex,))
    connection.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    # mode=rw: never create by accident; a file that goes away has to be noticed, not replaced silently.
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, cached_statements=32)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -256")
    return connection


def _primary(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _file_id(path: Path) -> FileId:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
