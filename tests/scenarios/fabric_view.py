"""What the daemons of a lab say: drops by reason, deltas of counters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fabric.lab import Lab
from tests.scenarios import inside

# Counted on every network: a pod's kernel sends router solicitations and multicast listener reports by itself.
HARMLESS = frozenset({"drop_not_unicast"})


def counters(lab: Lab, node: str) -> dict[str, int]:
    """All counters of a daemon."""
    found: dict[str, int] = lab.control(node, "counters")
    return found


def drops(lab: Lab, node: str) -> dict[str, int]:
    """Drop reasons of a daemon that are not zero, without the prefix."""
    return {
        name.removeprefix("drop_"): value
        for name, value in counters(lab, node).items()
        if name.startswith("drop_") and value and name not in HARMLESS
    }


def more(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What grew, and by how much."""
    return {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}


@contextmanager
def counting_drops(lab: Lab, node: str) -> Iterator[dict[str, int]]:
    """An empty dict that holds, after the block, the drops that happened in it, by reason."""
    found: dict[str, int] = {}
    before = drops(lab, node)
    yield found
    found |= more(before, drops(lab, node))


def all_drops(lab: Lab) -> dict[str, dict[str, int]]:
    """Drops of every daemon that has any."""
    found = {node.name: drops(lab, node.name) for node in lab.fabric_nodes}
    return {name: reasons for name, reasons in found.items() if reasons}


def all_checksum_errors(lab: Lab) -> dict[str, dict[str, int]]:
    """Checksum errors of every node and pod that has any."""
    names = [node.name for node in lab.nodes] + [pod.name for pod in lab.pods]
    found = {name: inside.checksum_errors(lab.netns(name)) for name in names}
    return {name: errors for name, errors in found.items() if errors}
