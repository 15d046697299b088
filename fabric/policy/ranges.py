"""Sets of integers as sorted, disjoint ranges (first, last): ports and addresses alike."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def subtract(wanted: Iterable[Range], unwanted: Iterable[Range]) -> list[Range]:
    """`wanted` without `unwanted`, in one pass over both."""
    found: list[Range] = []
    holes = joined(unwanted)
    at = 0
    for first, last in joined(wanted):
        while at < len(holes) and holes[at][1] < first:
            at += 1
        here = at
        while here < len(holes) and holes[here][0] <= last:
            low, high = holes[here]
            if first < low:
                found.append((first, low - 1))
            first = max(first, high + 1)
            here += 1
        if first <= last:
            found.append((first, last))
    return found


def intersect(left: Iterable[Range], right: Iterable[Range], last: int) -> list[Range]:
    """What is in both; `last` is the largest number there is."""
    return subtract(left, subtract([(0, last)], right))


def joined(ranges: Iterable[Range]) -> list[Range]:
    """Sorted and disjoint, neighbours made one."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found
