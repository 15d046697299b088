"""The hand-written tables against the naive evaluator (a disagreement is a mistake in one of them) and the engine."""

from __future__ import annotations

import pytest

from tests.policy_truth import e2e, engine, oracle
from tests.policy_truth.runner import World, expected

NAMESPACES: dict[str, dict[str, str]] = {name: {} for name in "xyz"}


def test_counts() -> None:
    assert len(e2e.CASES) == len({name for name, _, _ in e2e.CASES}) == 48


@pytest.mark.parametrize("case", e2e.CASES, ids=lambda case: case[0])
def test_table_holds_for_the_text_and_the_engine(case: e2e.Case) -> None:
    _, pods, steps = case
    world, judged = World(e2e.ADDRESSES, pods.split(), NAMESPACES), engine.Engine()
    for kind, *rest in steps:
        if kind != "expect":
            world.play(kind, *rest)
            continue
        protocol, port, rows = rest
        ends, judge, policies = world.ends(), judged.ask(world), list(world.policies.values())
        for a in ends:
            for b in ends:
                want = expected(rows, a, b) or a == b
                cell = ends[a], ends[b], protocol, port
                assert oracle.allowed(policies, *cell) == want, f"the text: {a} > {b} {protocol} {port}"
                assert judge(*cell) == want, f"the engine: {a} > {b} {protocol} {port}"
