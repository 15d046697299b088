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
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fabric import leases
from fabric.leases import LeaseFormatError
from fabric.model import Address, Lease
from fabric.store.base import Entry, Snapshot

GRACE = 120.0
AT_ONCE = 64  # changed leases beyond which sorting all anew takes hardly longer
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
        self._remembered: set[str] = set()  # keys of the rows that the present store does not contain
        self._store_id = ""
        self._seen: Snapshot | None = None
        self._keys: list[str] = []  # sorted
        self._leases: tuple[Lease, ...] = ()  # of all rows, in the order of `_keys`
        self._touched: set[str] = set()  # keys that these two do not show yet
        self.malformed = 0

    def seed(self, cached: Iterable[Lease]) -> None:
        """Leases known from before the store was reached; they hold until the store has their keys or they end."""
        for lease in cached:
            if lease.key not in self._rows:
                self._put(lease.key, _remember(lease))

    def update(self, snapshot: Snapshot, now: float) -> list[str]:
        """Take a snapshot over at Unix time `now`; the result names what is newly wrong, one line per object."""
        before, self._seen = self._seen, snapshot
        if snapshot.store_id != self._store_id:
            self._store_id = snapshot.store_id
            for key, row in list(self._rows.items()):
                self._put(key, _remember(_graced(row.lease, now)))
            keys: Iterable[str] = [*(self._prefix + key for key in self._bad), *snapshot.entries]
        else:
            keys = _changed(before, snapshot)
        complaints = []
        for full in keys:
            key, entry = full.removeprefix(self._prefix), snapshot.entries.get(full)
            if entry is None:
                self._bad.pop(key, None)
                self._leave(key, now)
            elif line := self._take(key, entry):
                complaints.append(line)
        return complaints

    def current(self, now: float) -> tuple[Lease, ...]:
        """The leases that hold at `now` (Unix time in seconds), by key. What only we remember ends with its lease.

        One that is as it was is the same object, also the whole where nothing changed.
        """
        self._arrange()
        if not self._remembered:
            return self._leases
        stored = [row.lease for row in self._rows.values() if row.entry is not None]
        holders = {ip for lease in stored for ip in (lease.public_ip, lease.public_ipv6) if ip is not None}
        return tuple(
            lease
            for lease in self._leases
            if lease.key not in self._remembered or not (self._has_ended(lease, now) or _moved(lease, holders))
        )

    def _has_ended(self, lease: Lease, now: float) -> bool:
        return bool(self._store_id) and lease.expires is not None and lease.expires <= now

    def next_end(self) -> float | None:
        """Unix time at which `current` changes by itself; None when it does not."""
        ends = [self._rows[key].lease.expires for key in self._remembered]
        return min((end for end in ends if end is not None), default=None)

    def remembered(self) -> set[str]:
        """Keys that the present store does not contain and that we hold from before."""
        return set(self._remembered)

    def _put(self, key: str, row: _Row) -> None:
        self._rows[key] = row
        self._touched.add(key)
        if row.entry is None:
            self._remembered.add(key)
        else:
            self._remembered.discard(key)

    def _leave(self, key: str, now: float) -> None:
        """The store, which is the one we know, does not contain the key."""
        row = self._rows.get(key)
        if row is None or row.entry is None:
            return
        if row.entry.expires is not None and row.entry.expires <= now:  # ended, not removed
            self._put(key, _remember(_graced(row.lease, now)))
            return
        del self._rows[key]
        self._touched.add(key)

    def _arrange(self) -> None:
        """Bring the sorted leases up to date: those that changed, or all when that is less work."""
        touched, self._touched = self._touched, set()
        if len(touched) > AT_ONCE:
            self._keys = sorted(self._rows)
            self._leases = tuple([self._rows[key].lease for key in self._keys])
            return
        for key in touched:
            place = bisect_left(self._keys, key)
            known = self._keys[place : place + 1] == [key]
            row = self._rows.get(key)
            if known and row is not None and self._leases[place] is row.lease:
                continue
            self._leases = (
                *self._leases[:place], *([row.lease] if row is not None else []), *self._leases[place + known :]
            )  # fmt: skip
            self._keys[place : place + known] = [key] if row is not None else []

    def problems(self) -> Mapping[str, str]:
        """Keys under which something unreadable lies, with the reason."""
        return {key: reason for key, (_, reason) in sorted(self._bad.items())}

    def _take(self, key: str, entry: Entry) -> str:
        old = self._rows.get(key)
        if old is not None and old.entry == entry:
            return ""
        try:
            lease = leases.parse(key, entry.value, entry.expires, entry.created)
        except LeaseFormatError as error:
            return self._refuse(key, entry, str(error))
        self._bad.pop(key, None)
        self._put(key, _Row(entry, lease))
        return ""

    def _refuse(self, key: str, entry: Entry, reason: str) -> str:
        if self._bad.get(key, (0, ""))[0] == entry.revision:
            return ""
        self._bad[key] = (entry.revision, reason)
        self.malformed += 1
        old = self._rows.get(key)
        if old is None:
            return f"lease {key[:80]!r} is ignored: {reason}"
        self._put(key, _Row(entry, dataclasses.replace(old.lease, expires=entry.expires)))
        return f"lease {key[:80]!r} keeps its last good value: {reason}"


def _changed(before: Snapshot | None, snapshot: Snapshot) -> Iterable[str]:
    """Keys of the store that may be other ones than in the last snapshot."""
    if before is None:
        return snapshot.entries
    if snapshot.since is not None and snapshot.since is before.version:
        return sorted(snapshot.changed)
    old, new = before.entries, snapshot.entries
    return [*(old.keys() - new.keys()), *(key for key, entry in new.items() if old.get(key) is not entry)]


def _moved(lease: Lease, holders: set[Address]) -> bool:
    """Whether its node published again, under another subnet."""
    return lease.public_ip in holders or lease.public_ipv6 in holders
