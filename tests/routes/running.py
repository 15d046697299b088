"""A reconciler running on an event loop, and how long its tests wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from routes.pace import Pacing
from routes.watch import KernelReconciler

NO_TIMER = Pacing(check_interval=60.0)
"""The regular check is put off, so that only wake-ups can explain a repair."""
REPAIR = 0.5
"""Seconds within which a deleted object is back (reliability target R21)."""
SOON = 3.0
"""Seconds after which a thing that should happen at once is held not to happen, on however busy a machine."""
RESYNC, SLACK = 1.0, 0.5
"""Seconds of reliability target R22, and what asking `ip` six times on a busy machine may add to them."""
RUNNERS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
Runner = Callable[[Coroutine[Any, Any, None]], None]


@contextlib.asynccontextmanager
async def running(reconciler: KernelReconciler) -> AsyncIterator[KernelReconciler]:
    """`reconciler.run()` in the background; an error in it fails the test."""
    task = asyncio.create_task(reconciler.run())
    try:
        yield reconciler
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        reconciler.close()
