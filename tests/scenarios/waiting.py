"""Waiting for conditions, never for time."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_MS = 2


def wait_for(condition: Callable[[], T], what: str, seconds: float = 10.0) -> T:
    """The first true value of `condition()`; fails with `what` after `seconds`.

    Two milliseconds of poll() lie between two looks, so that waiting leaves the processor to those we wait for.
    """
    deadline = time.monotonic() + seconds
    poll = select.poll()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        poll.poll(POLL_MS)
    return value


def duration(condition: Callable[[], object], what: str, seconds: float = 10.0) -> float:
    """How long it took until `condition()` was true."""
    start = time.monotonic()
    wait_for(condition, what, seconds)
    return time.monotonic() - start
