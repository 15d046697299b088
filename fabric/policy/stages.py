"""One tier for one kind of endpoint, from rules to the flat form that the judge walks. Pure.

A step is one rule with its traffic resolved; each address set has the steps that name it. For a set the steps'
traffic is flattened into intervals of the traffic key, each with the steps in force there: ascending, and cut off
behind the first that asks for no source port, since no later one can be reached.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fabric.policy.errors import PolicyError
from fabric.policy.judge import Stage
from fabric.policy.ranges import Range, subtract
from fabric.policy.rules import Action, Established, PortMatch

LAST_KEY = (1 << 24) - 1
MAX_TRAFFIC = 500_000
"""Steps times sets times traffic ranges of one stage: what a pathological policy is stopped at."""


@dataclass(frozen=True, slots=True)
class Step:
    action: Action
    number: int
    sets: tuple[int, ...]
    ranges: tuple[Range, ...]
    sources: tuple[Range, ...] | None
    established: Established = Established.RE_EVALUATE


def traffic_ranges(matches: Iterable[PortMatch], excluded: Iterable[PortMatch] = ()) -> tuple[Range, ...]:
    """Ranges of the traffic key; named ports are resolved before."""
    return tuple(subtract(map(_range, matches), map(_range, excluded)))


def _range(match: PortMatch) -> Range:
    if match.protocol is None:
        return (0, LAST_KEY)
    base = match.protocol << 16
    return base | match.low, base | match.high


def build_stage(
    steps: list[Step], default: Action, default_rule: int, default_established: Established, label: object
) -> Stage:
    """`default*`: what happens at the tier's end. Raises PolicyError where the tier is too large for one endpoint."""
    by_set: dict[int, list[tuple[int, tuple[Range, ...]]]] = {}
    size = 0
    for position, step in enumerate(steps):
        size += len(step.sets) * len(step.ranges)
        for number in step.sets:
            by_set.setdefault(number, []).append((position, step.ranges))
    if size > MAX_TRAFFIC:
        raise PolicyError("policies", f"one endpoint has {size} traffic ranges in a tier, more than {MAX_TRAFFIC}")
    conditional = {position for position, step in enumerate(steps) if step.sources is not None}
    first, keys, candidates_at, candidates = array("I", [0]), array("I"), array("I", [0]), array("I")
    for number in sorted(by_set):
        for key, offered in flatten(by_set[number], conditional):
            keys.append(key)
            candidates.extend(offered)
            candidates_at.append(len(candidates))
        first.append(len(keys))
    flat_steps, sources = _flat_steps(steps)
    arrays = (array("I", sorted(by_set)), first, keys, candidates_at, candidates, flat_steps, sources)
    return Stage(
        tuple(item.tobytes() for item in arrays), int(default), default_rule, int(default_established), label
    )


def _flat_steps(steps: list[Step]) -> tuple[array[int], array[int]]:
    flat, sources = array("I"), array("I")
    for step in steps:
        given = step.sources or ()
        flat.extend((int(step.action), step.number, len(sources) // 2, len(given), int(step.established)))
        for low, high in given:
            sources.extend((low, high))
    return flat, sources


def flatten(items: list[tuple[int, tuple[Range, ...]]], conditional: set[int]) -> list[tuple[int, tuple[int, ...]]]:
    """(first key, steps) of each interval, from key 0 on; equal neighbours are one."""
    begin: dict[int, list[int]] = {0: []}
    end: dict[int, list[int]] = {}
    for position, ranges in items:
        for low, high in ranges:
            begin.setdefault(low, []).append(position)
            end.setdefault(high + 1, []).append(position)
    active: list[int] = []
    found: list[tuple[int, tuple[int, ...]]] = []
    for key in sorted({*begin, *end} - {LAST_KEY + 1}):
        for position in end.get(key, ()):
            del active[bisect_left(active, position)]
        for position in begin.get(key, ()):
            insort(active, position)
        offered = _reachable(active, conditional)
        if not found or found[-1][1] != offered:
            found.append((key, offered))
    return found


def _reachable(active: list[int], conditional: set[int]) -> tuple[int, ...]:
    if active and active[0] not in conditional:
        return (active[0],)
    offered = []
    for position in active:
        offered.append(position)
        if position not in conditional:
            break
    return tuple(offered)


def resolve_ports(matches: Iterable[PortMatch], ports: Mapping[tuple[str, int], int]) -> list[PortMatch]:
    """The matches with names replaced by the numbers of one pod's `ports` {(name, protocol): number}."""
    found = []
    for match in matches:
        if match.name is None:
            found.append(match)
            continue
        for (name, protocol), number in ports.items():
            if name == match.name and match.protocol in (None, protocol):
                found.append(PortMatch(protocol, number, number))
    return found


