"""How long something took, as a histogram: fixed buckets, no memory per observation."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple


class Distribution(NamedTuple):
    """`bounds` in seconds, ascending; `counts` has one number per bound and one for what is beyond; `total` is the sum
    of all seconds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Latency:
    """Observes seconds; one thread at a time."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one; a negative time (a clock was set) counts as none."""
        seconds = max(0.0, seconds)
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def distribution(self) -> Distribution:
        """What was observed so far."""
        return Distribution(self._bounds, tuple(self._counts), self._total)
