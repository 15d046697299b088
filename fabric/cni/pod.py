"""The container's network namespace: found, checked, and worked in.

The plugin's own thread never moves; what has to happen inside runs in a thread that enters (`tun.netns`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from fabric.cni.errors import INVALID_NETNS, UNKNOWN_CONTAINER, CniError, shown
from fabric.cni.logs import log
from fabric.cni.protocol import Request
from tun.errors import DeviceError
from tun.netns import open_netns, run_in_netns, same_netns

T = TypeVar("T")


class Pod:
    """An open network namespace. `path` is CNI_NETNS."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    def run(self, function: Callable[[], T]) -> T:
        """Call `function` inside; sockets it opens stay in there. Raises CniError (8) when it cannot be entered."""
        try:
            return run_in_netns(self.fd, function)
        except DeviceError as error:
            raise CniError(INVALID_NETNS, f"CNI_NETNS {shown(self.path)}", str(error)) from None


@contextmanager
def opened(request: Request) -> Iterator[Pod]:
    """The namespace of the request.

    Raises CniError: 3 when there is none, 8 when the path leads to something else, or to the plugin's own namespace:
    what would be made and removed there are the host's interfaces.
    """
    fd = _open(request.netns)
    try:
        if not request.own_netns and same_netns(fd):
            text = "plugin's netns and netns from CNI_NETNS should not be the same"
            raise CniError(INVALID_NETNS, text, shown(request.netns))
        yield Pod(request.netns, fd)
    finally:
        os.close(fd)


@contextmanager
def opened_if_there(request: Request) -> Iterator[Pod | None]:
    """The same for DEL: None without CNI_NETNS and when the namespace is gone, also where a file is left of it.

    Raises CniError (8) for the plugin's own namespace.
    """
    with ExitStack() as stack:
        inside = None
        if request.netns:
            try:
                inside = stack.enter_context(opened(request))
            except _GoneError as error:
                if error.code != UNKNOWN_CONTAINER:  # usually it went with its container, and that is all
                    log(f"{error}: taken as gone")
        yield inside


class _GoneError(CniError):
    """The path leads to no network namespace."""


def _open(path: str) -> int:
    try:
        return open_netns(path)
    except DeviceError as error:
        code = UNKNOWN_CONTAINER if error.errno in (errno.ENOENT, errno.ENOTDIR) else INVALID_NETNS
        raise _GoneError(code, f"failed to open netns {shown(path)}", error.why) from None
