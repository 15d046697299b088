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
from fabric.policy.ranges import Range
from fabric.policy.sets import LAST

Sets = tuple[int, ...]
Stages = tuple[int, int, int, int]
Who = tuple[int, int, int]
LOW_64 = (1 << 64) - 1
ENTRY_WORDS = 9
NO_STAGES: Stages = (0, 0, 0, 0)
NOBODY: Who = (0, 0, 0)
MANY = 256
"""So many new points are sorted in at once; fewer one by one."""


class Layer:
    def __init__(self, spread: Mapping[int, Iterable[Range]], family: int) -> None:
        changes: dict[int, list[int]] = {0: []}
        for number, ranges in spread.items():
            for first, last in ranges:
                changes.setdefault(first, []).append(number)
                if last < LAST[family]:
                    changes.setdefault(last + 1, []).append(~number)
        self.family = family
        self.starts: list[int] = []
        self.sets: list[Sets] = []
        active = {0}
        for start in sorted(changes):
            for number in sorted(changes[start]):  # leaving (negative) before entering
                if number < 0:
                    active.discard(~number)
                else:
                    active.add(number)
            self.starts.append(start)
            self.sets.append(tuple(sorted(active)))

    def at(self, address: int) -> Sets:
        return self.sets[bisect_right(self.starts, address) - 1]

    def differences(self, other: Layer) -> Iterator[Range]:
        """Where the two say something else."""
        bounds = sorted({*self.starts, *other.starts})
        for start, following in zip(bounds, [*bounds[1:], LAST[self.family] + 1], strict=True):
            if self.at(start) != other.at(start):
                yield start, following - 1


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
        address).
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
    """The addresses of one family that have entries of their own, ascending, in columns as the judge reads them."""

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
