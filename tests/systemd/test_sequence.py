"""What the probe makes of what arrived, over tables: the figures of the restart tests rest on it."""

from __future__ import annotations

import pytest

from tests.systemd.sequence import Summary, summarize

ALL = (0.0, float("inf"))


def records(*numbers: int) -> list[tuple[int, float, float]]:
    """In this order of arrival, sent every second, arriving a second apart from 0.5 on."""
    return [(number, float(number), position + 0.5) for position, number in enumerate(numbers)]


@pytest.mark.parametrize(
    ("arrived", "sent", "lost", "doubled", "reordered"),
    [
        ((0, 1, 2, 3), 4, 0, 0, 0),
        ((0, 2, 3), 4, 1, 0, 0),
        ((1, 2), 4, 2, 0, 0),  # the first and the last one, too
        ((0, 1, 1, 2, 3), 4, 0, 1, 0),
        ((0, 2, 1, 3), 4, 0, 0, 1),
        ((0, 3, 1, 1), 4, 1, 1, 2),
    ],
)
def test_counts(arrived: tuple[int, ...], sent: int, lost: int, doubled: int, reordered: int) -> None:
    found = summarize(records(*arrived), 4, *ALL)
    assert found[:4] == (sent, lost, doubled, reordered)


def test_gap_and_latency() -> None:
    found = summarize([(0, 0.0, 0.1), (1, 1.0, 4.0), (2, 2.0, 4.1)], 3, *ALL)
    assert found.gap == pytest.approx(3.9)
    assert found.latency == pytest.approx(3.0)


def test_a_span_counts_what_was_sent_in_it() -> None:
    """What is missing between the first and the last of it; sent times of what is lost are not known."""
    found = summarize(records(0, 1, 2, 5, 6, 9), 12, 1.0, 7.0)
    assert found[:2] == (6, 2)
    assert summarize([], 5, *ALL) == Summary(0, 0, 0, 0, float("inf"), float("inf"))
