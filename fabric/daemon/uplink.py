"""Follows the interface towards the other nodes while the daemon runs: other addresses, another MTU, another interface.

A wake-up says only that something may have changed; the choice of the start is made again from the kernel's present
state, in a thread. When it comes out different the data path is bound anew, the lease published with the new addresses
and everything else computed again. While nothing fits, the last choice stays, and the choice is made again every
`RETRY_SECONDS` besides at every change: some changes, as of another interface, are announced to nobody here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from fabric.daemon.interface import External
from fabric.errors import FabricError
from routes.state import InterfaceState

log = logging.getLogger("fabric")
RETRY_SECONDS = 0.5


class UplinkFollower:
    """`run` for ever and `changed` at every event; `choose` makes the choice (in a thread, raises StartError), `move`
    goes over to another one (raises FabricError when it cannot yet)."""

    def __init__(self, current: External, choose: Callable[[], External], move: Callable[[External], None]) -> None:
        self._current = current
        self._choose = choose
        self._move = move
        self._wake = asyncio.Event()
        self._problem = ""

    def changed(self, state: InterfaceState | None) -> None:
        """The interface is another than before, or gone."""
        self._wake.set()

    def problem(self) -> str:
        """Why the present choice does not fit any more, or "" when it does."""
        return self._problem

    async def run(self) -> None:
        """Follow for ever."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if self._problem else None):
                    await self._wake.wait()
            self._wake.clear()
            try:
                found = await loop.run_in_executor(None, self._choose)
                if _facts(found) != _facts(self._current):
                    self._move(found)
                    self._current = found
                self._settle("")
            except FabricError as error:
                self._settle(str(error))

    def _settle(self, problem: str) -> None:
        if problem and problem != self._problem:
            log.error("%s: peers may not reach us; going on with %s until it fits again", problem, self._current.name)
        elif self._problem and not problem:
            log.info("interface %s fits again", self._current.name)
        self._problem = problem


def _facts(external: External) -> tuple[object, ...]:
    return external.name, external.underlay, external.public, external.mtu
