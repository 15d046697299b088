"""The records of a network's attachments on disk, and the lock that keeps their owners apart.

`<data dir>/<network>/<container id>@<interface>`, mode 0600 in a 0700 directory, each replaced atomically. A record is
written when the addresses are known, before anything else is made, and removed when everything is gone. A damaged one
counts as absent: what it described is found by the attachment's names.

The lock is one file. Each attachment has a byte of it, so that different containers do not wait for each other and
nothing is left behind for one that is gone; GC takes all bytes. The kernel frees a lock with its process (open file
description locks, fcntl(2)).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fabric.cni.attachment import MAX_BYTES, Attachment, Record, parse_key, parse_record
from fabric.cni.errors import IO_FAILURE, TRY_AGAIN_LATER, CniError
from fabric.cni.logs import log
from fabric.files import make_dir, read_private, write_atomic

DEFAULT_DIR = "/var/lib/cni/fabric"
LOCK_NAME = ".lock"
LATE = ".late."
"""Before the name of a record of which only the daemon's port may be left."""
LOCK_SECONDS = 30.0
_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""


class Store:
    """The records in one directory. Raises CniError (5) when it cannot be used."""

    def __init__(self, directory: Path, network: str) -> None:
        self._directory = directory
        self._network = network

    @contextlib.contextmanager
    def locked(self, attachment: Attachment | None, create: bool) -> Iterator[None]:
        """Keep others from this attachment, or from all when None.

        Without `create` a directory that is not there is left so: it holds nothing to keep anybody from, and DEL has
        to work on a full disk. Raises CniError: 11 when it takes too long.
        """
        handle = self._open_lock(create)
        try:
            if handle >= 0:
                self._wait(handle, attachment)
            yield
        finally:
            if handle >= 0:
                os.close(handle)

    @contextlib.contextmanager
    def claimed(self, attachment: Attachment, create: bool = False) -> Iterator[bool]:
        """Whether nobody else works on this attachment, and nobody will in the block; `create` as in `locked`."""
        handle = self._open_lock(create)
        try:
            yield handle >= 0 and _lock(handle, attachment)
        finally:
            if handle >= 0:
                os.close(handle)

    def load(self, attachment: Attachment) -> Record | None:
        """The record; None when there is none, or when it cannot be used, which is said on stderr."""
        return self._load(attachment, attachment.key)

    def save(self, record: Record) -> None:
        """Write the record; a postponed one of the same attachment has no meaning any more. Raises CniError (5)."""
        try:
            write_atomic(self._directory / record.attachment.key, record.emit(), 0o600, 0o700)
        except OSError as error:
            raise _failed("write", self._directory / record.attachment.key, error) from None
        self.settle(record.attachment)

    def remove(self, attachment: Attachment) -> None:
        """Forget the record, if there is one, and what a killed call left of writing it. Raises CniError (5)."""
        self._remove(attachment.key)
        remove_temporaries(self._directory, (attachment.key, LATE + attachment.key))

    def all(self) -> list[Attachment]:
        """The attachments that have a record, or of which a killed call has left a part of one."""
        found = (parse_key(self._network, _described(name)) for name in self._names())
        return list(dict.fromkeys(attachment for attachment in found if attachment is not None))

    def postpone(self, record: Record) -> None:
        """Keep the record only for what the daemon has to be told yet. Never raises: it is a note, no state."""
        try:
            write_atomic(self._directory / (LATE + record.attachment.key), record.emit(), 0o600, 0o700)
        except OSError as error:
            log(f"{record.attachment.key}: cannot note that the daemon has to be told: {error.strerror}")

    def late(self) -> list[Attachment]:
        """Those with a postponed record."""
        names = [name.removeprefix(LATE) for name in self._names() if name.startswith(LATE)]
        found = (parse_key(self._network, name) for name in names)
        return [attachment for attachment in found if attachment is not None]

    def load_late(self, attachment: Attachment) -> Record | None:
        """The postponed record, if it is still there."""
        return self._load(attachment, LATE + attachment.key)

    def settle(self, attachment: Attachment) -> None:
        """The daemon was told. Raises CniError (5)."""
        self._remove(LATE + attachment.key)

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failed("list", self._directory, error) from None

    def _load(self, attachment: Attachment, name: str) -> Record | None:
        path = self._directory / name
        try:
            data = read_file(path)
            return None if data is None else parse_record(data, attachment)
        except OSError as error:
            log(f"record {path} cannot be read, going by the names instead: {error.strerror or error}")
        except ValueError as error:
            log(f"record {path} is damaged, going by the names instead: {error}")
        return None

    def _remove(self, name: str) -> None:
        try:
            os.unlink(self._directory / name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _failed("remove", self._directory / name, error) from None

    def _open_lock(self, create: bool) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        try:
            if create:
                make_dir(self._directory, 0o700)
            return os.open(self._directory / LOCK_NAME, flags, 0o600)
        except OSError as error:
            if not create and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EROFS):
                return -1
            raise _failed("lock", self._directory, error) from None

    def _wait(self, handle: int, attachment: Attachment | None) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _lock(handle, attachment):
            if time.monotonic() > deadline:
                what = attachment.key if attachment else "a container of this network"
                raise CniError(TRY_AGAIN_LATER, f"another call works on {what} since {LOCK_SECONDS:g} s")
            time.sleep(0.002)


def _lock(handle: int, attachment: Attachment | None) -> bool:
    offset = zlib.crc32(attachment.key.encode()) if attachment else 0
    length = 1 if attachment else 0  # 0: to the end, whatever that is
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise CniError(IO_FAILURE, f"cannot lock: {error.strerror}") from None
    return True


def _described(name: str) -> str:
    """The key that a file is about; nothing useful for files of another sort."""
    if name.startswith(".") and name.endswith(".tmp"):  # of `write_atomic`: .<name>.<pid>.tmp
        return name[1:].removesuffix(".tmp").rpartition(".")[0].removeprefix(LATE)
    return name


def remove_temporaries(directory: Path, names: Iterable[str]) -> None:
    """Remove what `write_atomic` leaves of these files when it is killed. The caller keeps other writers away."""
    beginnings = tuple(f".{name}." for name in names)
    with contextlib.suppress(OSError):  # they only take space
        for name in os.listdir(directory):
            if name.startswith(beginnings) and name.endswith(".tmp"):
                os.unlink(directory / name)


def read_file(path: Path) -> bytes | None:
    """The content of a file that only root and we can have written, None when there is none. Raises OSError."""
    try:
        return read_private(path, MAX_BYTES)  # whoever else could write it could have us delete what is not ours
    except FileNotFoundError:
        return None


def _failed(verb: str, path: Path, error: OSError) -> CniError:
    return CniError(IO_FAILURE, f"cannot {verb} {path}: {error.strerror or error}")
