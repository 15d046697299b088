"""Keeps the data path at the newest policy: merges the sources, compiles in a thread, hands the snapshot over.

Changes that come within a few milliseconds, or while something is compiled, are compiled together; a compilation that
takes long is followed by a pause as long (0.25 s at most), so that other work gets its turn. The time from the first of
these changes to the moment at which the data path has the snapshot is measured (`latency`, R10).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeVar

from fabric.daemon.saver import Saver
from fabric.errors import DataplaneError
from fabric.metrics.latency import Latency
from fabric.model import Address, Network
from fabric.policing import last_good, objects
from fabric.policing.compiler import Compiler, Known, Outcome
from fabric.policing.documents import Given
from fabric.policing.hits import RuleInForce, Rules
from fabric.policing.source import KEPT, NOTHING, PolicySource, Refusal
from fabric.policing.staged import StagedCompiler
from fabric.policing.world import World
from fabric.policy import PolicySnapshot

if TYPE_CHECKING:
    from fabric.forward.policies import Denied

Answer = TypeVar("Answer")
log = logging.getLogger("fabric.policy")
BURST_SECONDS = 0.003
MOST_PAUSE_SECONDS = 0.25
RETRY_SECONDS = 1.0
LATENCY_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. 0.02, 0.15 and 0.5 are the targets of programming latency (R10)."""
SAVE_SECONDS = 1.0
SAVE_MANY_SECONDS = 30.0
MANY_OBJECTS = 2_000
"""From here on the memory on disk is megabytes, and in a large cluster there is always something new."""


class PolicyDataplane(Protocol):
    """What is asked of the data path."""

    def set_policy(self, snapshot: PolicySnapshot | None, staged: PolicySnapshot | None = None) -> None:
        """Judge by `snapshot` from now on; None: nothing is known, pods stay closed. `staged`: count what that would
        do. Raises DataplaneError."""

    def flows(self, cursor: int, limit: int) -> tuple[list[dict[str, object]], int | None]:
        """A page of the tracked connections, and where the next one begins, None at the end. Raises DataplaneError."""

    def denied(self) -> list[Denied]:
        """The last flows that policy has refused, a sample."""

    def rule_hits(self) -> Mapping[str, int]:
        """How many flows each rule has decided, by the rule's description."""

    def staged_hits(self) -> Mapping[str, tuple[int, int]]:
        """By the rule's description how many flows each would have decided, and how many of these the other way."""


class PolicyKeeper:
    """`first` before the workers start, then `run` and each source's `run` for ever. `changed` after anything else
    that `world` depends on has changed.

    `world` makes the inputs of the given objects and what else is known now; `state_dir` is where the last good
    objects are. `services` are the networks of Service addresses.
    """

    def __init__(
        self,
        sources: Sequence[PolicySource],
        own: str,
        world: Callable[[Mapping[str, Given]], World],
        dataplane: Callable[[], PolicyDataplane],
        state_dir: Path,
        services: Sequence[Network] = (),
    ) -> None:
        self.sources = sources
        self.services = services
        self.latency = Latency(LATENCY_BOUNDS)
        self.compilations = 0
        self.compile_seconds = 0.0
        self._world = world
        self._dataplane = dataplane
        self._remembered = last_good.load(state_dir)
        earlier = {key: given for source in sources for key, given in self._remembered.get(source.title, {}).items()}
        self.outcome = Outcome()
        self.staged = Outcome()
        self._compiler = Compiler(own, earlier)
        self._staged_compiler = StagedCompiler(own)
        self._saver = Saver(state_dir, self._render, last_good.save, in_thread=True)
        self._compiling = asyncio.Lock()
        self._wake = asyncio.Event()
        self._since: float | None = None  # the first change that is not compiled
        self._wanted = 0
        self._done = 0
        self._turned = asyncio.Event()
        self._handed: PolicySnapshot | None = None  # what the data path has
        self._unset = False  # the data path has not taken the last snapshot
        self._problem = ""
        self._rules, self._staged_rules = Rules(), Rules()
        self._known: dict[str, Mapping[str, Given]] = {}
        self._said: set[str] = set()
        self._pause = BURST_SECONDS
        for source in sources:
            source.changed = self.changed

    @property
    def number(self) -> int:
        """The number of the snapshot in force, 0 while there is none."""
        snapshot = self.outcome.snapshot
        return snapshot.number if snapshot is not None and not self._unset else 0

    def changed(self) -> None:
        """Something that policy is compiled from may be different."""
        self._wanted += 1
        if self._since is None:
            self._since = monotonic()
        self._wake.set()

    async def first(self) -> None:
        """Read all sources and compile once, if they can be had in a few seconds. Never raises."""
        await asyncio.gather(*(source.first(self._remembered.get(source.title)) for source in self.sources))
        self.changed()
        await self._turn()
        self._pause = BURST_SECONDS  # the first one compiles everything and says nothing about the next
        for source in self.sources:
            if source.content is None:
                log.warning("policy: %s: pods stay closed until it can be read whole",
                            source.problem() or f"{source.title} is not known yet")  # fmt: skip

    def tasks(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """What has to run for ever, by name."""
        sources = [(f"policy {source.title.partition(' ')[0]}", source.run) for source in self.sources]
        return [("policy", self.run), *sources]

    async def run(self) -> None:
        """Compile after changes, for ever."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._pause)
            await self._turn()

    async def settled(self, seconds: float) -> bool:
        """Wait until what has changed up to now is in force, `seconds` at most; whether it is."""
        wanted = self._wanted
        if not self._complete():
            return False
        try:
            async with asyncio.timeout(seconds):
                while self._done < wanted:
                    await self._turned.wait()
        except TimeoutError:
            return False
        return not self._unset

    async def news(self) -> None:
        """Wait until something is compiled anew."""
        await self._turned.wait()

    def rules(self) -> tuple[RuleInForce, ...]:
        """Every rule in force."""
        return self._rules.of(self.outcome.accepted)

    def staged_rules(self) -> tuple[RuleInForce, ...]:
        """Every rule of the staged policies."""
        return self._staged_rules.of(self.outcome.staged)

    def dataplane(self) -> PolicyDataplane:
        """Where the snapshots go."""
        return self._dataplane()

    async def knows(self, addresses: Sequence[Address], seconds: float) -> bool:
        """Wait until the policy of pods with these addresses is in force, `seconds` at most; whether it is."""
        try:
            async with asyncio.timeout(seconds):
                if not await self.settled(seconds):
                    return False
                while not all(self.outcome.snapshot.knows(address) for address in addresses):  # type: ignore[union-attr]
                    await self._turned.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Save what is in force. Idempotent."""
        if self.outcome.snapshot is not None:
            self._saver.now()
        await self._saver.wait()
        for source in self.sources:
            await source.close()

    def takes_for_another(self, addresses: Sequence[Address]) -> bool:
        """Whether the data path has rules for one of these addresses; asked when they cannot be those of its pod."""
        snapshot = self._handed
        return snapshot is not None and any(snapshot.knows(address) for address in addresses)

    async def ask(self, question: Callable[[Known], Answer]) -> Answer:
        """The answer to a question about what is in force, worked out in a thread beside everything else."""
        async with self._compiling:
            known = self._compiler.known()
        return await asyncio.to_thread(question, known)

    def problems(self) -> list[str]:
        """What is not as it should be, one line each."""
        found = [source.problem() for source in self.sources] + self._failures()
        for source in self.sources:
            if source.content is None:
                found.append(f"{source.title} was not read whole yet: pods are closed")
            else:
                found += [f"{place}: {text}" for place, text in source.content.problems.items()]
        return [*filter(None, found), *self._refusals()]

    def _complete(self) -> bool:
        return all(source.content is not None for source in self.sources)

    def seen(self) -> dict[str, Given]:
        """The objects that the sources have now; of two with one name the later source's counts."""
        found: dict[str, Given] = {}
        for source in self.sources:
            if source.content is not None:
                found.update(source.content.objects)
        return found

    async def _turn(self) -> None:
        self._wake.clear()
        if not self._complete():
            return
        wanted, since = self._wanted, self._since
        self._since = None
        before, staged = self.outcome.snapshot, self.staged.snapshot
        await self._compile()
        changed = self.outcome.snapshot is not before or self._unset
        if changed or self.staged.snapshot is not staged:
            self._hand_over()
        if changed:
            if since is not None and not self._unset:
                self.latency.observe(monotonic() - since)
            small = len(self.outcome.accepted) < MANY_OBJECTS
            self._saver.soon(SAVE_SECONDS if small else SAVE_MANY_SECONDS)
        self._say()
        self._tell_sources()
        self._done = wanted
        self._turned.set()
        self._turned = asyncio.Event()

    async def _compile(self) -> None:
        started, before = monotonic(), self.outcome
        self._known = {source.title: source.content.objects for source in self.sources if source.content is not None}
        world = self._world(self.seen())
        try:
            async with self._compiling:
                self.outcome, self.staged = await asyncio.to_thread(self._compile_both, world)
            if self._staged_compiler.waits:
                self._wake.set()
        except Exception as error:  # no object, however odd, may cost the node its policy
            log.exception("policy: compiling failed")
            self.outcome = replace(before, problem=f"compiling failed ({type(error).__name__})")
        if self.outcome.snapshot is not before.snapshot:
            self.compilations += 1
            self.compile_seconds = monotonic() - started
            self._pause = min(max(BURST_SECONDS, self.compile_seconds), MOST_PAUSE_SECONDS)

    def _compile_both(self, world: World) -> tuple[Outcome, Outcome]:
        """In a thread: what is in force, and that with the staged policies."""
        outcome = self._compiler.compile(world)
        return outcome, self._staged_compiler.compile(world, outcome)

    def _hand_over(self) -> None:
        try:
            self._dataplane().set_policy(self.outcome.snapshot, self.staged.snapshot)
        except DataplaneError as error:
            self._unset = True
            self._problem = f"the data path does not take the policy, the last one stays: {error}"
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self.changed)
        else:
            self._unset, self._problem = False, ""
            self._handed = self.outcome.snapshot

    def _failures(self) -> list[str]:
        """Why something else is in force than there should be, or not counted."""
        found = [self._problem]
        if self.outcome.problem:
            found.append(f"nothing new is enforced, the last policy stays: {self.outcome.problem}")
        if self.staged.problem:
            found.append(f"what the staged policies would do is not counted: {self.staged.problem}")
        return [*filter(None, found)]

    def _refusals(self) -> list[str]:
        outcome, found = self.outcome, []
        for key, reason in outcome.refused.items():
            found.append(f"{self._where(key)} is refused: {reason}: {self._instead(key)}")
        for key, lines in outcome.warnings.items():
            found += [f"{self._where(key)}: {line}" for line in lines]
        staged = self.staged.refused.items()
        found += [f"{self._where(key)} is staged and would be refused: {reason}" for key, reason in staged
                  if key in outcome.staged]  # fmt: skip
        return found

    def _instead(self, key: str) -> str:
        return KEPT if key in self.outcome.accepted else NOTHING

    def _tell_sources(self) -> None:
        """To each source what is wrong with its own; of two objects with one name the later source's was looked at."""
        outcome = self.outcome
        wrong = {key: ("; ".join(lines), "", False) for key, lines in outcome.warnings.items()}
        wrong |= {key: (reason, self._instead(key), True) for key, reason in outcome.refused.items()}
        for source in reversed(self.sources):
            known = self._known.get(source.title, {})
            own = [key for key in wrong if key in known]
            source.refused([Refusal(key, known[key], *wrong.pop(key)) for key in own])

    def _where(self, key: str) -> str:
        for source in reversed(self.sources):
            given = source.content.objects.get(key) if source.content else None
            if given is not None and given.file:
                return f"{objects.title(key)} ({given.place()})"
        return objects.title(key)

    def _say(self) -> None:
        """What is wrong now and was not before."""
        lines = [*self._failures(), *self._refusals()]
        for line in lines:
            if line not in self._said:
                log.warning("policy: %s", line)
        self._said = set(lines)

    def _render(self) -> bytes:
        """In a thread: everything that is looked at is never changed."""
        accepted = self.outcome.accepted
        return last_good.render(
            {title: {key: accepted[key] for key in known if key in accepted} for title, known in self._known.items()}
        )
