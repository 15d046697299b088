"""The address table: from sets of ranges and points to flat arrays. Pure.

The *layer* is what the spread sets make of a family's address space: disjoint intervals, each with the numbers of the
sets it lies in. Points (addresses of pods and nodes) are then put over it, each with an entry of its own.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping

from fabric.policy.ranges import Range
from fabric.policy.sets import LAST

Sets = tuple[int, ...]
LOW_64 = (1 << 64) - 1


class Layer:
    def __init__(self, spread: Mapping[int, Iterable[Range]], family: int) -> None:
        changes: dict[int, list[int]] = {0: []}
        for number, ranges in spread.items():
            for first, last in ranges:
                changes.setdefault(first, []).append(number)
                if last < LAST[family]:
                    changes.setdefault(last + 1, []).append(~number)
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


class EntryTable:
    """Entries with their sets, both interned; `flat()` gives the arrays of the judge."""

    def __init__(self) -> None:
        self.sets = array("I")
        self.set_positions: dict[Sets, int] = {}
        self.entries = array("I")
        self.positions: dict[tuple[int, ...], int] = {}

    def entry(
        self, sets: Sets, stages: tuple[int, int, int, int] = (0, 0, 0, 0), who: tuple[int, int, int] = (0, 0, 0)
    ) -> int:
        """`stages`: (first ingress, first egress, count ingress, count egress); `who`: (pod, node, is a node's
        address).
        """
        at = self.set_positions.get(sets)
        if at is None:
            at = self.set_positions[sets] = len(self.sets)
            self.sets.extend(sets)
        key = (at, len(sets), *stages, *who)
        position = self.positions.get(key)
        if position is None:
            position = self.positions[key] = len(self.positions)
            self.entries.extend(key)
        return position


def overlay(layer: Layer, points: Mapping[int, int], table: EntryTable, family: int) -> tuple[list[int], list[int]]:
    """(starts, entries) of the whole address space: the layer with the points {address: entry} over it."""
    starts, values = [], []
    below = [table.entry(sets) for sets in layer.sets]
    bounds, at = layer.starts, 0
    count = len(bounds)
    for address in sorted(points):
        while at < count and bounds[at] <= address:
            if bounds[at] < address:
                starts.append(bounds[at])
                values.append(below[at])
            at += 1
        starts.append(address)
        values.append(points[address])
        if address < LAST[family] and not (at < count and bounds[at] == address + 1):
            starts.append(address + 1)
            values.append(below[at - 1])
    starts.extend(bounds[at:])
    values.extend(below[at:])
    return _without_doubles(starts, values)


def _without_doubles(starts: list[int], values: list[int]) -> tuple[list[int], list[int]]:
    """Where a point follows right behind another, the interval between them is empty: the later start wins."""
    kept_starts: list[int] = []
    kept_values: list[int] = []
    for start, value in zip(starts, values, strict=True):
        if kept_starts and kept_starts[-1] == start:
            kept_values[-1] = value
        elif not kept_values or kept_values[-1] != value:
            kept_starts.append(start)
            kept_values.append(value)
    return kept_starts, kept_values


def pack(
    starts4: list[int], values4: list[int], starts6: list[int], values6: list[int], table: EntryTable
) -> tuple[bytes, ...]:
    return (
        array("I", starts4).tobytes(),
        array("I", values4).tobytes(),
        array("Q", [start >> 64 for start in starts6]).tobytes(),
        array("Q", [start & LOW_64 for start in starts6]).tobytes(),
        array("I", values6).tobytes(),
        table.entries.tobytes(),
        table.sets.tobytes(),
    )
