"""No family has more than MAX_SERIES series: clusters, pods and policies grow, a Prometheus must not drown in them.

What is beyond becomes one series whose labels are all "other", where values may be added up; else it is left out. How
many that are is itself a reading (`metrics_left_out`). Which ones is decided by the order in which they come, and that
stays from scrape to scrape (`readings`), so the series of `other` falls only when objects come or go.
"""

from __future__ import annotations

from collections.abc import Iterable

from fabric.metrics.families import BY_NAME, Family, Reading
from fabric.metrics.latency import Distribution

MAX_SERIES = 1000
MAX_LABEL = 128
"""Characters of a label's value; longer ones are cut."""
OTHER = "other"


def bound(readings: Iterable[Reading], most: int = MAX_SERIES) -> dict[str, list[Reading]]:
    """The readings by family, at most `most` of each, labels disarmed; two with the same labels become one."""
    found: dict[str, dict[tuple[str, ...], float | Distribution]] = {}
    left_out: dict[str, set[tuple[str, ...]]] = {}
    for reading in readings:
        family = BY_NAME[reading.family]
        series = found.setdefault(family.name, {})
        labels = tuple(disarmed(label) for label in reading.labels)
        if labels not in series and len(series) >= most:
            left_out.setdefault(family.name, set()).add(labels)
            if not family.adds:
                continue
            labels = (OTHER,) * len(family.labels)
        series[labels] = _joined(family, series.get(labels), reading.value)
    result = {
        name: [Reading(name, labels, value) for labels, value in series.items()] for name, series in found.items()
    }
    result["metrics_left_out"] = [
        Reading("metrics_left_out", (name,), len(labels)) for name, labels in sorted(left_out.items())
    ]
    return result


def disarmed(label: str) -> str:
    """A label's value as anybody may have written it: no control characters, not endless."""
    text = str(label)
    if len(text) > MAX_LABEL:
        text = text[: MAX_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _joined(family: Family, before: float | Distribution | None, value: float | Distribution) -> float | Distribution:
    if before is None or not family.adds or isinstance(before, Distribution) or isinstance(value, Distribution):
        return value
    return before + value
