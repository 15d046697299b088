"""Named tasks that are watched: one that dies is logged and started again, a crash loop ends the daemon.

Only exceptions count against the budget. The budget is per task: more than `budget` deaths within `window` seconds
and the supervisor gives up, so that a service manager starts the daemon afresh.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

log = logging.getLogger("fabric.tasks")
RESTART_DELAY = 0.1
STOP_SECONDS = 0.5


class Supervisor:
    """Holds strong references to its tasks (asyncio itself holds none)."""

    def __init__(self, budget: int = 5, window: float = 10.0) -> None:
        self._budget = budget
        self._window = window
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failed: asyncio.Future[str] | None = None

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run `run()` for as long as the supervisor lives; it is called again when it raises or returns."""
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        self._tasks[name] = asyncio.get_running_loop().create_task(self._keep(name, run), name=name)

    async def failed(self) -> str:
        """Wait until a task used up its budget; its name."""
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._failed)

    def give_up(self, what: str) -> None:
        """`what` cannot be kept alive: have the daemon end."""
        log.error("%s cannot be kept alive: giving up", what)
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(what)

    def names(self) -> dict[str, bool]:
        """Task names, and whether each is alive."""
        return {name: not task.done() for name, task in self._tasks.items()}

    async def stop(self) -> None:
        """Cancel every task, the newest first, and wait for them; one that swallows the first cancel gets more."""
        pending = list(reversed(self._tasks.values()))
        while pending:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=STOP_SECONDS)
            pending = [task for task in pending if not task.done()]
        self._tasks.clear()
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        deaths: deque[float] = deque()
        while True:
            try:
                await run()
                log.warning("task %s ended and is started again", name)
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("task %s died and is started again", name)
            deaths.append(loop.time())
            while deaths and deaths[0] < loop.time() - self._window:
                deaths.popleft()
            if len(deaths) > self._budget:
                self.give_up(f"task {name} ({len(deaths)} deaths in {self._window:g} s)")
                return
            await asyncio.sleep(RESTART_DELAY)
