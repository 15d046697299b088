"""File descriptors that become readable when the kernel's network state may have changed, whatever the change is."""

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from routes.netlink import RTM_DELNEIGH, RTM_NEWNEIGH, SOL_NETLINK
from routes.wire import HEADER, NEIGHBOUR

SO_RCVBUFFORCE = 33
RTMGRP = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""Link, IPv4 address and route, IPv6 address and route groups (linux/rtnetlink.h)."""
RTNLGRP_NEIGH = 3
NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP = 1, 2
ENOUGH = HEADER.size + NEIGHBOUR.size
READS_AT_ONCE = 256
IN_MODIFY = 0x2

_libc = ctypes.CDLL(None, use_errno=True)


class NetlinkEvents:
    """A socket in the rtnetlink multicast groups for links, addresses and routes of both families.

    And in that for neighbours and forwarding entries, but only while `watch_neighbours` names devices, and only those
    of these devices count: on a node with many pods the neighbours of other devices change all the time.

    `receive_buffer` in bytes, as given to SO_RCVBUF (the kernel doubles it, and takes a few hundred bytes per message).
    What was asked for from netlink port `own` is no news and does not count.
    """

    def __init__(self, receive_buffer: int, own: int = 0) -> None:
        self._own = own
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.bind((0, RTMGRP))
        self._neighbours: frozenset[int] = frozenset()

    def watch_neighbours(self, indexes: frozenset[int]) -> bool:
        """From now on neighbours and forwarding entries on these interfaces count. Whether any of them is new."""
        if bool(indexes) != bool(self._neighbours):
            option = NETLINK_ADD_MEMBERSHIP if indexes else NETLINK_DROP_MEMBERSHIP
            self._socket.setsockopt(SOL_NETLINK, option, RTNLGRP_NEIGH)
        added = bool(indexes - self._neighbours)
        self._neighbours = indexes
        return added

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> tuple[int, int]:
        """Read and drop what is waiting: (messages, overruns). Bounded; the descriptor stays readable if more waits.

        Enough of each datagram is read to know which device a neighbour is on, the kernel discards the rest. ENOBUFS is
        not an end of the socket: it says once that messages were dropped since the last read.
        """
        messages = overruns = 0
        for _ in range(READS_AT_ONCE):
            try:
                messages += self._counts(self._socket.recv(ENOUGH))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                overruns += 1
        return messages, overruns

    def _counts(self, data: bytes) -> bool:
        _, kind, _, _, port = HEADER.unpack_from(data)
        if port and port == self._own:
            return False
        if kind not in (RTM_NEWNEIGH, RTM_DELNEIGH):
            return True
        _, index, _, _, _ = NEIGHBOUR.unpack_from(data, HEADER.size)
        return index in self._neighbours


class FileEvents:
    """An inotify descriptor on sysctl files: no netlink group announces a change of accept_ra.

    Sees writes through the same mount of /proc only; others are found by the regular check.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._descriptor: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot watch sysctls: {os.strerror(number)}")
        for path in paths:
            _libc.inotify_add_watch(self._descriptor, os.fsencode(path), IN_MODIFY)  # a missing file is not watched

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, 4096):
                pass
