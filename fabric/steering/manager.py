"""Keeps pods' traffic led to the daemon for as long as it runs: wake-ups, pacing, and the thread that does the work.

Level-triggered, as `routes.watch`: an event says only that something may have changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from concurrent.futures import ThreadPoolExecutor

from fabric.errors import StartError
from fabric.steering.look import Looker, Result
from fabric.steering.rules import Steering
from routes.pace import Pacer
from routes.wakeups import NetlinkEvents
from routes.watch import OWN_PORTS, listen_again

log = logging.getLogger("fabric.steering")
RECEIVE_BUFFER = 256 << 10


class SteeringManager:
    """`want` says what should be, `run` keeps it so; what is there stays when it ends."""

    def __init__(self) -> None:
        self._looker = Looker()
        self._wanted: Steering | None = None
        self._pacer = Pacer()
        self._wake = asyncio.Event()
        self._busy = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="steering")
        self._problems: tuple[str, ...] = ()

    def want(self, wanted: Steering | None) -> None:
        """From now on it should be like that; None: as if we had never been here."""
        if wanted != self._wanted:
            self._wanted = wanted
            self.look_soon()

    def look_soon(self) -> None:
        """Something may have changed."""
        self._pacer.event(asyncio.get_running_loop().time())
        self._wake.set()

    async def first(self) -> None:
        """The first look, at once. Raises StartError when what is wanted cannot be had."""
        result = await self._look()
        if self._wanted is not None and result.problems:
            raise StartError(
                f"policy for pods in bridges cannot be enforced: {result.problems[0]}; "
                "--policy-bridges=off leaves their traffic to the host's kernel, past policy"
            )

    async def run(self) -> None:
        """Look and repair until cancelled; without anything wanted there is nothing to do."""
        loop = asyncio.get_running_loop()
        events = NetlinkEvents(RECEIVE_BUFFER, OWN_PORTS | random.getrandbits(30))
        loop.add_reader(events.fileno(), self._readable, events)
        self.look_soon()  # what changed since the first look was not listened after
        try:
            while True:
                self._wake.clear()
                now = loop.time()
                due = self._pacer.due(now)
                if due > now:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(due - now):
                            await self._wake.wait()
                elif self._wanted is not None:
                    await self._look()
                else:
                    self._pacer.started(now)
        finally:
            loop.remove_reader(events.fileno())
            events.close()

    def problems(self) -> tuple[str, ...]:
        """What is not as it should be, one line each."""
        return self._problems

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _look(self) -> Result:
        async with self._busy:
            loop = asyncio.get_running_loop()
            self._pacer.started(loop.time())
            result = await loop.run_in_executor(self._thread, guarded, self._looker, self._wanted)
            self._pacer.finished(loop.time(), failed=bool(result.problems))
            for change in result.changes:
                log.debug("steering: %s", change)
            for problem in result.problems:
                if problem not in self._problems:  # said once, not at every look
                    log.error("%s", problem)
            self._problems = result.problems
            return result

    def _readable(self, events: NetlinkEvents) -> None:
        now = asyncio.get_running_loop().time()
        messages, overruns = events.drain()
        if messages:
            self._pacer.event(now)
        if overruns:
            self._pacer.overrun(now)
            listen_again(events.fileno(), self._readable, events)
        self._wake.set()


def guarded(looker: Looker, wanted: Steering | None) -> Result:
    """A look; an unforeseen failure in it is a value as well, because traffic goes on without the manager."""
    try:
        return looker.look(wanted)
    except Exception as error:
        return Result(problems=(f"steering failed unexpectedly: {type(error).__name__}: {error}",))
