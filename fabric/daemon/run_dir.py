"""The run directory: one daemon per directory, held by a locked file that carries the daemon's pid."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from fabric.errors import StartError
from fabric.files import make_dir

LOCK_NAME = "fabricd.lock"
SOCKET_NAME = "fabricd.sock"


class RunDir:
    """Created with `acquire`, given back with `release`; what was created for it is removed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._shared = False  # with a predecessor or a successor, whose it is
        self._made: list[Path] = []

    @property
    def socket(self) -> Path:
        """Path of the control socket."""
        return self.path / SOCKET_NAME

    def acquire(self) -> None:
        """Take the directory. Raises StartError when another daemon has it or it cannot be made."""
        if len(os.fsencode(self.socket)) > 107:  # sun_path, unix(7)
            raise StartError(f"--run-dir {self.path} is too long for a socket: at most 107 bytes with {SOCKET_NAME}")
        try:
            self._made = make_dir(self.path, 0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path / LOCK_NAME, flags, 0o600)
        except OSError as error:
            self._undo_directories()
            raise StartError(f"--run-dir {self.path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A daemon that ended in between took the file away: then our lock is on nothing that others see.
            held = os.fstat(self._fd).st_ino == os.stat(self.path / LOCK_NAME).st_ino
        except OSError:
            held = False
        if not held:
            pid = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            self._fd = -1
            raise StartError(
                f"another fabricd (pid {pid}) runs with --run-dir {self.path}: stop it or give another directory"
            )
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    @property
    def lock(self) -> int:
        """The locked file's descriptor; -1 when it is not held."""
        return self._fd

    def take_over(self, lock: int) -> None:
        """Go on with the lock of a predecessor, who still has the directory until `own`."""
        self._fd = lock
        self._shared = True

    def own(self) -> None:
        """The predecessor is gone."""
        self._shared = False
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def leave(self) -> None:
        """A successor has the directory now: `release` takes nothing away."""
        self._shared = True

    def release(self) -> None:
        """Give the directory back. Idempotent."""
        if self._fd < 0:
            return
        if self._shared:
            os.close(self._fd)
            self._fd = -1
            return
        for name in (SOCKET_NAME, LOCK_NAME):  # the lock last, while it is still held
            with contextlib.suppress(OSError):
                os.unlink(self.path / name)
        os.close(self._fd)
        self._fd = -1
        self._undo_directories()

    def _undo_directories(self) -> None:
        for directory in reversed(self._made):
            with contextlib.suppress(OSError):  # somebody else may use it by now
                directory.rmdir()
        self._made = []
