"""sd_notify(3): tell the service manager that we are ready and alive, by datagrams to the socket in NOTIFY_SOCKET."""

from __future__ import annotations

import contextlib
import os
import socket
from time import sleep

HOLD_BACK = 1.0


def watchdog_seconds() -> float:
    """The service manager's watchdog interval, infinite without one (sd_watchdog_enabled(3))."""
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() and int(text) else float("inf")


def hold_back() -> None:
    """A refused start, when a service manager starts us again at once: let a second pass, or it would do nothing else.
    """
    if os.environ.get("NOTIFY_SOCKET"):
        sleep(HOLD_BACK)


def notify(state: str) -> None:
    """Send `state` (`READY=1`, `STOPPING=1`) when a service manager listens; never raises."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), address)
