"""The prefixes behind a table, kept so that a new table costs what changed: which intervals lie under one prefix now.

A `PrefixSet` is the mutable half of `Fib`: its owner changes it and asks for the *window* of each prefix that changed,
which is the piece of the flat table that the prefix covers, flattened anew. `Fib.patched` puts such a piece into a copy
of the last table. Pure Python; the tables themselves stay immutable.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from routes.flatten import NO_VALUE, Prefix, flatten

Network = IPv4Network | IPv6Network
Key = tuple[int, int]
"""First address and length of a prefix."""


class Window(NamedTuple):
    """The intervals between the addresses `first` and `last` of one IP version: `starts` ascend from `first`.

    `prefixes` is the number of those in the whole set, of both versions."""

    version: int
    first: int
    last: int
    starts: list[int]
    values: list[int]
    prefixes: int


class PrefixSet:
    """Prefixes with their values, as `Fib` takes them."""

    def __init__(self, entries: Iterable[tuple[Network, int]] = ()) -> None:
        self._families = {4: _Family(32), 6: _Family(128)}
        for network, value in entries:
            self._families[network.version].values[_key(network)] = value
        for family in self._families.values():
            family.keys = sorted(family.values)
            family.lengths = Counter(length for _, length in family.keys)

    def set(self, network: Network, value: int) -> None:
        """The prefix is there, with this value."""
        self._families[network.version].set(_key(network), value)

    def remove(self, network: Network) -> None:
        """The prefix is not there."""
        self._families[network.version].remove(_key(network))

    def window(self, network: Network) -> Window:
        """The intervals that the range of `network` consists of now, whether it is in the set or not."""
        first, last, starts, values = self._families[network.version].window(_key(network))
        return Window(network.version, first, last, starts, values, len(self))

    def __len__(self) -> int:
        return sum(len(family.values) for family in self._families.values())


class _Family:
    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.values: dict[Key, int] = {}
        self.keys: list[Key] = []  # sorted: a prefix before those inside it
        self.lengths: Counter[int] = Counter()

    def set(self, key: Key, value: int) -> None:
        if key not in self.values:
            insort(self.keys, key)
            self.lengths[key[1]] += 1
        self.values[key] = value

    def remove(self, key: Key) -> None:
        if self.values.pop(key, None) is None:
            return
        del self.keys[bisect_left(self.keys, key)]
        self.lengths[key[1]] -= 1
        if not self.lengths[key[1]]:
            del self.lengths[key[1]]

    def window(self, key: Key) -> tuple[int, int, list[int], list[int]]:
        first, last = key[0], self._last(key)
        inside = self.keys[bisect_left(self.keys, key) : bisect_right(self.keys, (last, self.bits))]
        prefixes = (self._prefix(each) for each in inside)
        return first, last, *flatten(prefixes, last, first, self._around(key))

    def _around(self, key: Key) -> int:
        """The value of the longest prefix that covers this one and is not it."""
        first, length = key
        for shorter in sorted(self.lengths, reverse=True):
            rest = self.bits - shorter
            value = self.values.get((first >> rest << rest, shorter)) if shorter < length else None
            if value is not None:
                return value
        return NO_VALUE

    def _prefix(self, key: Key) -> Prefix:
        return key[0], key[1], self._last(key), self.values[key]

    def _last(self, key: Key) -> int:
        return key[0] + (1 << self.bits - key[1]) - 1


def _key(network: Network) -> Key:
    return int(network.network_address), network.prefixlen
