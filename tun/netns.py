"""Work in another network namespace, in a thread of its own.

A network namespace belongs to a thread (setns(2)), so a dedicated thread enters, runs what it is given and ends; it
never comes back, and the calling thread never moves. `/proc/sys/net` follows the thread; `/sys` does not (a mount).
The thread is a plain one: `concurrent.futures` loads logging, 10 ms of a program that starts for every pod.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from tun.errors import DeviceError

T = TypeVar("T")
Netns = str | os.PathLike[str] | int

NSFS_MAGIC = 0x6E736673  # include/uapi/linux/magic.h
NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h
CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14

_libc = ctypes.CDLL(None, use_errno=True)


class NetnsIdentity(NamedTuple):
    """Which namespace it is: `device` and `inode` of its file are used again after its end, `cookie` not in a boot.

    `cookie` is 0 where it could not be asked for: then only the other two can be compared (`is_same`).
    """

    device: int
    inode: int
    cookie: int

    def is_same(self, other: NetnsIdentity) -> bool:
        """Whether both are of one namespace, as far as that can be told."""
        known = self.cookie and other.cookie
        return self == other if known else self[:2] == other[:2]


class NetnsThread:
    """A thread inside a namespace, as given by `enter`."""

    def __init__(self) -> None:
        self._jobs = SimpleQueue[tuple[Callable[[], Any], SimpleQueue[tuple[Any, BaseException | None]]] | None]()
        self._thread = Thread(target=self._work, name="netns")
        self._thread.start()

    def run(self, function: Callable[[], T]) -> T:
        """Calls `function` in the namespace; its result, or its exception, comes back."""
        answer = SimpleQueue[tuple[Any, BaseException | None]]()
        self._jobs.put((function, answer))
        result, error = answer.get()
        if error is not None:
            try:
                raise error
            finally:
                error = None  # its traceback has this frame: no cycle, or what it holds would be closed late
        return result  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the thread when it has done what it was given."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, answer = job
            try:
                answer.put((function(), None))
            except BaseException as error:
                answer.put((None, error))
            del job, function, answer  # what they hold is the caller's


def open_netns(netns: Netns) -> int:
    """A new CLOEXEC fd of the network namespace at a path (`/run/netns/x`, `/proc/1/ns/net`) or behind an fd.

    Raises DeviceError when it cannot be opened or is no network namespace.
    """
    which = f"fd {netns}" if isinstance(netns, int) else os.fspath(netns)
    try:
        # O_NONBLOCK: a FIFO in the place of a namespace file must not block us.
        fd = os.dup(netns) if isinstance(netns, int) else os.open(netns, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", 0) or 0
        why = "there is no such namespace" if number == errno.ENOENT else getattr(error, "strerror", "") or str(error)
        raise DeviceError("open network namespace", which, why, "check that the pod still exists", number) from None
    why = _not_a_netns(fd)
    if why:
        os.close(fd)
        raise DeviceError("open network namespace", which, why, "give the path of a network namespace", errno.EINVAL)
    return fd


def _not_a_netns(fd: int) -> str:
    # os.statvfs has no f_type; it is the first word of struct statfs (statfs(2)).
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) != 0:
        return os.strerror(ctypes.get_errno())
    if struct.unpack_from("l", buffer)[0] != NSFS_MAGIC:
        return "it is an ordinary file, no namespace is mounted there (any more)"
    if fcntl.ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET:
        return "it is a namespace of another kind"
    return ""


@contextmanager
def enter(netns: Netns) -> Iterator[NetnsThread]:
    """A thread inside `netns` for the length of the `with` block; raises DeviceError when it cannot enter."""
    fd = open_netns(netns)
    try:
        inside = NetnsThread()
        try:
            inside.run(lambda: _set_netns(fd, str(netns)))
            yield inside
        finally:
            inside.close()
    finally:
        os.close(fd)


def _set_netns(fd: int, which: str) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        todo = "run as root (CAP_SYS_ADMIN)" if number == errno.EPERM else ""
        raise DeviceError("enter network namespace", which, os.strerror(number), todo, number)


def run_in_netns(netns: Netns, function: Callable[[], T]) -> T:
    """Calls `function()` inside the namespace and returns its result; its exceptions come through unchanged.

    What it opens there (sockets, devices) stays in that namespace and keeps it alive while open.
    """
    with enter(netns) as inside:
        return inside.run(function)


def identify(netns: Netns) -> NetnsIdentity:
    """The namespace's identity, comparable within one boot. Raises DeviceError when it cannot be opened or entered.

    Without CAP_SYS_ADMIN nothing can be entered, and the identity has no cookie.
    """
    fd = open_netns(netns)
    try:
        found = os.fstat(fd)
        try:
            cookie = run_in_netns(fd, _cookie)
        except DeviceError as error:
            if error.errno != errno.EPERM:
                raise
            cookie = 0
        return NetnsIdentity(found.st_dev, found.st_ino, cookie)
    finally:
        os.close(fd)


def _cookie() -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


def same_netns(fd: int) -> bool:
    """True when `fd` is the calling thread's own network namespace."""
    own = os.stat("/proc/thread-self/ns/net")
    other = os.fstat(fd)
    return (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino)
