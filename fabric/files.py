"""Atomic files: what a reader sees is the old content or the new one, never a part, also after power loss."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path


def make_dir(path: Path, mode: int) -> list[Path]:
    """Create `path` and its missing parents; the directories that were made, outermost first. Raises OSError.

    `mode` goes to the last one; parents get 0755.
    """
    missing = [path, *path.parents]
    made = [item for item in reversed(missing) if not item.exists()]
    for item in made:
        item.mkdir(mode if item == path else 0o755, exist_ok=True)
    return made


def write_atomic(path: Path, data: bytes, mode: int, dir_mode: int) -> None:
    """Write `data` to `path` by a temporary file beside it, fsync, rename and fsync of the directory. Raises OSError.

    The temporary file is made exclusively and without following links, so nobody can redirect the write.
    """
    make_dir(path.parent, dir_mode)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = f".{path.name}.{os.getpid()}.tmp"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(temporary, flags, mode, dir_fd=directory)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)  # the umask must not decide
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)


def read_private(path: Path, limit: int, owner: int | None = None) -> bytes:
    """At most `limit` bytes of a file that only root and `owner` (default: we) can have written.

    Raises OSError: FileNotFoundError, EPERM for a file that others may write to or that is none, what reading raises.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        expected = os.geteuid() if owner is None else owner
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, expected) or found.st_mode & 0o022:
            raise OSError(errno.EPERM, "others may write to it")
        return file.read(limit)
