"""Refused packets for those who ask (`fabricctl capture`): a window of the last ones, shared by all who look.

Asking turns the taking down on; it ends by itself `SECONDS` after the last question, so a client that dies costs
nothing. The workers' rings are emptied at every question.
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from fabric.daemon.parts import Dataplane
from fabric.model import RefusedPacket

SECONDS = 5.0
WINDOW = 4096
MOST = 512
"""Packets in one answer."""


class DropWatch:
    """Packets are numbered from the daemon's start."""

    def __init__(self, dataplane: Callable[[], Dataplane]) -> None:
        self._dataplane = dataplane
        self._window: deque[RefusedPacket] = deque(maxlen=WINDOW)
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def read(self, since: int | None) -> dict[str, Any]:
        """`drops` after number `since` (None: only those from now on), `next` to ask with, `lost` ones in between."""
        self._keep_on()
        found, lost = self._dataplane().recorded_drops()
        self._window += found
        self._count += len(found)
        if since is None:
            return {"drops": [], "next": self._count, "lost": 0, "unrecorded": lost}
        first = self._count - len(self._window)
        start = min(max(since, first), self._count)
        chosen = list(islice(self._window, start - first, start - first + MOST))
        return {
            "drops": [described(packet) for packet in chosen],
            "next": start + len(chosen),
            "lost": max(0, start - since),
            "unrecorded": lost,
        }

    def close(self) -> None:
        """No longer. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._dataplane().record_drops(False)
            self._window.clear()

    def _keep_on(self) -> None:
        if self._timer is None:
            self._dataplane().recorded_drops()  # what was left from before is old
            self._dataplane().record_drops(True)
        else:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(SECONDS, self.close)


def described(packet: RefusedPacket) -> dict[str, Any]:
    """For JSON: `data` in base64."""
    return {
        "time": packet.time,
        "reason": packet.reason,
        "length": packet.length,
        "data": base64.b64encode(packet.data).decode(),
        "port": packet.port,
        "ethernet": packet.ethernet,
        "source": str(packet.source or ""),
        "encapsulation": packet.encapsulation or "",
    }
