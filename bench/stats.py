"""Statistics of paired measurements. Pure functions.

Figures of one round were taken within seconds of each other and may be divided; figures of different rounds may not,
because the machine drifts. So everything is a list of per-round ratios, and its median is what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median

Round = Mapping[str, Mapping[str, float]]
"""Variant name to its figures by name, of one round."""


class Verdict(Enum):
    """What is known about a gate so far."""

    PASS = "pass"
    MORE = "more"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of `count` values."""

    median: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 2) -> str:
        """`0.86 [0.83-1.04]`; the range is left out for a single value."""
        middle = f"{self.median:.{digits}f}"
        return middle if self.count == 1 else f"{middle} [{self.low:.{digits}f}-{self.high:.{digits}f}]"


def spread(values: Iterable[float]) -> Spread | None:
    """None when there is no value."""
    found = sorted(values)
    return Spread(median(found), found[0], found[-1], len(found)) if found else None


def values(rounds: Iterable[Round], variant: str, figure: str) -> list[float]:
    """A figure of a variant, of the rounds that have it."""
    return [r[variant][figure] for r in rounds if figure in r.get(variant, {})]


def ratios(rounds: Iterable[Round], variant: str, baseline: str, figure: str) -> list[float]:
    """variant / baseline per round; rounds in which one is missing or the baseline is 0 are left out."""
    found = []
    for figures in rounds:
        own, other = figures.get(variant, {}).get(figure), figures.get(baseline, {}).get(figure)
        if own is not None and other:
            found.append(own / other)
    return found


def meets(value: float, limit: float, better: str) -> bool:
    """Whether a value is on the good side of a limit, the limit included."""
    return value >= limit if better == "higher" else value <= limit


def decide(found: Sequence[float], limit: float, better: str, minimum: int, maximum: int) -> Verdict:
    """PASS as soon as at least `minimum` values have a median on the good side; FAIL only after `maximum` values.

    Between the two a machine in a bad moment gets more pairs. This favours "pass" a little, by design: a gate must not
    stop work because of a neighbour, and a real loss shows in every pair.
    """
    if len(found) < minimum:
        return Verdict.MORE
    if meets(median(found), limit, better):
        return Verdict.PASS
    return Verdict.FAIL if len(found) >= maximum else Verdict.MORE
