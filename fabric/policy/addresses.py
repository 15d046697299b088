"""The address table: who has an address, what is known of every other one, and the flat arrays of both. Pure.

A *point* is an address of a pod or node, with an entry of its own. Everything else is in the *layer*: what the sets of
ranges make of a family's address space, disjoint intervals, each with the numbers of the sets it lies in. The judge
looks for the point first. Entries have slots that stay, so a change writes what it touches; a snapshot copies the flat
arrays as they are (about 60 bytes an address).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping

from fabric.policy.pool import Pool
from fabric.policy.ranges import Range, subtract
from fabric.policy.sets import ALL_ADDRESSES, LAST

Sets = tuple[int, ...]
Stages = tuple[int, int, int, int]
Who = tuple[int, int, int, int]
LOW_64 = (1 << 64) - 1
ENTRY_WORDS = 10
NO_STAGES: Stages = (0, 0, 0, 0)
NOBODY: Who = (0, 0, 0, 0)
MANY = 256
"""So many new points are sorted in at once; fewer one by one."""


class Layer:
    """Disjoint intervals of a family's addresses, each from its start to the next one's, with the sets it lies in.

    `changed` and `gone` are the starts whose interval is new or in other sets, and that are none any more, since both
    were cleared.
    """

    def __init__(self, family: int) -> None:
        self.last = LAST[family]
        self.starts = [0]
        self.sets: dict[int, Sets] = {0: (ALL_ADDRESSES,)}
        self.changed = {0}
        self.gone: set[int] = set()

    def at(self, address: int) -> Sets:
        return self.sets[self.starts[bisect_right(self.starts, address) - 1]]

    def change(self, number: int, before: Iterable[Range], after: Iterable[Range]) -> list[Range]:
        """A set has other ranges than before; where it lies now and did not, or did and does not."""
        before, after = list(before), list(after)
        left, entered = subtract(before, after), subtract(after, before)
        bounds = [bound for first, last in (*left, *entered) for bound in (first, last + 1) if bound <= self.last]
        for bound in bounds:
            self._cut(bound)
        for ranges, enters in ((left, False), (entered, True)):
            for first, last in ranges:
                for start in self.starts[bisect_left(self.starts, first) : bisect_right(self.starts, last)]:
                    others = [n for n in self.sets[start] if n != number]
                    self.sets[start] = tuple(sorted([*others, number])) if enters else tuple(others)
                    self.changed.add(start)
        for bound in bounds:
            self._heal(bound)
        return left + entered

    def _cut(self, address: int) -> None:
        if address not in self.sets:
            at = bisect_right(self.starts, address)
            self.sets[address] = self.sets[self.starts[at - 1]]
            self.starts.insert(at, address)
            self.changed.add(address)
            self.gone.discard(address)

    def _heal(self, address: int) -> None:
        """Join two intervals that are in the same sets."""
        if address not in self.sets or not address:
            return
        at = bisect_left(self.starts, address)
        if self.sets[address] == self.sets[self.starts[at - 1]]:
            del self.starts[at], self.sets[address]
            self.changed.discard(address)
            self.gone.add(address)


class Entries:
    """What is known of addresses, as the judge's `PolicyEntry`; slots are handed out and taken back."""

    def __init__(self) -> None:
        self.words = array("I")
        self.sets: Pool[int] = Pool(array("I"))
        self._of: list[Sets] = []
        self._holes: list[int] = []

    def add(self) -> int:
        """A slot that says nothing yet."""
        if self._holes:
            return self._holes.pop()
        self.words.extend([0] * ENTRY_WORDS)
        self._of.append(())
        return len(self._of) - 1

    def write(self, slot: int, sets: Sets, stages: Stages = NO_STAGES, who: Who = NOBODY) -> None:
        """`stages`: (first ingress, first egress, count ingress, count egress); `who`: (pod, node, is a node's
        address, is a local pod's).
        """
        at = self.sets.take(sets)
        if self._of[slot]:
            self.sets.release(self._of[slot])
        self._of[slot] = sets
        first = slot * ENTRY_WORDS
        self.words[first : first + ENTRY_WORDS] = array("I", (at, len(sets), *stages, *who))

    def remove(self, slot: int) -> None:
        if self._of[slot]:
            self.sets.release(self._of[slot])
        self._of[slot] = ()
        self._holes.append(slot)


class Points:
    """Addresses of one family with their entries' slots, ascending, in columns as the judge reads them: single ones, or
    the starts of intervals.
    """

    def __init__(self, family: int) -> None:
        self.family = family
        self.slots: dict[int, int] = {}
        self.addresses: list[int] = []
        self.columns = starts_columns(family, [])
        self.entries = array("I")

    def put(self, added: Mapping[int, int], removed: Iterable[int]) -> None:
        """Points come with their slots, and go."""
        if len(added) > MANY:
            for address in removed:
                del self.slots[address]
            self.slots.update(added)
            self.addresses = sorted(self.slots)
            self.columns = starts_columns(self.family, self.addresses)
            self.entries = array("I", [self.slots[address] for address in self.addresses])
            return
        for address in removed:
            del self.slots[address]
            at = bisect_left(self.addresses, address)
            for column in (self.addresses, *self.columns, self.entries):
                del column[at]
        for address, slot in added.items():
            self.slots[address] = slot
            at = bisect_left(self.addresses, address)
            self.addresses.insert(at, address)
            self.entries.insert(at, slot)
            for column, new in zip(self.columns, starts_columns(self.family, [address]), strict=True):
                column.insert(at, new[0])

    def within(self, ranges: Iterable[Range]) -> Iterator[int]:
        for first, last in ranges:
            yield from self.addresses[bisect_left(self.addresses, first) : bisect_right(self.addresses, last)]

    def pack(self) -> tuple[bytes, ...]:
        return (*(column.tobytes() for column in self.columns), self.entries.tobytes())


def starts_columns(family: int, starts: list[int]) -> list[array[int]]:
    """Addresses as the judge reads them: one array for IPv4, upper and lower halves for IPv6."""
    if family == 4:
        return [array("I", starts)]
    return [array("Q", [s >> 64 for s in starts]), array("Q", [s & LOW_64 for s in starts])]
