"""How long something took, as a histogram."""

from __future__ import annotations

from typing import NamedTuple


class Distribution(NamedTuple):
    """`bounds` in seconds, ascending; `counts` has one number per bound and one for what is beyond; `total` is the sum
    of all seconds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
