"""Ratios are taken within a round, medians over rounds; a gate says no only after all its pairs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stats import Spread, Verdict, decide, meets, ratios, spread, values

ROUNDS = [
    {"kernel": {"gbps": 10.0}, "ours": {"gbps": 9.0, "cpu": 1.5}},
    {"kernel": {"gbps": 5.0}, "ours": {"gbps": 4.0, "cpu": 1.0}},
    {"kernel": {"gbps": 8.0}},
    {"kernel": {"gbps": 0.0}, "ours": {"gbps": 4.0}},
]


def test_ratios_pair_figures_of_one_round_and_skip_what_is_missing() -> None:
    assert ratios(ROUNDS, "ours", "kernel", "gbps") == [0.9, 0.8]
    assert ratios(ROUNDS, "ours", "kernel", "cpu") == []
    assert ratios(ROUNDS, "nobody", "kernel", "gbps") == []
    assert values(ROUNDS, "ours", "cpu") == [1.5, 1.0]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], None),
        ([3.0], Spread(3.0, 3.0, 3.0, 1)),
        ([3.0, 1.0], Spread(2.0, 1.0, 3.0, 2)),
        ([9.0, 1.0, 2.0], Spread(2.0, 1.0, 9.0, 3)),
    ],
)
def test_spread(found: list[float], expected: Spread | None) -> None:
    assert spread(found) == expected


def test_spread_text() -> None:
    assert Spread(0.861, 0.83, 1.04, 3).text() == "0.86 [0.83-1.04]"
    assert Spread(120.4, 120.4, 120.4, 1).text(0) == "120"


@pytest.mark.parametrize(
    ("found", "better", "expected"),
    [
        ([], "higher", Verdict.MORE),
        ([0.9, 0.9], "higher", Verdict.MORE),
        ([0.9, 0.9, 0.1], "higher", Verdict.PASS),
        ([0.7, 0.7, 0.7], "higher", Verdict.PASS),
        ([0.6, 0.6, 0.9], "higher", Verdict.MORE),
        ([0.6] * 5, "higher", Verdict.FAIL),
        ([0.6, 0.6, 0.9, 0.9, 0.9], "higher", Verdict.PASS),
        ([0.6, 0.6, 0.9], "lower", Verdict.PASS),
        ([0.8] * 5, "lower", Verdict.FAIL),
    ],
)
def test_decide(found: list[float], better: str, expected: Verdict) -> None:
    assert decide(found, 0.7, better, minimum=3, maximum=5) is expected


POSITIVE = st.floats(0.01, 100)


@given(st.lists(POSITIVE, min_size=1, max_size=12), POSITIVE, st.sampled_from(["higher", "lower"]))
def test_decide_ends_at_the_maximum(found: list[float], limit: float, better: str) -> None:
    verdict = decide(found, limit, better, minimum=3, maximum=len(found))
    if len(found) < 3:
        assert verdict is Verdict.MORE
    else:
        assert verdict is not Verdict.MORE
        middle = spread(found)
        assert middle is not None
        assert (verdict is Verdict.PASS) == meets(middle.median, limit, better)
