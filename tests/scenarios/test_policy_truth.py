"""The truth tables of NetworkPolicy with real packets: pods of three namespaces spread over two nodes. Every cell is a
TCP connection, a UDP exchange or a raw SCTP INIT, over IPv4 and over IPv6.

By default Kubernetes' 48 cases and a choice of Cyclonus' (about 45 s); with POLICY_TRUTH=all all 230 of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from ipaddress import ip_network
from typing import Any

import pytest

from tests.policy_truth import cyclonus, e2e
from tests.policy_truth.cyclonus_tables import TABLES, passes
from tests.policy_truth.runner import PORTS as NAMED_PORTS
from tests.policy_truth.runner import World, expected
from tests.policy_truth.test_cyclonus import FULL, LEFT_OUT
from tests.scenarios.policy_ground import Ground, manifest, pod_manifest, prepared
from tests.scenarios.policy_probes import Pods

pytestmark = [pytest.mark.root, pytest.mark.slow]
AT = {address: name for name, address in e2e.ADDRESSES.items()}
PORTS_AT_LEAST = {"multi-port/protocol", "pathological", "any-port-protocol"}


def chosen(case: cyclonus.Case) -> bool:
    """What Cyclonus runs by default, without the single ports."""
    return not case.tags & LEFT_OUT.keys() and (case.group != "ports" or bool(case.tags & PORTS_AT_LEAST))


CYCLONUS = [case for case in cyclonus.CASES if os.environ.get("POLICY_TRUTH") == "all" or chosen(case)]


def show(ground: Ground, world: World) -> None:
    """Make the cluster what `world` is, and wait until both nodes judge by it."""
    for name in ground.plugged.keys() - world.pods.keys():
        ground.unplug(name)
    objects = [manifest("v1", "Namespace", name, labels=labels) for name, labels in world.namespaces.items()]
    objects += [pod_manifest(name, labels, both(name), NAMED_PORTS) for name, labels in world.pods.items()]
    ground.write([*objects, *map(both_families, world.policies.values())])
    for name in world.pods.keys() - ground.plugged.keys():
        ground.plug(name, name, both(name))
    ground.wait()


def both(name: str) -> list[str]:
    """A pod's addresses: 10.244.2.18 and 2001:db8:42:2::12, the same host of the same node."""
    return [cyclonus.ADDRESSES[name], six(cyclonus.ADDRESSES[name])]


def six(address: str) -> str:
    _, _, node, host = map(int, address.split("."))
    return f"2001:db8:42:{node}::{host:x}"


def both_families(policy: dict[str, Any]) -> dict[str, Any]:
    """The policy with each IPv4 block once more for IPv6; single pods' blocks with the addresses they have here."""
    made = deepcopy(policy)
    for side, end in (("ingress", "from"), ("egress", "to")):
        for rule in made["spec"].get(side) or []:
            if rule.get(end):
                rule[end] = [twin for peer in rule[end] for twin in twins(peer)]
    return made


def twins(peer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "ipBlock" not in peer:
        yield peer
        return
    for family in (4, 6):
        block = {"cidr": in_family(peer["ipBlock"]["cidr"], family)}
        if "except" in peer["ipBlock"]:
            block["except"] = [in_family(cut, family) for cut in peer["ipBlock"]["except"]]
        yield {"ipBlock": block}


def in_family(cidr: str, family: int) -> str:
    net = ip_network(cidr, strict=False)
    address, length = str(net.network_address), net.prefixlen
    address = cyclonus.ADDRESSES[AT[address]] if length == 32 and address in AT else address
    if family == 4:
        return f"{address}/{length}"
    if address.startswith("0."):
        return f"::/{length + 96 if length else 0}"
    return "2001:db8:42::/56" if length == 16 else f"{six(address)}/{length + 96}"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with prepared(tmp_path_factory.mktemp("policies"), Pods((80, 81), (80, 81))) as made:
        show(made, World(cyclonus.ADDRESSES, cyclonus.PODS, cyclonus.NAMESPACES))
        yield made


@pytest.mark.parametrize("case", e2e.CASES, ids=lambda case: case[0])
def test_kubernetes_case(ground: Ground, case: e2e.Case) -> None:
    """All nine pods are there, those of the table are asked."""
    play(ground, case)


def play(ground: Ground, case: e2e.Case) -> None:
    """Every step of a case, and every cell of its tables."""
    _, listed, steps = case
    names, stale = listed.split(), True
    world = World(cyclonus.ADDRESSES, cyclonus.PODS, {name: {} for name in "xyz"})
    for kind, *rest in steps:
        if kind != "expect":
            world.play(kind, *rest)
            stale = True
            continue
        if stale:
            show(ground, world)
            stale = False
        protocol, port, rows = rest
        ground.check({(a, b, protocol, port): expected(rows, a, b) or a == b for a in names for b in names})


@pytest.mark.parametrize("case", CYCLONUS, ids=lambda case: f"{case.group}: {case.name}")
def test_cyclonus_case(ground: Ground, case: cyclonus.Case) -> None:
    world = World(cyclonus.ADDRESSES, cyclonus.PODS, cyclonus.NAMESPACES)
    for (changes, probe), table in zip(case.steps, TABLES[case.group, case.name], strict=True):
        for change in changes:
            world.play(*change)
        show(ground, world)
        traffic = FULL if probe is None else [probe]
        ground.check(
            {(a, b, *cell): passes(table, a, b, *cell) for cell in traffic for a in world.pods for b in world.pods}
        )
