"""What a store is, shaped so that SQLite, etcd and the Kubernetes API all fit.

A store maps keys (text) to values (bytes). Every change gets the next number of one store-wide revision counter. Writes
are *fenced*: they say which revision of the key they replace (0: the key must not exist) and fail with ConflictError
otherwise. A key may have a time to live, after which it is gone. A watch is level-triggered: it yields the complete
content of a prefix whenever that changed, so a consumer needs no history and a lost event does not exist; several
changes may arrive as one. While the store does not answer, a watch yields `Unavailable` once and goes on trying.

Limits: no transactions over several keys; content of a prefix must fit in memory (65 k keys).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """One key's value. `created` and `revision` are the store's revisions at which the key came to be and last changed;
    `expires` is Unix time in seconds, None for no limit."""

    key: str
    value: bytes
    created: int
    revision: int
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The complete content of a prefix. `store_id` names the store's identity: a store that was deleted and made anew
    has another one, and what is missing in it was not necessarily removed by anybody.

    A store may say what it knows of the difference to an earlier snapshot: with `since` the `version` of that one, only
    the keys in `changed` can be other ones. Whoever has not seen that one compares everything.
    """

    store_id: str
    revision: int
    entries: Mapping[str, Entry]
    version: object = field(default_factory=object, repr=False, compare=False)
    since: object = field(default=None, repr=False, compare=False)
    changed: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def after(self, missed: Snapshot) -> Snapshot:
        """This snapshot for a consumer that was not given `missed`, the one before."""
        if self.since is not missed.version or missed.since is None:
            return replace(self, since=None, changed=frozenset())
        return replace(self, since=missed.since, changed=missed.changed | self.changed)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The store does not answer; `reason` is one line for people."""

    reason: str


WatchItem = Snapshot | Unavailable


class Store(Protocol):
    """The interface. All methods raise StoreUnavailableError while the store does not answer."""

    async def open(self) -> None:
        """Connect, creating the store where that makes sense. Raises StoreCorruptError for one that is broken."""

    async def list(self, prefix: str) -> Snapshot:
        """The current content under `prefix`."""

    async def put(self, key: str, value: bytes, expected: int, ttl: float | None) -> Entry:
        """Write `key` if its revision is `expected` (0: it does not exist), with `ttl` seconds to live.

        Raises ConflictError when it is at another revision."""

    async def delete(self, key: str, expected: int) -> None:
        """Remove `key` if its revision is `expected`. Raises ConflictError, also when it does not exist."""

    def watch(self, prefix: str) -> AsyncIterator[WatchItem]:
        """Yield the content now, and again after every change. Ends only when closed."""

    async def close(self) -> None:
        """Release everything; watches end. Idempotent."""
