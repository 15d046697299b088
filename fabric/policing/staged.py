"""What the staged policies would do: compiled beside what is in force while there are any, for the data path to count.

It is a second compiler with everything that is in force and the staged policies besides, so a change costs what it
costs for what is in force once more, in the same thread and after it. While nothing is staged there is none.

Limits: memory and time of the compiler twice over. What cannot be compiled together with what is in force is not
counted at all; what is in force is not touched by that.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from fabric.policing.compiler import Compiler, Outcome
from fabric.policing.world import World

log = logging.getLogger("fabric.policy")


class StagedCompiler:
    """Of the node named `own`. After each compilation of what is in force `compile` is given what came of it.

    The first snapshot takes as long as compiling everything does. It comes with the next call after the first staged
    policy, which is wanted soon (`waits`): nothing that is in force has to wait for it, at a start least of all.
    """

    def __init__(self, own: str) -> None:
        self.own = own
        self.waits = False
        self._compiler: Compiler | None = None

    def compile(self, world: World, outcome: Outcome) -> Outcome:
        """Its snapshot is that of both together, None while nothing is staged and where it cannot be had."""
        if not outcome.staged:
            self.waits, self._compiler = False, None
            return Outcome()
        if self._compiler is None and not self.waits:
            self.waits = True
            return Outcome()
        self.waits = False
        self._compiler = self._compiler or Compiler(self.own, as_enforced=True)
        try:
            found = self._compiler.compile(replace(world, objects={**outcome.accepted, **outcome.staged}))
        except Exception as error:  # what is only looked at may not cost the node its policy
            log.exception("policy: compiling the staged policies failed")
            self._compiler = None
            return Outcome(problem=f"compiling failed ({type(error).__name__})")
        # Of two that are not of one moment the differences are not the staged policies'.
        return replace(found, snapshot=None) if found.problem or outcome.problem else found
