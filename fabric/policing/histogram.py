"""A histogram as metrics want it: how many values were at most each bound, their number and sum."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

LATENCY_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. 0.02, 0.15 and 0.5 are the targets of programming latency (R10)."""


class Histogram:
    """`counts[i]`: values above `bounds[i - 1]` and at most `bounds[i]`; the last one has those above all bounds."""

    def __init__(self, bounds: Sequence[float] = LATENCY_BOUNDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def quantile(self, part: float) -> float:
        """The least bound that at least this part of the values does not pass; 0 without values, inf beyond."""
        wanted, seen = part * self.count, 0
        if not self.count:
            return 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return float("inf")

    def described(self) -> dict[str, object]:
        """For the control API."""
        cumulative, seen = {}, 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            cumulative[f"{bound:g}"] = seen
        return {"buckets": cumulative, "count": self.count, "sum": round(self.sum, 6)}
