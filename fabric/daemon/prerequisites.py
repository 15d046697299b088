"""What has to hold before anything on the host is touched: Linux capabilities, /dev/net/tun, a free device name."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from fabric.errors import StartError

CAP_NET_ADMIN = 12  # linux/capability.h
TUN = Path("/dev/net/tun")


def check_privilege(status: Path = Path("/proc/self/status")) -> None:
    """Raises StartError unless we hold CAP_NET_ADMIN, which devices and routes need."""
    for line in status.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and int(value, 16) >> CAP_NET_ADMIN & 1:
            return
    raise StartError("no privilege to make network devices (CAP_NET_ADMIN): run as root or grant the capability")


def check_tun(path: Path = TUN) -> None:
    """Raises StartError unless the TUN driver can be opened."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise StartError(f"{path} does not exist: load the module (modprobe tun) or pass the device in") from None
    except OSError as error:
        raise StartError(f"{path} cannot be opened: {error.strerror}; load the module or grant access to it") from None


def check_device_name(name: str) -> None:
    """Raises StartError for a name that the kernel refuses or that is taken in this network namespace."""
    encoded = os.fsencode(name)
    if not 0 < len(encoded) <= 15 or name in (".", "..") or any(byte in b"/:%" or byte <= 32 for byte in encoded):
        raise StartError(f"device name {name!r} is not valid (1 to 15 bytes, no space or slash): give --device")
    try:
        socket.if_nametoindex(name)
    except OSError:
        return
    raise StartError(f"device {name} exists already: remove it (ip link delete {name}) or give another --device")
