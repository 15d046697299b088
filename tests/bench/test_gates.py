"""When a gate says no: what is missed is measured again from the start, and a real loss stays one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench import cases
from bench.gates import SITTINGS, Result, Runner
from bench.stats import Verdict


def outcome(monkeypatch: pytest.MonkeyPatch, found: Sequence[float]) -> tuple[bool, list[Result]]:
    """The hot gate of the first case, whose ratios in turn are `found`, in parts of its limit."""
    case = cases.CASES[0]
    left = list(found)
    template = cases.Measured
    monkeypatch.setattr(cases, "CASES", (case,))
    monkeypatch.setattr(cases, "SCALINGS", ())
    monkeypatch.setattr(cases, "measure_case", lambda _: template(case.limit * left.pop(0), 1.0))
    shown: list[Result] = []
    good = Runner(shown.append, pause=0.0).run("hot")
    assert not left
    return good, shown


def test_a_gate_that_holds_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    good, shown = outcome(monkeypatch, [0.5])
    assert good
    assert [result.verdict for result in shown] == [Verdict.PASS]


def test_one_bad_moment_is_not_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    good, shown = outcome(monkeypatch, [2.0, 0.9])
    assert good
    assert [result.verdict for result in shown] == [Verdict.FAIL, Verdict.PASS]


def test_a_loss_shows_in_every_sitting(monkeypatch: pytest.MonkeyPatch) -> None:
    good, shown = outcome(monkeypatch, [1.1] * SITTINGS)
    assert not good
    assert [result.verdict for result in shown] == [Verdict.FAIL] * SITTINGS
