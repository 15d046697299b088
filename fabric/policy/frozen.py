"""A policy snapshot as bytes and back, for the next run of this process, which has compiled nothing yet.

The bytes are for the very same judge only: they are the tables as it reads them, which are not looked through again.
Whoever keeps them sees to it that they are whole (`fabric.forward.last_state`).

Limits: numbers of rules are lost, as the next run gives them anew: nothing is counted for a rule or told by its name.
"""

from __future__ import annotations

import marshal
import os
from array import array

from fabric.policy import judge
from fabric.policy.judge import PolicySnapshot, Stage

NO_RULE = 0xFFFFFFFF
_FILE = os.stat(judge.__file__)
READER = _FILE.st_size, _FILE.st_mtime_ns
"""Which judge this is. Of the file as it was when this was loaded: an upgrade may put another one in its place."""
STEP_WORDS, RULE_WORD = 5, 1
"""Of a `PolicyStep` in judge.pxd."""
STEPS = 5
"""Place of the steps among a stage's arrays."""


class Nameless:
    """Of rules whose numbers are lost."""

    next = 0

    def describe(self, number: int) -> str:
        """Of no rule in particular."""
        return "a rule of the last run"


def freeze(snapshot: PolicySnapshot) -> bytes:
    """The snapshot, for `thaw`."""
    places = {id(stage): place for place, stage in enumerate(snapshot.stages)}  # most are there many times
    kept = [snapshot.stages[place] for place in places.values()]
    at = {id(stage): place for place, stage in enumerate(kept)}
    order = array("I", [at[id(stage)] for stage in snapshot.stages]).tobytes()
    stages = tuple(stage.frozen() for stage in kept)
    return marshal.dumps((READER, *snapshot.frozen(), stages, order))


def thaw(data: bytes) -> PolicySnapshot | None:
    """What was frozen; None where that was for another judge."""
    try:
        reader, number, arrays, stages, order = marshal.loads(data)
    except (ValueError, TypeError, EOFError):
        return None
    if reader != READER:
        return None
    made = [Stage(_unnumbered(parts), action, NO_RULE, choice, "last run") for parts, action, _, choice in stages]
    return PolicySnapshot(number, arrays, [made[place] for place in array("I", order)], Nameless())


def _unnumbered(parts: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """A stage's arrays with no rule's number in its steps."""
    steps = array("I", parts[STEPS])
    steps[RULE_WORD::STEP_WORDS] = array("I", [NO_RULE] * (len(steps) // STEP_WORDS))
    return (*parts[:STEPS], steps.tobytes(), *parts[STEPS + 1 :])
