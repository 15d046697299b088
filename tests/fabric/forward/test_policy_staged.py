"""Staged policies count what they would have done, and no packet fares otherwise for them."""

from __future__ import annotations

import pytest

from fabric.forward.flow_probe import FlowProbe
from fabric.forward.flows import FlowTable
from fabric.forward.policies import Policies
from fabric.policy import PolicySnapshot
from fabric.policy.parse import object_key
from tests.fabric.forward.policed import (
    SERVICE_NETWORKS,
    Object,
    allow,
    compile_for,
    packet,
    policy,
    probe_on,
    tcp,
    udp,
    world_for,
)
from tests.fabric.forward.test_policy_dataplane import plane_with

NOW = 1000
A_TO_B = ("a", "b")
NOBODY_TO_B, NOTHING_FROM_A = policy("b", ingress=[]), policy("a", egress=[])
ONLY_C_TO_B = policy("b", ingress=[allow("c")])
END = "end of tier default, ingress: no rule matched"


def staged(subject: str, **more: object) -> Object:
    return policy(subject, name="new", staged=True, **more)  # type: ignore[arg-type]


def end(direction: str = "ingress") -> str:
    return f"end of tier default, {direction}: no rule of NetworkPolicy default/new matched"


def rule(path: str) -> str:
    return f"NetworkPolicy default/new spec.{path}"


class Node:
    """Node 1 with the flow table of a and b, and its policies."""

    def __init__(self, in_force: list[Object], looked_at: list[Object]) -> None:
        self.policies = Policies(plane_with(services=SERVICE_NETWORKS).settings)
        self.table = FlowTable(4096, 1 << 20)
        self.apply(compile_for("node1", in_force), compile_for("node1", [*in_force, *looked_at]))

    def apply(self, in_force: PolicySnapshot | None, looked_at: PolicySnapshot | None) -> None:
        self.policies.set(in_force, looked_at)
        self.probe: FlowProbe = probe_on(self.table, [], [], enforcement=self.policies.enforcement(1))

    def passes(self, raw: bytes) -> bool:
        return not self.probe.refused(raw, 1, NOW)

    @property
    def would(self) -> dict[str, tuple[int, int]]:
        return self.policies.staged_hits()


@pytest.mark.parametrize(
    ("in_force", "looked_at", "passes", "would"),
    [
        ([], staged("b", ingress=[]), True, {end(): (1, 1)}),
        ([], staged("a", egress=[]), True, {end("egress"): (1, 1)}),
        ([], staged("b", ingress=[allow("a")]), True, {rule("ingress[0]"): (1, 0)}),
        ([], staged("b", ingress=[allow("c"), allow("a")]), True, {rule("ingress[1]"): (1, 0)}),
        ([], staged("b", ingress=[allow("a", "TCP", 81)]), True, {end(): (1, 1)}),
        ([], staged("bridged", ingress=[]), True, {}),
        ([NOBODY_TO_B], staged("b", ingress=[allow("a")]), False, {rule("ingress[0]"): (1, 1)}),
        ([NOBODY_TO_B], staged("b", ingress=[allow("c")]), False, {end(): (1, 0)}),
        ([NOTHING_FROM_A], staged("a", egress=[allow("b")]), False, {rule("egress[0]"): (1, 1)}),
        # The other end's refusal stays, whatever the staged policy allows.
        ([NOTHING_FROM_A], staged("b", ingress=[allow("a")]), False,
         {"end of tier default, egress: no rule matched": (1, 0)}),
        ([NOBODY_TO_B], staged("a", egress=[allow("b")]), False, {rule("egress[0]"): (1, 0), END: (1, 0)}),
        ([ONLY_C_TO_B, NOTHING_FROM_A], staged("a", egress=[allow("b")]), False,
         {rule("egress[0]"): (1, 0), END: (1, 0)}),
    ],
)  # fmt: skip
def test_what_a_staged_policy_would_do_to_a_new_flow(
    in_force: list[Object], looked_at: Object, passes: bool, would: dict[str, tuple[int, int]]
) -> None:
    node = Node(in_force, [looked_at])
    assert node.passes(packet(*A_TO_B, tcp(80))) == passes
    assert node.would == would


def test_a_flow_counts_once_and_each_time_it_is_judged_again() -> None:
    node = Node([], [staged("b", ingress=[])])
    for _ in range(3):
        assert node.passes(packet(*A_TO_B, udp(53)))
    assert node.would == {end(): (1, 1)}
    assert node.passes(packet(*A_TO_B, udp(53, 4001)))
    assert node.would == {end(): (2, 2)}
    node.apply(compile_for("node1", [policy("bridged", ingress=[])]), node.policies.staged_snapshot)
    for _ in range(3):
        assert node.passes(packet(*A_TO_B, udp(53)))
    assert node.would == {end(): (3, 3)}


def test_flows_are_not_judged_again_for_what_is_staged() -> None:
    node = Node([ONLY_C_TO_B], [staged("b", ingress=[])])
    in_force, looked_at = node.policies.snapshot, compile_for("node1", [staged("a", egress=[])])
    numbers = {node.policies.enforcement(1).number}
    for each in (None, looked_at, None):
        node.apply(in_force, each)
        numbers.add(node.policies.enforcement(1).number)
    assert len(numbers) == 1
    node.apply(compile_for("node1", [ONLY_C_TO_B]), None)
    assert node.policies.enforcement(1).number not in numbers


def test_a_flow_that_would_be_kept_counts_as_one_that_passes() -> None:
    node = Node([], [staged("b", ingress=[], established="keep")])
    looked_at = node.policies.staged_snapshot
    node.apply(node.policies.snapshot, None)
    assert node.passes(packet(*A_TO_B, udp(53)))
    node.apply(compile_for("node1", []), looked_at)
    assert node.passes(packet(*A_TO_B, udp(53)))
    assert node.would == {end(): (1, 0)}
    assert node.passes(packet(*A_TO_B, udp(53, 4001)))
    assert node.would == {end(): (2, 1)}


def test_counts_outlive_a_compilation_and_end_with_what_is_staged() -> None:
    node, world = Node([], []), world_for("node1", [staged("b", ingress=[])])
    in_force = node.policies.snapshot
    node.apply(in_force, world.snapshot())
    assert node.passes(packet(*A_TO_B, udp(53)))
    world.apply(object_key(NOTHING_FROM_A), NOTHING_FROM_A)
    node.apply(in_force, world.snapshot())
    assert node.would == {end(): (1, 1)}
    node.apply(in_force, None)
    assert node.would == {}
    assert node.passes(packet(*A_TO_B, udp(53, 4001)))
    node.apply(in_force, world.snapshot())
    assert node.would == {}


def test_what_is_not_judged_is_not_counted() -> None:
    node = Node([], [staged("a", egress=[])])
    assert node.passes(packet("a", "service", tcp(80)))
    assert node.would == {}
