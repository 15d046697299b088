"""What policy says about itself, out of the daemon's own answers: `status`'s part `policy`, and `policy.hits`. Pure.

Both are absent, or without `sources`, where no policy is enforced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from fabric.metrics.latency import Distribution


class PolicyReport(NamedTuple):
    """`rules`: every rule in force by its description, with the connections it has decided, in an order that stays:
    beyond the bound the later ones are added up. `staged_rules`: by description and action what the staged policies
    would have decided, and how many of it the other way. `programming`: from the change of an object to its use by the
    data path, in seconds."""

    snapshot: int
    objects: int
    refused: int
    staged: int
    problems: int
    rules: tuple[tuple[str, int], ...]
    staged_rules: tuple[tuple[str, str, int, int], ...]
    programming: Distribution | None


def read(status: Mapping[str, Any], hits: Sequence[Mapping[str, Any]]) -> PolicyReport:
    """The report out of these two answers."""
    return PolicyReport(
        status.get("snapshot", 0),
        status.get("objects", 0),
        status.get("refused", 0),
        status.get("staged", 0),
        len(status.get("problems", ())),
        tuple(sorted((str(item["rule"]), int(item["hits"])) for item in hits if not item.get("staged"))),
        tuple(sorted(_would(item) for item in hits if item.get("staged"))),
        _distribution(status.get("latency")),
    )


def _would(item: Mapping[str, Any]) -> tuple[str, str, int, int]:
    return str(item["rule"]), str(item["action"]), int(item["hits"]), int(item["changes"])


def _distribution(described: Mapping[str, Any] | None) -> Distribution | None:
    """Cumulative buckets by bound as counts of each."""
    if not described:
        return None
    bounds = tuple(float(bound) for bound in described["buckets"])
    sums = [0, *described["buckets"].values(), described["count"]]
    return Distribution(bounds, tuple(after - before for before, after in pairwise(sums)), float(described["sum"]))
