"""The lab's run directory: one lab per machine, known to later commands, gone without a trace after `down`.

`/run/fablab` holds `state.json`, the shared store and one directory per node (log, subnet.env, the daemon's own run
and state directories). The directory itself carries the lock (flock), so that no lock file stays behind: whoever
gets the lock checks that the directory was not replaced meanwhile.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fabric.lab import system
from fabric.lab.plan import LabError

RUN_DIR = Path("/run/fablab")
STATE = "state.json"
PATIENCE = 3.0
"""Seconds to wait for the lock: what a killed lab had begun holds it until it has ended."""


class Lock:
    """Exclusive right to change the lab, held while the object is open.

    The kernel drops it when we die and the last command of `system.batch` that we started has ended.
    """

    def __init__(self, run_dir: Path = RUN_DIR) -> None:
        """Raises LabError when another process is changing or running the lab."""
        self.run_dir = run_dir
        self._fd = -1
        deadline = time.monotonic() + PATIENCE
        try:
            while self._fd < 0:
                with system.shielded():  # an interrupt takes effect when we know what to take back
                    self._acquire()
                if self._fd < 0:
                    if time.monotonic() > deadline:
                        raise LabError("another lab command is running on this machine; wait for it or stop it")
                    time.sleep(0.02)
            system.inherited.add(self._fd)
        except BaseException:
            if self._fd >= 0:
                self.close()
            raise

    def _acquire(self) -> None:
        """Take the directory, if nobody has it and nobody removed it meanwhile."""
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._fd = os.open(self.run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with suppress(BlockingIOError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_current():
                return
        os.close(self._fd)
        self._fd = -1

    def _is_current(self) -> bool:
        with suppress(FileNotFoundError):
            return os.fstat(self._fd).st_ino == self.run_dir.stat().st_ino
        return False

    def close(self) -> None:
        """Give the right up; an empty run directory goes too."""
        system.inherited.discard(self._fd)
        with suppress(OSError):
            self.run_dir.rmdir()
        os.close(self._fd)

    def clear(self) -> None:
        """Remove everything in the run directory, keeping the lock."""
        for entry in self.run_dir.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def read_state(run_dir: Path = RUN_DIR) -> dict[str, Any] | None:
    """What `write_state` wrote, None when there is no lab or its description is incomplete."""
    try:
        state = json.loads((run_dir / STATE).read_text())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def write_state(state: dict[str, Any], run_dir: Path = RUN_DIR) -> None:
    """Describe the lab for later commands, atomically."""
    temporary = run_dir / (STATE + ".new")
    temporary.write_text(json.dumps(state, indent=1))
    temporary.rename(run_dir / STATE)
