"""Learn of changes in one directory without polling it: three calls of inotify(7) through ctypes."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

IN_MODIFY = 0x002
IN_ATTRIB = 0x004
IN_CLOSE_WRITE = 0x008
IN_MOVED = 0x0C0
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_IGNORED = 0x8000
IN_Q_OVERFLOW = 0x4000
IN_ONLYDIR = 0x01000000
_SELF = IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
EVERYTHING = IN_MODIFY | IN_ATTRIB | IN_MOVED | IN_CREATE | IN_DELETE | _SELF
FINISHED = IN_CLOSE_WRITE | IN_MOVED | IN_DELETE | _SELF
"""No events while a file is being written: one when its writer has closed it, or given it its name."""
_EVENT = struct.Struct("iIII")


class DirectoryWatch:
    """Changes of the files in one directory; `fileno` becomes readable when there are some.

    The watch follows the directory, not its path: when the directory itself goes, `read` answers with an empty name
    and `watch` has to be called again. `mask` says what counts as a change. Raises OSError where inotify is missing or
    its limits are used up.
    """

    def __init__(self, mask: int = EVERYTHING) -> None:
        self._mask = mask
        libc = ctypes.CDLL(None, use_errno=True)
        self._add = libc.inotify_add_watch
        self._add.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._fd

    def watch(self, directory: Path) -> None:
        """Start with `directory` (again)."""
        if self._add(self._fd, os.fsencode(directory), self._mask) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))

    def read(self) -> set[str]:
        """Names that changed since the last call; the empty name stands for the directory or lost events."""
        names: set[str] = set()
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return names
            offset = 0
            while offset + _EVENT.size <= len(data):
                _, mask, _, length = _EVENT.unpack_from(data, offset)
                offset += _EVENT.size
                name = data[offset : offset + length].rstrip(b"\0")
                offset += length
                lost = mask & (IN_IGNORED | IN_Q_OVERFLOW | IN_DELETE_SELF | IN_MOVE_SELF)
                names.add("" if lost else os.fsdecode(name))

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)
