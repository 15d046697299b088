"""The content of a prefix as of a revision, and the identity of the store that it is from. Pure.

etcd's history is one line of revisions for as long as the cluster lives. A backup that was restored starts a second
line from an older revision, often under the same cluster id; what we know may then lie on the line that was given up.
`Identity` notices a revision that runs backwards; `Content.matches` a line that has overtaken ours meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fabric.store.base import Entry, Snapshot

MAX_KEYS = 65536
MAX_BYTES = 64 << 20
MAX_VALUE = 128 << 10
MAX_REVISION = 1 << 62  # one more still is a number on the wire

Expires = Callable[[int], float | None]  # Unix time at which an etcd lease ends, by its id


class TooMuchError(Exception):
    """More lies under the prefix than we hold. The text says how much that is."""


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """`key` and `range_end` of a request for everything under `prefix` (etcd clientv3 `GetPrefixRangeEnd`)."""
    key = encode_key(prefix)
    end = key.rstrip(b"\xff")
    if not end:
        return key or b"\0", b"\0"
    return key, end[:-1] + bytes([end[-1] + 1])


def encode_key(key: str) -> bytes:
    """A key on the wire. Keys are text to us; bytes that are no UTF-8 survive the way in and out."""
    return key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes) -> str:
    """The reverse of `encode_key`."""
    return key.decode("utf-8", "surrogateescape")


class Content:
    """What lies under one prefix at `revision`. A value longer than MAX_VALUE is cut there, which no reader accepts."""

    def __init__(self, prefix: str, store_id: str, revision: int) -> None:
        self.store_id = store_id
        self.revision = 0
        self.reached(revision)
        self._prefix = encode_key(prefix)
        self._entries: dict[str, Entry] = {}
        self._leases: dict[str, int] = {}
        self._bytes = 0
        self._version = object()  # of the last snapshot
        self._changed: set[str] = set()  # keys since then

    def put(self, kvs: Iterable[Any], expires: Expires) -> None:
        """Take key-values of etcd over. Raises TooMuchError."""
        for kv in kvs:
            if kv.key.startswith(self._prefix):
                self._put(kv, expires)

    def apply(self, events: Iterable[Any], delete: int, expires: Expires) -> bool:
        """Take events of a watch over; whether anything changed. `delete` is the type of a deletion.

        Raises TooMuchError."""
        changed = False
        for event in events:
            kv = event.kv
            if kv.mod_revision <= self.revision or not kv.key.startswith(self._prefix):
                continue  # nothing that etcd sends; it would make us forget what we have
            if event.type == delete:
                self._drop(decode_key(kv.key))
            else:
                self._put(kv, expires)
            changed = True
        return changed

    def reached(self, revision: int) -> None:
        """Everything up to `revision` was taken over."""
        self.revision = max(self.revision, min(revision, MAX_REVISION))

    def matches(self, count: int, newest: Any | None) -> bool:
        """Whether a store that holds `count` keys, of which `newest` changed last, can be the one we know."""
        mine = max(self._entries.values(), key=lambda entry: entry.revision, default=None)
        if count != len(self._entries) or (mine is None) != (newest is None):
            return False
        return (
            mine is None
            or newest is None
            or (decode_key(newest.key), newest.create_revision, newest.mod_revision)
            == (mine.key, mine.created, mine.revision)
        )

    def leases(self) -> set[int]:
        """Ids of all etcd leases in it."""
        return set(self._leases.values()) - {0}

    def retime(self, leases: set[int], expires: Expires) -> None:
        """The ends of these leases are other ones now."""
        for key, lease in self._leases.items():
            if lease in leases:
                old = self._entries[key]
                self._entries[key] = Entry(key, old.value, old.created, old.revision, expires(lease))
                self._changed.add(key)

    def snapshot(self) -> Snapshot:
        """What consumers get: a copy that stays as it is."""
        since, changed = self._version, frozenset(self._changed)
        self._version, self._changed = object(), set()
        return Snapshot(self.store_id, self.revision, dict(self._entries), self._version, since, changed)

    def _put(self, kv: Any, expires: Expires) -> None:
        key = decode_key(kv.key)
        self._drop(key)
        self._entries[key] = entry(kv, expires)
        self._leases[key] = kv.lease
        self._bytes += len(key) + len(self._entries[key].value)
        if len(self._entries) > MAX_KEYS or self._bytes > MAX_BYTES:
            raise TooMuchError(f"more than {MAX_KEYS} keys or {MAX_BYTES >> 20} MiB")

    def _drop(self, key: str) -> None:
        old = self._entries.pop(key, None)
        self._changed.add(key)
        if old is not None:
            self._bytes -= len(key) + len(old.value)
            del self._leases[key]


def entry(kv: Any, expires: Expires) -> Entry:
    """The store's form of etcd's key-value."""
    end = expires(kv.lease) if kv.lease else None
    return Entry(decode_key(kv.key), kv.value[:MAX_VALUE], kv.create_revision, kv.mod_revision, end)


class Identity:
    """Which store we talk to: the cluster's id, and an epoch that changes when its history was replaced.

    Only answers that etcd orders after everything before (linearizable reads, transactions) are compared, and only with
    what was known when the request went out: answers may overtake each other."""

    def __init__(self) -> None:
        self._cluster: int | None = None
        self._epoch = 0
        self._highest = 0

    @property
    def store_id(self) -> str:
        """`Snapshot.store_id`."""
        return f"{self._cluster or 0:x}.{self._epoch}"

    def mark(self) -> tuple[str, int]:
        """To be taken before a request is sent, and given to `observe` with its answer."""
        return self.store_id, self._highest

    def observe(self, header: Any, mark: tuple[str, int]) -> bool:
        """Take the header of an answer over; False when it shows that the history before `mark` was replaced."""
        store_id, highest = mark
        if self._cluster is None:
            self._cluster = header.cluster_id
        elif store_id != self.store_id:
            return True  # asked before the replacement that another answer has shown meanwhile
        elif header.cluster_id != self._cluster or header.revision < highest:
            self._cluster = header.cluster_id
            self._epoch += 1
            self._highest = header.revision
            return False
        self.reached(self.store_id, header.revision)
        return True

    def reached(self, store_id: str, revision: int) -> None:
        """The store `store_id` was seen at `revision`."""
        if store_id == self.store_id:
            self._highest = max(self._highest, revision)

    def replaced(self, store_id: str) -> bool:
        """What was known of `store_id` does not fit what the store says now; whether that is news."""
        if store_id != self.store_id:
            return False
        self._epoch += 1
        self._highest = 0
        return True
