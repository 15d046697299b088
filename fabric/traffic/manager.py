"""Keeps the firewall as it should be for as long as it runs: wake-ups, pacing, and the thread that does the work.

Everything is level-triggered, as in `routes.watch`: a wake-up says only that something may have changed, and what is
done about it follows from a complete look and from the wanted state. A look is taken 20 ms after the kernel announces a
transaction of anybody (looks are 200 ms apart), and every `resync` seconds in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from fabric.errors import StartError, TrafficError
from fabric.traffic.events import GenerationEvents
from fabric.traffic.reconcile import Reconciler, Result
from fabric.traffic.rules import TrafficState
from fabric.traffic.table import NAME
from routes.pace import Pacer, Pacing
from routes.watch import listen_again

log = logging.getLogger("fabric.traffic")
RESYNC_SECONDS = 5.0
RECEIVE_BUFFER = 64 << 10
"""Bytes for unread announcements: room for dozens of transactions."""
MOST_GENERATIONS = 1000
SAY_AGAIN_SECONDS = 60.0
"""Between two lines about somebody who changes our table: he may do so several times a second."""
EARLY_SECONDS = 0.1
"""By so much a look may be early and still count as the regular one: times are compared after being added up."""
NOTHING = TrafficState()


class TrafficManager:
    """`want` says what should be, `run` keeps it so. Nothing is touched before the first `want`.

    `resync` is `--iptables-resync` in seconds, at least 1. The rules stay when the manager ends; `remove` takes them
    away. Counters: `looks`, `changes` (transactions of ours), `restored` (our table had been changed), `errors`
    (looks with failures), `events` (transactions of anybody), `overruns`.
    """

    def __init__(self, resync: float = RESYNC_SECONDS, *, receive_buffer: int = RECEIVE_BUFFER) -> None:
        self._resync = max(1.0, resync)
        self._receive_buffer = receive_buffer
        self._pacer = Pacer(Pacing(check_interval=self._resync))
        self._reconciler = Reconciler()
        self._state: TrafficState | None = None
        self._wanted_now = False
        self._wake = asyncio.Event()
        self._busy = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="traffic")
        self._full_at: float | None = None
        self._events: GenerationEvents | None = None
        self._problems: tuple[str, ...] = ()
        self._changers: dict[int, str] = {}
        self._quiet_until = 0.0
        self._counters = dict.fromkeys(("looks", "changes", "restored", "errors", "events", "overruns"), 0)

    def want(self, state: TrafficState) -> None:
        """From now on the firewall should be like `state`, which is complete."""
        if state != self._state:
            self._state = state
            self._wanted_now = True
            self._wake.set()

    async def first(self) -> None:
        """The first look, at once. Raises StartError when masquerading is wanted and cannot be had.

        Anything else that fails is a problem like later ones: without forward rules a node works in most cases.
        """
        result = await self._look(full=True)
        if self._state is not None and self._state.ip_masq and result.refused:
            raise StartError(f"{result.refused}; --ip-masq=false starts without")

    async def run(self) -> None:
        """Look and repair until cancelled. Errors are problems, told once each; only a bug raises."""
        loop = asyncio.get_running_loop()
        self._pacer.event(loop.time())  # a look before this one was not listened after
        with self._listening():
            while True:
                await self._until_due()
                is_time = self._full_at is None or loop.time() - self._full_at >= self._resync - EARLY_SECONDS
                await self._look(full=is_time or self._wanted_now)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        try:
            events = GenerationEvents(self._receive_buffer)
        except OSError as error:  # a kernel without nf_tables; where rules are wanted the looks say so
            log.debug("no announcements of firewall changes: %s", error.strerror)
            yield
            return
        self._events = events
        loop.add_reader(events.fileno(), self._drain)
        try:
            yield
        finally:
            self._events = None
            loop.remove_reader(events.fileno())
            events.close()

    async def remove(self) -> None:
        """Take away everything of ours, for good; `run` has to have ended. Raises TrafficError."""
        self._state = NOTHING
        result = await self._look(full=True)
        if result.failed:
            raise TrafficError(f"our firewall rules are not all removed: {result.problems[0]}")

    def close(self) -> None:
        """End the thread; the rules stay. Idempotent."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def problems(self) -> tuple[str, ...]:
        """What is not as it should be, one line each."""
        return self._problems

    def counters(self) -> dict[str, int]:
        """The counters, by the names above."""
        return dict(self._counters)

    async def _look(self, *, full: bool) -> Result:
        async with self._busy:
            state = self._state
            if state is None:
                return Result()
            loop = asyncio.get_running_loop()
            now = loop.time()
            self._wanted_now = False
            self._pacer.started(now)
            if full:
                self._full_at = now
            self._counters["looks"] += 1
            result = await loop.run_in_executor(self._thread, guarded, self._reconciler, state, now, full)
            self._pacer.finished(loop.time(), failed=result.failed)
            self._tell(result)
            return result

    def _tell(self, result: Result) -> None:
        self._counters["changes"] += len(result.changes)
        self._counters["restored"] += result.restored
        self._counters["errors"] += result.failed
        for change in result.changes:
            log.debug("firewall: %s", change)
        if result.restored:
            self._tell_restored(*result.span)
        self._changers = {number: name for number, name in self._changers.items() if number > result.span[1]}
        for problem in result.problems:
            if problem not in self._problems:  # said once, not at every look
                log.error("%s", problem)
        self._problems = result.problems

    def _tell_restored(self, since: int, until: int) -> None:
        self._drain()  # what preceded our own transaction is waiting there for certain
        names = sorted({name for number, name in self._changers.items() if since < number <= until})
        now = asyncio.get_running_loop().time()
        is_news = now >= self._quiet_until
        self._quiet_until = now + SAY_AGAIN_SECONDS if is_news else self._quiet_until
        level = logging.WARNING if is_news else logging.DEBUG
        log.log(level, "table %s was changed by %s: restored", NAME, " or ".join(names) or "somebody")

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._wanted_now:
            now = loop.time()
            due = self._pacer.due(now) if self._state is not None else math.inf  # nothing to do yet
            if due <= now:
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due - now if due < math.inf else None):
                    await self._wake.wait()

    def _drain(self) -> None:
        """Take note of what was announced."""
        if self._events is None:
            return
        now = asyncio.get_running_loop().time()
        generations, overruns = self._events.drain()
        self._counters["events"] += len(generations)
        self._counters["overruns"] += overruns
        if len(self._changers) < MOST_GENERATIONS:
            self._changers |= generations
        if generations:
            self._pacer.event(now)
        if overruns:
            self._pacer.overrun(now)
            listen_again(self._events.fileno(), self._drain)
        self._wake.set()


def guarded(reconciler: Reconciler, state: TrafficState, now: float, full: bool) -> Result:
    """A look; an unforeseen failure in it is a value as well, because traffic goes on without the manager."""
    try:
        return reconciler.look(state, now, full=full)
    except Exception as error:
        problem = f"firewall: looking at it failed unexpectedly: {type(error).__name__}: {error}"
        return Result(problems=(problem,), failed=True, refused=problem)
