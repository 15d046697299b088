"""Store snapshots turned into leases, never losing a good one to a bad write or to a store that was made anew.

Four rules beyond parsing: a key whose value cannot be read keeps its last good value; keys that cannot be read are
counted and left out, never taken for a snapshot of their own; only a store that once contained a key can remove it, so
that a store which was deleted and recreated does not cut every node off until all have published again; and a lease
that ended without being removed is kept a little longer, since after an outage of a day all leases end at once. A lease
without a time limit (a Kubernetes Node's) that only we remember ends like one written now, or a Node that was deleted
meanwhile would stay for ever. Before the first snapshot nothing ends at all: a node that started while the store is
away goes on for as long as that lasts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fabric import leases
from fabric.leases import LeaseFormatError
from fabric.model import Lease
from fabric.store.base import Entry, Snapshot

GRACE = 120.0
REMEMBERED = 1 << 62  # revision of a lease that the present store does not contain: it loses every clash


@dataclass(frozen=True, slots=True)
class _Row:
    entry: Entry | None  # None: known from an earlier store or from the cache on disk only
    lease: Lease


def _remember(lease: Lease) -> _Row:
    return _Row(None, dataclasses.replace(lease, revision=REMEMBERED))


def _graced(lease: Lease, now: float) -> Lease:
    """The lease as we remember it from now on; after an outage the node of one that has ended is about to renew."""
    if lease.expires is None:
        return dataclasses.replace(lease, expires=now + leases.TTL)
    if lease.expires > now:
        return lease
    return dataclasses.replace(lease, expires=now + GRACE)


class LeaseTable:
    """The current leases by key. `update` and `seed` are the inputs, `current` the output."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._rows: dict[str, _Row] = {}
        self._bad: dict[str, tuple[int, str]] = {}
        self._store_id = ""
        self.malformed = 0

    def seed(self, cached: Iterable[Lease]) -> None:
        """Leases known from before the store was reached; they hold until the store has their keys or they end."""
        for lease in cached:
            self._rows.setdefault(lease.key, _remember(lease))

    def update(self, snapshot: Snapshot, now: float) -> list[str]:
        """Take a snapshot over at Unix time `now`; the result names what is newly wrong, one line per object."""
        same_store = snapshot.store_id == self._store_id
        self._store_id = snapshot.store_id
        entries = {key.removeprefix(self._prefix): entry for key, entry in snapshot.entries.items()}
        kept: dict[str, _Row] = {}
        for key, row in self._rows.items():
            if not same_store:
                kept[key] = _remember(_graced(row.lease, now))
            elif key in entries or row.entry is None:
                kept[key] = row
            elif row.entry.expires is not None and row.entry.expires <= now:  # ended, not removed
                kept[key] = _remember(_graced(row.lease, now))
        self._bad = {key: bad for key, bad in self._bad.items() if key in entries}
        complaints = [line for key, entry in entries.items() if (line := self._take(kept, key, entry))]
        self._rows = kept
        return complaints

    def current(self, now: float) -> list[Lease]:
        """The leases that hold at `now` (Unix time in seconds), by key. What only we remember ends with its lease."""
        found = []
        holders = {}
        for row in self._rows.values():
            if row.entry is not None:
                holders.update({ip: row for ip in (row.lease.public_ip, row.lease.public_ipv6) if ip is not None})
        for key in sorted(self._rows):
            row = self._rows[key]
            if row.entry is None:
                ended = self._store_id and row.lease.expires is not None and row.lease.expires <= now
                moved = row.lease.public_ip in holders or row.lease.public_ipv6 in holders
                if ended or moved:  # moved: the node published again, under another subnet
                    continue
            found.append(row.lease)
        return found

    def next_end(self) -> float | None:
        """Unix time at which `current` changes by itself; None when it does not."""
        ends = [row.lease.expires for row in self._rows.values() if row.entry is None and row.lease.expires is not None]
        return min(ends) if ends else None

    def remembered(self) -> set[str]:
        """Keys that the present store does not contain and that we hold from before."""
        return {key for key, row in self._rows.items() if row.entry is None}

    def problems(self) -> Mapping[str, str]:
        """Keys under which something unreadable lies, with the reason."""
        return {key: reason for key, (_, reason) in sorted(self._bad.items())}

    def _take(self, rows: dict[str, _Row], key: str, entry: Entry) -> str:
        old = rows.get(key)
        if old is not None and old.entry == entry:
            return ""
        try:
            lease = leases.parse(key, entry.value, entry.expires, entry.created)
        except LeaseFormatError as error:
            return self._refuse(rows, key, entry, str(error))
        self._bad.pop(key, None)
        rows[key] = _Row(entry, lease)
        return ""

    def _refuse(self, rows: dict[str, _Row], key: str, entry: Entry, reason: str) -> str:
        if self._bad.get(key, (0, ""))[0] == entry.revision:
            return ""
        self._bad[key] = (entry.revision, reason)
        self.malformed += 1
        old = rows.get(key)
        if old is None:
            return f"lease {key[:80]!r} is ignored: {reason}"
        rows[key] = _Row(entry, dataclasses.replace(old.lease, expires=entry.expires))
        return f"lease {key[:80]!r} keeps its last good value: {reason}"
