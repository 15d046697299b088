"""What the staged policies would do is compiled beside what is in force, and never in its way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fabric.policing import answers
from fabric.policing.compiler import Compiler, Outcome
from fabric.policing.documents import Given, parse_documents
from fabric.policing.hits import Rules
from fabric.policing.staged import StagedCompiler
from fabric.policing.world import World
from tests.fabric.clock import eventually
from tests.fabric.policing.recorder import network_policy
from tests.fabric.policing.test_compiler import ALLOW, PODS, world
from tests.fabric.policing.test_diff import staged
from tests.fabric.policing.test_keeper import DB, FLOW, WEB, Kept, run

ALL = staged(network_policy("all"))
END = "end of tier default, ingress: no rule of NetworkPolicy shop/all matched"


class Both:
    """Both compilers, as the keeper runs them."""

    def __init__(self) -> None:
        self.compiler, self.staged = Compiler("n1"), StagedCompiler("n1")

    def compile(self, inputs: World) -> tuple[Outcome, Outcome]:
        outcome = self.compiler.compile(inputs)
        return outcome, self.staged.compile(inputs, outcome)

    def settle(self, inputs: World) -> tuple[Outcome, Outcome]:
        """With the turn that it waits for."""
        found = self.compile(inputs)
        return self.compile(inputs) if self.staged.waits else found


def test_the_staged_policies_are_compiled_together_with_those_in_force() -> None:
    both = Both()
    egress = network_policy("out", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Egress"])
    outcome, found = both.settle(world(*PODS, ALL, egress))
    assert outcome.snapshot is not None
    assert found.snapshot is not None
    assert outcome.snapshot.allowed(*FLOW)
    assert not found.snapshot.allowed(*FLOW)
    assert not found.snapshot.allowed("10.244.1.5", "10.244.2.6", "TCP", 80)
    _, _, ingress = found.snapshot.verdict(*FLOW)
    assert ingress is not None
    assert found.snapshot.describe(ingress) == END


def test_the_first_snapshot_comes_a_turn_later_than_what_is_in_force_and_the_others_with_it() -> None:
    both, inputs = Both(), world(*PODS, ALL, network_policy("other", "else"))
    outcome, found = both.compile(inputs)
    assert (outcome.snapshot is None, found.snapshot, both.staged.waits) == (False, None, True)
    again, found = both.compile(inputs)
    assert (again.snapshot is outcome.snapshot, found.snapshot is None, both.staged.waits) == (True, False, False)
    unchanged = both.compile(inputs)[1]
    assert unchanged.snapshot is found.snapshot
    _, last = both.compile(world(*PODS, ALL))
    assert last.snapshot is not found.snapshot
    assert last.snapshot.names is found.snapshot.names  # type: ignore[union-attr] - so counts go on


def test_there_is_nothing_while_nothing_is_staged() -> None:
    both = Both()
    assert both.settle(world(*PODS, network_policy("all")))[1] == Outcome()
    assert both.settle(world(*PODS, ALL))[1].snapshot is not None
    outcome, found = both.compile(world(*PODS, network_policy("all")))
    assert found == Outcome()
    assert outcome.snapshot is not None
    assert not outcome.snapshot.allowed(*FLOW)


def test_what_cannot_be_compiled_is_not_counted_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both()
    both.settle(world(*PODS, ALL))
    monkeypatch.setattr("fabric.policy.table.MAX_SET_WORDS", 0)
    inside = network_policy("all", ingress=[{"from": [{"podSelector": {}}]}])
    outcome, found = both.compile(world(*PODS, staged(inside)))
    assert outcome.snapshot is not None
    assert (outcome.problem, found.snapshot) == ("", None)
    assert "set memberships" in found.problem
    monkeypatch.undo()
    assert both.compile(world(*PODS, ALL, network_policy("other", "else")))[1].snapshot is not None


def test_what_would_have_been_done_is_told_by_rule() -> None:
    given = parse_documents(ALLOW.encode(), "web.yaml")[0]
    looked_at = Given(staged(dict(given.value)), given.file, given.line, given.lines)
    outcome = Compiler("n1").compile(world(*PODS, looked_at, network_policy("other", ingress=[{}])))
    rule, other = "NetworkPolicy shop/allow spec.ingress[0]", "NetworkPolicy shop/other spec.ingress[0]"
    rules = Rules().of(outcome.staged), Rules().of(outcome.accepted)
    place = {"rule": rule, "place": "web.yaml:7", "staged": True, "action": "allow"}
    assert answers.staged_hits({}, *rules) == [{**place, "hits": 0, "changes": 0}]
    end = "end of tier default, ingress: no rule of NetworkPolicy shop/allow matched"
    found = answers.staged_hits({rule: (5, 0), end: (3, 2), other: (9, 0)}, *rules)
    assert found == [
        {"rule": end, "place": "", "staged": True, "action": "deny", "hits": 3, "changes": 2},
        {**place, "hits": 5, "changes": 0},
    ]
    # A rule that is in force decides on more flows when a staged one passes them on to it.
    (first, *_) = answers.staged_hits({other: (9, 1)}, *rules)
    assert (first["rule"], first["action"], first["changes"]) == (other, "allow", 1)


def test_the_data_path_gets_both_and_what_is_in_force_first(tmp_path: Path) -> None:
    async def body(kept: Kept) -> None:
        kept.source.feed(WEB, DB, ALL)
        await kept.keeper.first()
        assert kept.recorder.last.allowed(*FLOW)
        assert kept.recorder.staged is None
        task = asyncio.get_running_loop().create_task(kept.keeper.run())
        await eventually(lambda: kept.recorder.staged)
        assert kept.recorder.staged is not None
        assert not kept.recorder.staged.allowed(*FLOW)
        assert kept.recorder.last.allowed(*FLOW)
        assert sum(kept.keeper.latency.distribution().counts) == 1  # of what is in force
        kept.source.feed(WEB, DB)
        await eventually(lambda: kept.recorder.staged is None)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kept.keeper.close()

    run(tmp_path, body)
