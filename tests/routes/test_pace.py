"""When the next look is due, over sequences of events with times in seconds."""

import pytest

from routes.pace import Pacer, Pacing


def paced(*steps: tuple[str, float]) -> Pacer:
    """A pacer that saw `steps`: ("event" | "overrun" | "started" | "done" | "failed", when)."""
    pacer = Pacer(Pacing())
    for what, now in steps:
        match what:
            case "done" | "failed":
                pacer.finished(now, failed=what == "failed")
            case _:
                getattr(pacer, what)(now)
    return pacer


@pytest.mark.parametrize(
    ("steps", "due"),
    [
        ([("started", 0.0), ("done", 0.01)], 10.0),  # nothing heard: the regular check
        ([("started", 0.0), ("event", 5.0)], 5.02),  # debounced
        ([("started", 0.0), ("event", 5.0), ("event", 5.019)], 5.02),  # counted from the first event
        ([("started", 0.0), ("event", 0.05)], 0.2),  # looks are 200 ms apart
        ([("started", 0.0), ("event", 1.0), ("started", 1.02)], 11.02),  # the look saw the event
        ([("started", 0.0), ("overrun", 5.0)], 5.02),  # the first overrun is answered at once
        ([("overrun", 5.0), ("started", 5.02), ("overrun", 5.3)], 5.92),  # then about once a second
        ([("overrun", 5.0), ("started", 5.02), ("overrun", 5.3), ("event", 5.3)], 5.92),  # also for its events
        ([("overrun", 5.0), ("started", 5.02), ("event", 5.3)], 5.32),  # an event without loss is not held back
        ([("started", 0.0), ("failed", 0.5)], 1.5),  # failures are tried again
        ([("failed", 0.0), ("failed", 1.0), ("failed", 3.0), ("started", 3.0), ("failed", 3.5)], 11.5),
        ([("started", 0.0), ("failed", 1.0)] * 20, 10.0),  # no later than the regular check
        ([("failed", 0.0), ("failed", 1.0), ("started", 2.0), ("done", 2.0), ("started", 3.0), ("failed", 3.0)], 4.0),
    ],
)
def test_due(steps: list[tuple[str, float]], due: float) -> None:
    pacer = paced(*steps)

    assert pacer.due(0.0) == pytest.approx(due)


def test_the_first_look_is_due_at_once() -> None:
    assert Pacer().due(123.0) == 123.0


def test_late() -> None:
    assert Pacer().late(5.0) == float("inf")
    pacer = paced(("started", 0.0), ("done", 0.1))
    assert (pacer.late(9.0), pacer.late(12.5)) == (0.0, 2.5)
    assert paced(("started", 0.0)).late(45.0) == 35.0, "a look that does not end is late when the next one is due"
