"""Writes the state file a moment after something changed, in a thread, and only when its content differs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from fabric import state_file

log = logging.getLogger("fabric")
DELAY = 1.0


class Saver:
    """`soon` after each change, `now` at the end and then `wait`; `render` gives the file's bytes, `save` replaces the
    file in `directory` (raises OSError), `delay` seconds after the first change. With `in_thread` the thread that
    writes also renders: for content that takes its time and that nobody changes."""

    def __init__(
        self,
        directory: Path,
        render: Callable[[], bytes],
        save: Callable[[Path, bytes], None] = state_file.save,
        delay: float = DELAY,
        in_thread: bool = False,
    ) -> None:
        self._directory = directory
        self._render = render
        self._save = save
        self._delay = delay
        self._in_thread = in_thread
        self._one_at_a_time = Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._saved = b""
        self._writing: set[asyncio.Future[None]] = set()
        self._refused = ""

    def soon(self, delay: float | None = None) -> None:
        """Save in a moment; what changes until then is saved with it."""
        if self._timer is None:
            seconds = self._delay if delay is None else delay
            self._timer = asyncio.get_running_loop().call_later(seconds, self.now)

    def now(self) -> None:
        """Begin to save."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data = b"" if self._in_thread else self._render()
        if data and data == self._saved:
            return
        task = asyncio.get_running_loop().run_in_executor(None, self._write, data)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def wait(self) -> None:
        """Wait for what was begun; what was only planned is given up."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await asyncio.gather(*self._writing, return_exceptions=True)

    def _write(self, data: bytes) -> None:
        with self._one_at_a_time:
            data = data or self._render()
            if data != self._saved:
                self._saved = data
                self._replace(data)

    def _replace(self, data: bytes) -> None:
        try:
            self._save(self._directory, data)
        except OSError as error:
            self._saved = b""
            reason = error.strerror or str(error)
            if reason != self._refused:
                log.warning("--state-dir %s cannot be written: %s", self._directory, reason)
            self._refused = reason
        else:
            self._refused = ""
