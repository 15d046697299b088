"""Settings below `/proc/sys/net`, wherever the process may write them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from routes.state import Sysctl
from routes.work import Work

ROOT = Path("/proc/sys")
OF_HOST = Path("/host/proc/sys")
"""Where a container whose own `/proc/sys` is read-only gets the host's `net` (docs/kubernetes; Cilium does the same).
Whose settings they are is up to the network namespace of the thread, not to the mount."""


@functools.cache
def root() -> Path:
    """The directory to read and write them in."""
    return OF_HOST if _is_read_only(ROOT / "net") and not _is_read_only(OF_HOST / "net") else ROOT


def reconcile_sysctl(work: Work, sysctl: Sysctl) -> None:
    """Write it where it differs."""
    path = root() / sysctl.path
    try:
        before = path.read_text().strip()
        if before != sysctl.value:
            path.write_text(sysctl.value)
            work.changes.append(f"sysctl {sysctl.path} set to {sysctl.value} (was {before})")
    except FileNotFoundError as error:
        if not sysctl.optional:
            work.fail(f"sysctl {sysctl.path}", error)
    except OSError as error:
        work.fail(f"sysctl {sysctl.path}", error)


def _is_read_only(path: Path) -> bool:
    """Whether nothing there can be written, also because there is nothing."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return True
