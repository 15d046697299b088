"""The 230 cases three ways, and small ones for what Cyclonus' own matcher gets wrong."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.policy_truth import cyclonus, engine, oracle
from tests.policy_truth.cyclonus_tables import TABLES, Table, passes
from tests.policy_truth.e2e import A, apply
from tests.policy_truth.runner import PROTOCOLS, World

FULL = [(protocol, number) for protocol in PROTOCOLS for number in (80, 81)]
GROUPS = {
    "peers": 112, "ports": 70, "conflicts": 16, "upstream": 13, "targets": 6, "actions": 6, "rules": 4,
    "namespaces": 2, "example": 1,
}  # fmt: skip
LEFT_OUT = {"multi-peer": 90, "upstream-e2e": 13, "end-port": 12, "namespaces-by-default-label": 2, "example": 1}
"""Tags that Cyclonus leaves out unless asked, and how many cases have each."""


def test_counts_are_upstreams() -> None:
    assert len({(case.group, case.name) for case in cyclonus.CASES}) == len(cyclonus.CASES) == 230
    assert Counter(case.group for case in cyclonus.CASES) == GROUPS
    tags = Counter(tag for case in cyclonus.CASES for tag in case.tags)
    assert {tag: tags[tag] for tag in LEFT_OUT} == LEFT_OUT
    assert sum(not case.tags & LEFT_OUT.keys() for case in cyclonus.CASES) == 112
    assert {(case.group, case.name) for case in cyclonus.CASES} == TABLES.keys()


def compare(steps: list[cyclonus.Step], tables: list[Table]) -> int:
    """Every cell of every step by hand, by the text and by the engine; the number of cells."""
    world, judged, cells = World(cyclonus.ADDRESSES, cyclonus.PODS, cyclonus.NAMESPACES), engine.Engine(), 0
    for (changes, probe), table in zip(steps, tables, strict=True):
        for change in changes:
            world.play(*change)
        ends, judge, policies = world.ends(), judged.ask(world), list(world.policies.values())
        for protocol, number in FULL if probe is None else [probe]:
            for a in ends:
                for b in ends:
                    want, cell = passes(table, a, b, protocol, number), (ends[a], ends[b], protocol, number)
                    assert oracle.allowed(policies, *cell) == want, f"the text: {a} > {b} {protocol} {number}"
                    assert judge(*cell) == want, f"the engine: {a} > {b} {protocol} {number}"
                    cells += 1
    return cells


@pytest.mark.parametrize("case", cyclonus.CASES, ids=lambda case: f"{case.group}: {case.name}")
def test_table_holds_for_the_text_and_the_engine(case: cyclonus.Case) -> None:
    assert compare(case.steps, TABLES[case.group, case.name]) >= 81


def from_pods(*expressions: dict[str, Any], **labels: str) -> tuple[Any, ...]:
    peer = {"podSelector": {"matchLabels": labels, "matchExpressions": list(expressions)}}
    return apply("p", A, ingress=[{"from": [peer]}])


def from_block(**block: Any) -> tuple[Any, ...]:
    return apply("p", A, ingress=[{"from": [{"ipBlock": block}]}])


NOT_CORE = {"key": "team", "operator": "NotIn", "values": ["core"]}
B_CORE, B_EMPTY = ("set-pod", "x/b", {"pod": "b", "team": "core"}), ("set-pod", "x/b", {"pod": "b", "team": ""})
WRONG_THERE: list[tuple[str, list[tuple[Any, ...]], Table]] = [
    ("NotIn matches a pod without the key", [B_CORE, from_pods(NOT_CORE)], {"x/a <": "x/a x/c @ *"}),
    ("NotIn matches a namespace without the key",
     [("set-namespace", "y", {"team": "core"}),
      apply("p", A, ingress=[{"from": [{"namespaceSelector": {"matchExpressions": [NOT_CORE]}}]}])],
     {"x/a <": "x z @ *"}),
    ("NotIn in the target matches a pod without the key",
     [B_CORE, apply("p", {"matchExpressions": [NOT_CORE]}, ingress=[])], {"x/a <": "", "x/c <": ""}),
    ("an empty value is not a missing key", [B_EMPTY, from_pods(team="")], {"x/a <": "x/b @ *"}),
    ("nobody has the empty value", [from_pods(team="")], {"x/a <": ""}),
    ("a pod reaches itself whatever is denied", [apply("p", {}, ingress=[], egress=[])],
     {f"x/{pod} {way}": "" for pod in "abc" for way in "<>"}),
    ("host bits of a block are cut off", [from_block(cidr="10.244.2.77/24")], {"x/a <": "x/c y/b y/c z/a z/c @ *"}),
    ("the first and last address of a block are in it",
     [from_block(cidr="10.244.2.17/32"), ("set-pod", "x/d", {})], {"x/a <": "z/a @ *"}),
    ("holes end where they end",
     [from_block(cidr="10.244.0.0/16", **{"except": ["10.244.2.16/30", "10.244.1.0/24"]})],
     {"x/a <": "x/c y/b y/c @ *"}),
    ("a block of the other family is about nobody here", [from_block(cidr="::/0")], {"x/a <": ""}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "table"), [row[1:] for row in WRONG_THERE], ids=[row[0] for row in WRONG_THERE])
def test_what_cyclonus_gets_wrong(changes: list[tuple[Any, ...]], table: Table) -> None:
    compare([(changes, None)], [table])
