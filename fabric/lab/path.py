"""Which pods are worth measuring against each other."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.lab.lab import Lab
from fabric.lab.plan import Node, Pod


@dataclass(frozen=True, slots=True)
class Path:
    """A direction between two pods of different nodes."""

    source: Pod
    target: Pod
    label: str
    kind: str


def path(source: Node, target: Node, number: int = 0) -> Path:
    """From the `number`th pod of a node to that of another."""
    a, b = source.pods[number], target.pods[number]
    kinds = f"{source.kind} to {target.kind}"
    pods = a.kind if a.kind == b.kind else f"{a.kind} to {b.kind}"
    return Path(a, b, f"{a.name} -> {b.name}", f"{kinds}, {pods}")


def paths(lab: Lab) -> list[Path]:
    """One path per kind of neighbourhood: fabric to fabric, fabric to kernel and back, kernel to kernel."""
    found: dict[tuple[str, str], Path] = {}
    for source in lab.nodes:
        for target in lab.nodes:
            if source is not target and source.pods and target.pods:
                found.setdefault((source.kind, target.kind), path(source, target))
    return list(found.values())
