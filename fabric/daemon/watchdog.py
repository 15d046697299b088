"""Watches the data path's threads, and tells the service manager that we are alive while everything gets ahead.

`WATCHDOG=1` is sent only when, since the last look, every worker thread went through its loop (it is woken for that, so
an idle one does, too), and the next look at the kernel is not overdue. That the event loop and its timers run is shown
by the message itself. Whatever hangs, the service manager then ends the process and starts it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from fabric.daemon import systemd
from fabric.daemon.parts import Dataplane

log = logging.getLogger("fabric")
SECONDS = 2.0
PER_INTERVAL = 4
"""Looks in one interval of the service manager: a processor that is taken for a moment costs no restart."""
LATE_SECONDS = 30.0
"""A look at the kernel that is this late hangs. Others may hold the kernel's locks for seconds."""


class Watchdog:
    """`run` for ever. `late` gives the seconds by which the next look at the kernel is late."""

    def __init__(self, dataplane: Dataplane, late: Callable[[], float], give_up: Callable[[str], None]) -> None:
        self._dataplane = dataplane
        self._late = late
        self._give_up = give_up
        self._interval = systemd.watchdog_seconds()
        self._beats: Mapping[str, int] = {}
        self._said = ""

    async def run(self) -> None:
        """Look for ever; at the same pace the data path looks at the underlay's offloads."""
        while True:
            await asyncio.sleep(min(SECONDS, self._interval / PER_INTERVAL))
            self._dataplane.follow_offloads()
            self.look()

    def look(self) -> None:
        """One look. Threads never end by themselves; one that did takes the daemon with it, to be started afresh."""
        threads = self._dataplane.status().get("threads")
        dead = [name for name, alive in threads.items() if not alive] if isinstance(threads, dict) else []
        if dead:
            self._give_up(f"data-path thread {dead[0]}")
        elif self._interval != float("inf"):
            stuck = self._stuck()
            if not stuck:
                systemd.notify("WATCHDOG=1")
            elif stuck != self._said:
                log.error("%s: not telling the service manager that all is well", stuck)
            self._said = stuck

    def _stuck(self) -> str:
        """What does not get ahead, in a few words; empty when everything does."""
        before, self._beats = self._beats, dict(self._dataplane.beats())
        for name, beat in self._beats.items():
            if before.get(name) == beat:
                return f"data-path thread {name} hangs"
        return "the check of the kernel's devices and routes hangs" if self._late() > LATE_SECONDS else ""
