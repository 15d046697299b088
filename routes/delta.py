"""Desired versus observed: what has to be done so that a set of objects becomes what it should be.

The idea is Felix's delta tracker: a reconciler keeps no queue of jobs and no history. It states what should be, states
what is, and asks for the difference; doing the work is recorded as a new observation. The answer depends on the two
current sets only, in whatever order they were given, so a lost event, a failed operation or a restart of the process is
repaired by observing again. The difference is kept up to date with each change: asking for it costs its own size.

Limits: keys and values must be hashable or comparable by `==`; not for several threads at once; whether something
observed may be deleted at all is decided before it is told to the tracker, not by it.
"""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class DeltaTracker(Generic[K, V]):
    """Two maps, desired and observed, and their difference: `pending_updates` and `pending_deletions`."""

    def __init__(self) -> None:
        self._desired: dict[K, V] = {}
        self._observed: dict[K, V] = {}
        self._updates: set[K] = set()
        self._deletions: set[K] = set()

    def desire(self, key: K, value: V) -> None:
        """`key` should exist with `value`."""
        self._desired[key] = value
        self._compare(key)

    def undesire(self, key: K) -> None:
        """`key` should not exist; asking for it twice, or for an unknown key, is fine."""
        self._desired.pop(key, None)
        self._compare(key)

    def replace_desired(self, desired: Mapping[K, V]) -> None:
        """Exactly the keys of `desired` should exist."""
        touched = self._desired.keys() | desired.keys()
        self._desired = dict(desired)
        for key in touched:
            self._compare(key)

    def observe(self, key: K, value: V) -> None:
        """`key` was seen, or was just made, with `value`: also how an update is marked applied."""
        self._observed[key] = value
        self._compare(key)

    def forget(self, key: K) -> None:
        """`key` is not there, or was just removed: also how a deletion is marked applied."""
        self._observed.pop(key, None)
        self._compare(key)

    def replace_observed(self, observed: Mapping[K, V]) -> None:
        """A complete new observation: exactly the keys of `observed` are there. Cheap when it is the same as before."""
        if observed == self._observed:
            return
        touched = self._observed.keys() | observed.keys()
        self._observed = dict(observed)
        for key in touched:
            self._compare(key)

    def pending_updates(self) -> Iterator[tuple[K, V, V | None]]:
        """(key, desired value, observed value or None) of everything missing or different.

        The list is taken at the call: entries may be marked applied while iterating.
        """
        for key in list(self._updates):
            yield key, self._desired[key], self._observed.get(key)

    def pending_deletions(self) -> Iterator[tuple[K, V]]:
        """(key, observed value) of everything there that should not be; may be marked while iterating."""
        for key in list(self._deletions):
            yield key, self._observed[key]

    @property
    def in_sync(self) -> bool:
        """Whether nothing is pending."""
        return not self._updates and not self._deletions

    @property
    def desired(self) -> Mapping[K, V]:
        return self._desired

    @property
    def observed(self) -> Mapping[K, V]:
        return self._observed

    def _compare(self, key: K) -> None:
        """Put `key` in the pending set it belongs to now."""
        wanted, seen = key in self._desired, key in self._observed
        if wanted and not (seen and self._desired[key] == self._observed[key]):
            self._updates.add(key)
        else:
            self._updates.discard(key)
        if seen and not wanted:
            self._deletions.add(key)
        else:
            self._deletions.discard(key)
