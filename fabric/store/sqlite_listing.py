"""What lies under one prefix of the SQLite file, followed by the file's own record of changed keys.

The table `changes` has one row per key that was written or removed, numbered in order and filled by triggers, so that
it misses no writer: neither a daemon of a version that knows nothing of it nor a person with the sqlite3 tool. A reader
that has seen number N asks for the keys behind N and reads those. It reads everything where the record does not reach
back that far, where too much changed, when a key's time is up or the clock was set back, and every `CHECK` seconds in
any case: the record saves work, nothing depends on it. Only the last `KEPT` numbers are kept.
"""

from __future__ import annotations

import sqlite3
from collections import deque

from fabric.store.base import Entry, Snapshot

KEPT = 4096
AT_ONCE = 128
"""Changed keys that are read one by one; for more everything is read."""
CHECK = 10.0
REMEMBERED = 64
"""Versions back to which a snapshot can say what changed since."""
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS changes (number INTEGER PRIMARY KEY, key TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS entries_by_end ON entries (expires) WHERE expires IS NOT NULL",
    *(
        f"CREATE TRIGGER IF NOT EXISTS {name} AFTER {event} ON entries BEGIN"
        f" {' '.join(f'INSERT INTO changes (key) VALUES ({side}.key);' for side in sides)}"
        f" DELETE FROM changes WHERE number <= (SELECT max(number) FROM changes) - {KEPT}; END"
        for name, event, sides in (
            ("entry_made", "INSERT", ("NEW",)),
            ("entry_written", "UPDATE", ("OLD", "NEW")),
            ("entry_removed", "DELETE", ("OLD",)),
        )
    ),
)
_ENTRY = "SELECT key, value, created, revision, expires FROM entries WHERE (expires IS NULL OR expires > ?) AND "
Row = tuple[object, ...]


def keep_record(connection: sqlite3.Connection) -> None:
    """Make sure that changes are recorded; quietly nothing where the file cannot be written now."""
    if has_record(connection):
        return
    try:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("COMMIT")
    except sqlite3.OperationalError:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def has_record(connection: sqlite3.Connection) -> bool:
    """Whether all triggers are there."""
    found = connection.execute(
        "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'entries' AND name LIKE 'entry_%'"
    ).fetchone()
    return bool(found[0] == 3)


class Listing:
    """The content under `prefix` as of the last `read`. What is as it was is the same `Entry`.

    `next_end` is the Unix time from which on a key may have expired, None when none can. Unix time is the file's time
    plus `ahead`.
    """

    def __init__(self, prefix: str, ahead: float = 0.0) -> None:
        self._prefix = prefix
        self._ahead = ahead
        self._rows: dict[str, tuple[Row, Entry]] = {}
        self._entries: dict[str, Entry] = {}
        self._place = ("", 0)  # the store's identity and revision
        self._number: int | None = None  # of the last change that was taken over; None: the content is not known
        self._now = 0.0
        self._checked = 0.0
        self._version = object()
        self._history: deque[tuple[object, frozenset[str]]] = deque(maxlen=REMEMBERED)  # version, what followed it
        self.next_end: float | None = None

    def read(self, connection: sqlite3.Connection, place: tuple[str, int], now: float, uptime: float) -> None:
        """Bring it up to date within a read transaction at `place`: `now` in the file's time, `uptime` in any."""
        new_store = place[0] != self._place[0]
        if new_store:
            self._number = None
            self._history.clear()
        oldest, newest = _numbers(connection)
        keys = self._changed_keys(connection, oldest, newest, now, uptime)
        if keys is None:
            changed = self._read_all(connection, now)
            self._checked = uptime
        else:
            changed = self._read_some(connection, keys, now)
        self._number, self._now, self._place = newest, now, place
        if changed or new_store:
            self._history.append((self._version, frozenset(changed)))
            self._version = object()
        if new_store:
            self._history.clear()

    def snapshot(self, since: object = None) -> Snapshot:
        """The content; what changed since the snapshot with the version `since`, where that is still known."""
        changed: frozenset[str] = frozenset()
        if since is not self._version:
            for version, keys in reversed(self._history):
                changed |= keys
                if version is since:
                    break
            else:
                since, changed = None, frozenset()
        return Snapshot(*self._place, self._entries, self._version, since, changed)

    def _changed_keys(
        self, connection: sqlite3.Connection, oldest: int, newest: int, now: float, uptime: float
    ) -> list[str] | None:
        """The keys that have to be read again; None for all."""
        known, ended = self._number, self.next_end is not None and self.next_end <= now + self._ahead
        if known is None or not oldest - 1 <= known <= newest or not newest:
            return None
        if ended or now < self._now or uptime >= self._checked + CHECK:
            return None
        found = connection.execute(
            "SELECT DISTINCT key FROM changes WHERE number > ? LIMIT ?", (known, AT_ONCE + 1)
        ).fetchall()
        keys = [key for (key,) in found if isinstance(key, str) and key.startswith(self._prefix)]
        return None if len(found) > AT_ONCE else keys

    def _read_all(self, connection: sqlite3.Connection, now: float) -> set[str]:
        found = connection.execute(_ENTRY + "key >= ? AND key < ?", (now, self._prefix, self._prefix + "\U0010ffff"))
        rows = {str(row[0]): row for row in found}
        changed = self._rows.keys() - rows.keys()
        changed |= {key for key, row in rows.items() if key not in self._rows or self._rows[key][0] != row}
        self._take(changed, rows)
        ends = [entry.expires for entry in self._entries.values() if entry.expires is not None]
        self.next_end = min(ends, default=None)
        return changed

    def _read_some(self, connection: sqlite3.Connection, keys: list[str], now: float) -> set[str]:
        rows = {}
        for key in keys:
            row = connection.execute(_ENTRY + "key = ?", (now, key)).fetchone()
            if row is not None:
                rows[key] = row
        changed = {key for key in keys if rows.get(key) != self._rows.get(key, (None,))[0]}
        self._take(changed, rows)
        new = (self._entries[key].expires for key in changed if key in rows)
        # One that was put off leaves the earlier time, at which nothing will be found to have ended.
        self.next_end = min((end for end in (self.next_end, *new) if end is not None), default=None)
        return changed

    def _take(self, changed: set[str], rows: dict[str, Row]) -> None:
        """These keys are as in `rows` now, or gone. Snapshots that were given out stay as they are."""
        if changed:
            self._entries = dict(self._entries)
        for key in changed:
            row = rows.get(key)
            if row is None:
                self._rows.pop(key, None)
                self._entries.pop(key, None)
            else:
                self._entries[key] = _entry(row, self._ahead)
                self._rows[key] = row, self._entries[key]


def _numbers(connection: sqlite3.Connection) -> tuple[int, int]:
    """The oldest and the newest number in the record, 0 without one."""
    try:
        found = connection.execute("SELECT min(number), max(number) FROM changes").fetchone()
    except sqlite3.OperationalError:
        return 0, 0
    return found[0] or 0, found[1] or 0


def _entry(row: Row, ahead: float) -> Entry:
    key, value, created, revision, expires = row
    data = value if isinstance(value, bytes) else str(value).encode()  # people insert text with the sqlite3 tool
    ends = None if expires is None else float(str(expires)) + ahead
    return Entry(str(key), data, int(str(created)), int(str(revision)), ends)
