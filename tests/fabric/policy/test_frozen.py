"""Verdicts that were frozen and thawed are the same ones; what was frozen for another judge is nothing."""

from __future__ import annotations

import marshal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.policy import compile_policies, frozen
from fabric.policy.frozen import freeze, thaw
from tests.fabric.policy.worlds import World


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_verdicts_are_the_same(seed: int) -> None:
    """For new flows and for established ones; no rule is named, since nobody could say which it was."""
    world = World(seed)
    before = compile_policies(world.objects, world.pods, world.namespaces, world.nodes)
    after = thaw(freeze(before))
    assert after is not None
    assert after.number == before.number
    for _ in range(60):
        question = world.question()
        assert after.verdict(*question) == (before.verdict(*question)[0], None, None), question
        assert after.established(*question)[0] == before.established(*question)[0], question
        assert after.knows(question[0]) == before.knows(question[0])


def test_a_rule_without_a_number_has_a_name_all_the_same() -> None:
    thawed = thaw(freeze(compile_policies([], [], [], [])))
    assert thawed is not None
    assert thawed.describe(7) == "a rule of the last run"


def test_what_another_judge_reads_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = freeze(compile_policies([], [], [], []))
    assert thaw(data) is not None
    monkeypatch.setattr(frozen, "READER", (1, 2))
    assert thaw(data) is None


@pytest.mark.parametrize("data", [b"", b"nonsense", marshal.dumps(7), marshal.dumps((1, 2))], ids=repr)
def test_what_is_no_snapshot_is_nothing(data: bytes) -> None:
    assert thaw(data) is None
