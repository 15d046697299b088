"""The plugin's times: percentiles, targets, and what is shown."""

from __future__ import annotations

import pytest

from bench.cni import Latency, lines, percentile, start_line
from bench.cni_start import Start, measure
from bench.variants import choose

TIMES = [number / 1000 for number in range(1, 101)]


@pytest.mark.parametrize(
    ("values", "percent", "found"),
    [(TIMES, 50, 0.050), (TIMES, 99, 0.099), (TIMES, 100, 0.100), ([0.3], 50, 0.3), ([0.1, 0.2], 99, 0.2)],
)
def test_percentiles(values: list[float], percent: int, found: float) -> None:
    assert percentile(values, percent) == found


@pytest.mark.parametrize(
    ("add", "delete", "all_done", "holds"),
    [(0.250, 0.1, 5.0, True), (0.251, 0.1, 1.0, False), (0.1, 0.251, 1.0, False), (0.1, 0.1, 5.1, False)],
)
def test_targets(add: float, delete: float, all_done: float, holds: bool) -> None:
    assert Latency("tun", 110, [add], [delete], [1.0], all_done).holds is holds


def test_what_is_shown() -> None:
    text = "\n".join(lines(Latency("tun", 110, TIMES, [0.2], [1.0, 3.0], 3.25)))
    for words in ("kind tun, 110 pods", "ADD  p50   50 ms  p99   99 ms", "2 ADDs at once: all done after 3.25 s"):
        assert words in text


def test_pods_of_one_node_come_with_their_baseline() -> None:
    assert [variant.name for variant in choose(["same-node"])] == ["kernel", "bridge", "same-node"]


def test_the_start_is_measured_against_the_interpreter() -> None:
    """The gate itself needs a machine that is left alone; here the figures only have to make sense."""
    found = measure(starts=1)
    assert 1 < found.ratio < 100
    assert start_line(Start(0.05, 0.01)).endswith("50 ms of processor time, 5.0 times its interpreter's")
