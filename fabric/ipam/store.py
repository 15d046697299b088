"""The directory with a network's reservations, in the reference plugin's format and under its lock.

`<dataDir>/<network>/` holds, beside the names that this file does not know and never touches:

- `<IP>`: a reservation; the name is the address as Go and Python print it (RFC 5952, colons included), the content
  `<containerID>\\r\\n<ifname>` without a final line end, mode 0600. The name alone reserves; the content says for whom.
- `last_reserved_ip.<index of the range set>`: the address handed out last, as text. Only a hint.
- `lock`: flock(LOCK_EX) on it guards everything. The kernel drops it with its holder, so it is never stale.
- `boot_id`: ours, `boot_id=<id>`, see `fabric.ipam.allocator.reconcile`. The reference plugin compares contents with
  container IDs, in which `=` cannot occur.

A record is written and synced under no name (O_TMPFILE) and then linked to its address, so no crash and no full disk
leaves a part of one. link() fails for a name that exists: an address cannot be given twice even to somebody who ignores
the lock. All access goes through the directory's descriptor and follows no links. Names are not synced: what power loss
takes away belonged to a pod that the reboot ended.
Source: containernetworking/plugins `plugins/ipam/host-local/backend/disk/`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from fabric.ipam.config import Place
from fabric.ipam.errors import INVALID_CONFIG, IO_FAILURE, TRY_AGAIN_LATER, IPAMError
from fabric.ipam.ranges import Address, parse_address

LAST = "last_reserved_ip."
LOCK = "lock"
BOOT = "boot_id"
MAX_RECORD = 256 << 10  # an environment variable has at most 128 KiB, so no record is longer
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Store:
    """One network's directory, from `opened` or `existing`. Changes are made under `locked`. Methods raise OSError."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._content = b""
        self._prepared: list[int] = []

    def prepare(self, content: bytes, count: int) -> None:
        """Write `count` records that have no name yet, and wait until they are on disk.

        This is the slow part of a reservation, so it comes before the lock. Where it fails, `reserve` does without.
        """
        self._content = content
        for _ in range(count):
            with contextlib.suppress(OSError):  # no O_TMPFILE here, no space: `reserve` meets it again and reports it
                handle = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
                try:
                    _write(handle, content)
                except OSError:
                    os.close(handle)
                    raise
                self._prepared.append(handle)

    def close(self) -> None:
        """Drop what was prepared and not used."""
        for handle in self._prepared:
            os.close(handle)
        self._prepared.clear()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, waiting for it as long as it takes."""
        handle = os.open(LOCK, _READ | os.O_CREAT, 0o600, dir_fd=self._directory)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "is not a regular file", LOCK)
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def addresses(self) -> Iterator[Address]:
        """Every reserved address, in the order of the names, as the reference plugin walks them."""
        for name in sorted(os.listdir(self._directory)):
            address = _address(name)
            if address is not None:
                yield address

    def is_empty(self) -> bool:
        """Whether nothing is reserved. Also known where a full disk has no room for the lock's file."""
        return next(self.addresses(), None) is None

    def records(self) -> dict[Address, bytes]:
        """Every reserved address with its content, white space behind it removed; unreadable ones are empty."""
        return {address: self._read(str(address)) for address in self.addresses()}

    def reserve(self, address: Address) -> bool:
        """Give a prepared record this name. False when the address is taken."""
        name = str(address)
        if self._prepared:
            source = f"/proc/self/fd/{self._prepared[-1]}"
            try:
                os.link(source, name, dst_dir_fd=self._directory, follow_symlinks=True)
            except FileExistsError:
                return False
            except OSError:
                pass  # no /proc, or no such links here: the plain way, which reports the true reason
            else:
                os.close(self._prepared.pop())
                return True
        try:
            self._create(name, self._content)
        except FileExistsError:
            return False
        return True

    def free(self, address: Address) -> None:
        """Remove a reservation; one that is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(str(address), dir_fd=self._directory)

    def last_reserved(self, index: int) -> Address | None:
        """The address that range set `index` gave last, None when that is not known."""
        return _address(self._read(f"{LAST}{index}").decode("ascii", "replace"))

    def set_last_reserved(self, index: int, address: Address) -> None:
        """Remember it. Not synced: after power loss the search begins anywhere, which is harmless."""
        self._replace(f"{LAST}{index}", str(address).encode())

    def boot_id(self) -> str:
        """The boot for which the reservations were last reconciled, empty when that is not known."""
        text = self._read(BOOT).decode("ascii", "replace")
        return text.removeprefix(f"{BOOT}=") if text.startswith(f"{BOOT}=") else ""

    def set_boot_id(self, boot_id: str) -> None:
        """Remember it. Not synced: power loss changes the boot anyway."""
        self._replace(BOOT, f"{BOOT}={boot_id}".encode())

    def _read(self, name: str) -> bytes:
        try:
            handle = os.open(name, _READ, dir_fd=self._directory)
        except OSError:  # gone, a link, a socket, or a broken disk: no content that could be believed
            return b""
        try:
            return os.read(handle, MAX_RECORD).rstrip()
        except OSError:  # a directory, a pipe with nothing in it
            return b""
        finally:
            os.close(handle)

    def _create(self, name: str, content: bytes) -> None:
        handle = os.open(name, _CREATE, 0o600, dir_fd=self._directory)
        try:
            _write(handle, content)
        except BaseException:
            os.unlink(name, dir_fd=self._directory)
            raise
        finally:
            os.close(handle)

    def _replace(self, name: str, content: bytes) -> None:
        temporary = f".{name}.tmp"  # one name: what a crash left there goes with the next replacement
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=self._directory)
        handle = os.open(temporary, _CREATE, 0o600, dir_fd=self._directory)
        try:
            _write(handle, content, sync=False)
            os.rename(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            os.unlink(temporary, dir_fd=self._directory)
            raise
        finally:
            os.close(handle)


@contextlib.contextmanager
def opened(place: Place) -> Iterator[Store]:
    """The store at `place`, its directory made when missing.

    Raises IPAMError for every OSError inside: 11 when space is missing, 7 for a directory that others may write to or
    that is a link, 5 for the rest.
    """
    with _errors(place):
        _make(_path(place))
        with _directory(place) as store:
            yield store


@contextlib.contextmanager
def existing(place: Place) -> Iterator[Store | None]:
    """The store at `place`, None when there is none. Raises IPAMError as `opened` does."""
    with _errors(place):
        if os.path.lexists(_path(place)):
            with _directory(place) as store:
                yield store
        else:
            yield None


@contextlib.contextmanager
def _directory(place: Place) -> Iterator[Store]:
    with contextlib.ExitStack() as stack:
        parent = os.open(place.data_dir, _DIRECTORY)
        stack.callback(os.close, parent)
        directory = os.open(place.network, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        stack.callback(os.close, directory)
        _check_private(parent, place.data_dir)
        _check_private(directory, _path(place))
        store = Store(directory)
        stack.callback(store.close)
        yield store


@contextlib.contextmanager
def _errors(place: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path, reason = _path(place), error.strerror or str(error)
        if isinstance(error.filename, str) and error.filename != place.network:
            path = os.path.join(path, error.filename)  # names of files are relative to the directory
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "make space or inodes free on this file system"
            raise IPAMError(TRY_AGAIN_LATER, f"{path}: {reason}", advice) from None
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise IPAMError(INVALID_CONFIG, f"{path}: a link or a file is in the way: {reason}") from None
        raise IPAMError(IO_FAILURE, f"{path}: {reason}") from None


def _path(place: Place) -> str:
    return f"{place.data_dir}/{place.network}"


def _check_private(handle: int, name: str) -> None:
    found = os.fstat(handle)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise IPAMError(
            INVALID_CONFIG,
            f"{name} may be written to by others: addresses cannot be kept there",
            "chown it to root and chmod it to 0755",
        )


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass
    except FileNotFoundError:
        _make(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o755)


def _address(name: str) -> Address | None:
    """The address that `name` is the canonical text of; other files are not reservations."""
    if not name[:1].isalnum() and name[:1] != ":":
        return None
    try:
        address = parse_address(name)
    except ValueError:
        return None
    return address if str(address) == name else None


def _write(handle: int, content: bytes, sync: bool = True) -> None:
    while content:
        content = content[os.write(handle, content) :]
    if sync:
        os.fdatasync(handle)
