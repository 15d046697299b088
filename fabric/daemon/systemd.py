"""The service manager: told that we are ready and alive, and keeper of descriptors over restarts.

sd_notify(3): datagrams to the socket in NOTIFY_SOCKET. The file-descriptor store (systemd.service(5),
FileDescriptorStoreMax=) takes descriptors with `FDSTORE=1` and hands them to the next process from number 3 on, as
LISTEN_FDS with LISTEN_FDNAMES, in no particular order (sd_listen_fds(3)). FDPOLL=0: without it systemd drops a
descriptor on which it sees an error, which a socket has after any ICMP message.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterable
from time import sleep

HANDOVER = "FABRIC_HANDOVER"
"""Set for a process that was started to take over (`fabric.daemon.handover`)."""
HOLD_BACK = 1.0
FIRST = 3  # SD_LISTEN_FDS_START
MOST = 128
"""Descriptors in one message; the kernel takes 253 (SCM_MAX_FD)."""


def watchdog_seconds() -> float:
    """The service manager's watchdog interval, infinite without one (sd_watchdog_enabled(3))."""
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() and int(text) else float("inf")


def hold_back() -> None:
    """A refused start, when a service manager starts us again at once: let a second pass, or it would do nothing else.
    """
    if os.environ.get("NOTIFY_SOCKET"):
        sleep(HOLD_BACK)


def notify(state: str, fds: Iterable[int] = ()) -> None:
    """Send `state` (`READY=1`, `STOPPING=1`) when a service manager listens; never raises."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)  # Python's send_fds ignores an address
        socket.send_fds(sender, [state.encode()], list(fds))


def barrier(seconds: float = 5.0) -> None:
    """Wait until everything sent so far was read: before the end of a process that sent it (sd_notify_barrier(3))."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        notify("BARRIER=1", [writer])
    finally:
        os.close(writer)
    with open(reader, "rb", buffering=0) as file:
        select.select([file], [], [], seconds)


class FdStore:
    """The descriptors this process was started with, and those to be kept for the next (`fabric.forward.kept.Kept`).

    Reads the environment once and takes its variables away: children are not meant.
    """

    def __init__(self) -> None:
        self._held: dict[str, list[int]] = {}
        self._kept: dict[str, list[int]] = {}
        pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        if pid != str(os.getpid()) or not count.isdecimal() or len(names) != int(count):
            return
        for fd, name in enumerate(names, FIRST):
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)
            self._held.setdefault(name, []).append(fd)

    def take(self, name: str) -> list[int]:
        """The descriptors of this name, now the caller's; they stay in the store."""
        return self._held.pop(name, [])

    def put(self, name: str, fd: int) -> None:
        """One more to `take`, from elsewhere."""
        self._held.setdefault(name, []).append(fd)

    def kept(self) -> list[tuple[str, int]]:
        """What is kept and still open in this process, with its name."""
        return [(name, fd) for name, fds in self._kept.items() for fd in fds]

    def holds(self, name: str) -> bool:
        """Whether there is something to `take`."""
        return name in self._held

    def holds_any(self) -> bool:
        """Whether anything is there to `take`."""
        return bool(self._held)

    def keep(self, name: str, fds: Iterable[int]) -> None:
        """Have these kept, besides what is kept under this name. One that is kept already is kept once."""
        wanted = list(fds)
        self._kept[name] = wanted
        for start in range(0, len(wanted), MOST):
            notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", wanted[start : start + MOST])

    def drop(self, name: str) -> None:
        """Keep nothing under this name any more."""
        self._kept.pop(name, None)
        for fd in self._held.pop(name, []):
            os.close(fd)
        notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def drop_rest(self) -> None:
        """Close and keep no more what nobody has taken."""
        for name in list(self._held):
            self.drop(name)

    def lasts(self) -> bool:
        """Whether there is a service manager."""
        return bool(os.environ.get("NOTIFY_SOCKET"))

    def settle(self) -> None:
        """Until the service manager has done what it was told."""
        barrier()
