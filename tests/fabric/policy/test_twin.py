"""The compiled tables against the naive evaluator, on random clusters."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.policy import compile_policies
from tests.fabric.policy.fuzz import compare_worlds, fate
from tests.fabric.policy.naive import Naive
from tests.fabric.policy.worlds import World


def compare(seed: int, questions: int) -> None:
    world = World(seed)
    inputs = (world.objects, world.pods, world.namespaces, world.nodes)
    snapshot, naive = compile_policies(*inputs), Naive(*inputs)
    for _ in range(questions):
        question = world.question()
        wanted = naive.fate(*question)
        assert snapshot.allowed(*question) == (wanted == ""), f"seed {seed}: {question}: the text says {wanted!r}"
        assert fate(snapshot, *question) == wanted, f"seed {seed}: {question}"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_tables_say_what_the_text_says(seed: int) -> None:
    compare(seed, 40)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_changes_lead_to_the_same_tables_as_a_fresh_start(seed: int) -> None:
    compare_worlds(seed, 100, questions=20)
