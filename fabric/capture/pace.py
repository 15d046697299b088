"""How much of a processor a capture may take from the traffic beside it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, process_time

SAVED_SECONDS = 0.5
"""Of the processor's time, that was not taken before: short bursts of packets are written whole."""


class Pace:
    """Holds this process to `share` of one processor in the long run.

    A process's priority does not do that: it counts within its session or control group only (sched(7), autogroup), and
    the daemon is in another one.
    """

    def __init__(
        self, share: float, wall: Callable[[], float] = monotonic, used: Callable[[], float] = process_time
    ) -> None:
        self._share = share
        self._wall = wall
        self._used = used
        self._last = wall(), used()
        self._saved = SAVED_SECONDS

    def pause(self) -> float:
        """Seconds for which to do nothing now."""
        (wall, used), self._last = self._last, (self._wall(), self._used())
        earned = (self._last[0] - wall) * self._share
        self._saved = min(self._saved + earned - (self._last[1] - used), SAVED_SECONDS)
        return max(0.0, -self._saved / self._share)
