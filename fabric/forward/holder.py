"""Who holds a UDP port: asked only when a bind was refused, to say what to do about it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fabric.model import Address


def port_holder(address: Address, port: int) -> str:
    """A phrase like "process 812 (flanneld)" or "the kernel VXLAN device flannel.1"; never raises."""
    inodes = _socket_inodes(address, port)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = _links(process / "fd")
            if any(f"socket:[{inode}]" in links for inode in inodes if inode):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:
            continue
    device = _kernel_vxlan(port)
    if device:
        return f"the kernel VXLAN device {device} (delete it: ip link delete {device})"
    return "a socket of the kernel or of another process"


def _links(directory: Path) -> set[str]:
    """Where a process's descriptors point; those it closes meanwhile are left out."""
    found = set()
    for fd in directory.iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(fd))
    return found


def _socket_inodes(address: Address, port: int) -> list[int]:
    table = Path("/proc/thread-self/net") / ("udp" if address.version == 4 else "udp6")
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [int(row[9]) for row in rows if int(row[1].rpartition(":")[2], 16) == port]


def _kernel_vxlan(port: int) -> str | None:
    try:
        # Not pyroute2's IPRoute: it runs an event loop of its own, and we are inside a running one.
        from routes.vxlan import vxlan_devices

        return next((device.link.name for device in vxlan_devices() if device.port == port), None)
    except Exception:
        return None
