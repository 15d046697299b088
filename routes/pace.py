"""When to look at the kernel again. Pure: time is an argument, in seconds of any monotonic clock."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pacing:
    """Seconds.

    A burst of events costs one look after `debounce`; looks are `interval` apart; after lost events (an overrun) looks
    are `overrun_interval` apart, a little under a second so that the model equals the kernel within one at any moment;
    failures are retried after `retry`, doubling up to `check_interval`; and a look is taken every `check_interval` even
    when nothing was heard.
    """

    debounce: float = 0.02
    interval: float = 0.2
    overrun_interval: float = 0.9
    check_interval: float = 10.0
    retry: float = 1.0


class Pacer:
    """Turns events into the moment of the next full look (`due`)."""

    def __init__(self, pacing: Pacing | None = None) -> None:
        self._pacing = pacing or Pacing()
        self._event: float | None = None
        self._overrun: float | None = None
        self._started: float | None = None
        self._started_for_overrun: float | None = None
        self._retry: float | None = None
        self._failures = 0

    def event(self, now: float) -> None:
        """Something changed in the kernel. Only the first event since the last look counts."""
        if self._event is None:
            self._event = now

    def overrun(self, now: float) -> None:
        """The kernel dropped events because we were slow: anything may have changed."""
        if self._overrun is None:
            self._overrun = now

    def started(self, now: float) -> None:
        """A look begins: it will see everything that was announced so far."""
        if self._overrun is not None:
            self._started_for_overrun = now
        self._event = self._overrun = self._retry = None
        self._started = now

    def finished(self, now: float, failed: bool) -> None:
        """A look ended; `failed` when some object could not be brought to its state."""
        self._failures = self._failures + 1 if failed else 0
        if failed:
            wait = self._pacing.retry * 2.0 ** min(self._failures - 1, 16)
            self._retry = now + min(wait, self._pacing.check_interval)

    def late(self, now: float) -> float:
        """For how long the next look has been due, or the present one has been taking more than the time to the next.

        Infinite before the first.
        """
        return float("inf") if self._started is None else max(0.0, now - self.due(now))

    def due(self, now: float) -> float:
        """When the next look is due; not after `now` means at once."""
        if self._started is None:
            return now
        moments = [self._started + self._pacing.check_interval]
        if self._retry is not None:
            moments.append(self._retry)
        # While events are being lost every change arrives with an overrun: the slower limit must hold for both.
        first = self._overrun if self._overrun is not None else self._event
        if first is not None:
            earliest = max(first + self._pacing.debounce, self._started + self._pacing.interval)
            if self._overrun is not None and self._started_for_overrun is not None:
                earliest = max(earliest, self._started_for_overrun + self._pacing.overrun_interval)
            moments.append(earliest)
        return min(moments)
