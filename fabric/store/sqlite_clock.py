"""The time of an SQLite store: one for all processes of a machine, whatever happens to the wall clock meanwhile.

`meta.clock` holds the identity of the kernel's present start and what has to be added to the machine's uptime to get
the file's time. Whoever finds none for this start writes their own. So two daemons agree on when a lease ends also when
the wall clock was set between their starts; after a restart of the machine the wall clock counts again.
"""

from __future__ import annotations

import math
import sqlite3
from contextlib import suppress
from pathlib import Path

SAME = 1.0
"""Seconds by which clocks that were never set may differ: what NTP's slewing and reading two clocks make."""


def file_offset(connection: sqlite3.Connection, own: float) -> float:
    """The file's time less the uptime; `own`, where the file has none yet or is as good as ours."""
    boot = _boot()
    found = _read(connection, boot)
    if found is None:
        with suppress(sqlite3.OperationalError):  # it cannot be written now: ours counts
            connection.execute("BEGIN IMMEDIATE")
            found = _read(connection, boot)
            if found is None:
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('clock', ?)", (f"{boot} {own!r}",))
            connection.execute("COMMIT")
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return own if found is None or abs(found - own) < SAME else found


def _read(connection: sqlite3.Connection, boot: str) -> float | None:
    row = connection.execute("SELECT value FROM meta WHERE name = 'clock'").fetchone()
    start, _, text = str(row[0] if row else "").partition(" ")
    try:
        offset = float(text)
    except ValueError:
        return None
    return offset if start == boot and math.isfinite(offset) else None


def _boot() -> str:
    """The kernel's present start."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
