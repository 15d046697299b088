"""A capture's share of the processor."""

from __future__ import annotations

import pytest

from fabric.capture.pace import SAVED_SECONDS, Pace
from tests.fabric.clock import Clock


@pytest.mark.parametrize("share", [0.1, 0.2, 1.0])
def test_in_the_long_run_it_takes_its_share(share: float) -> None:
    """A loop that always has something to do: 30 ms of work, then the pause that it is told."""
    wall, used = Clock(), Clock()
    pace = Pace(share, wall, used)
    began = wall()
    while wall() - began < 100:
        wall.advance(0.03)
        used.advance(0.03)
        wall.advance(pace.pause())
    assert used() - Clock()() == pytest.approx(100 * share, abs=SAVED_SECONDS + 0.1)


def test_a_burst_is_taken_at_once_and_saved_for_again() -> None:
    wall, used = Clock(), Clock()
    pace = Pace(0.2, wall, used)
    used.advance(SAVED_SECONDS)
    wall.advance(0.001)
    assert pace.pause() == 0
    used.advance(0.1)
    assert pace.pause() == pytest.approx(0.5, abs=0.01)
    wall.advance(1000)
    assert pace.pause() == 0
    used.advance(SAVED_SECONDS)
    assert pace.pause() == 0, "what was saved is no more than it was at first"
    used.advance(0.02)
    assert pace.pause() == pytest.approx(0.1)
