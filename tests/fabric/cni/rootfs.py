"""A container's root file system out of three files of the host: `sleep` and what it is linked with. No image."""

from __future__ import annotations

import shutil
from pathlib import Path

FILES = ("/usr/bin/sleep", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6")


def make(directory: Path) -> Path:
    """Make it as `directory`/rootfs; /bin/sleep is in it."""
    root = directory / "rootfs"
    for name in ("bin", "lib64", "lib/x86_64-linux-gnu", "proc", "sys", "dev", "etc", "run", "tmp"):
        (root / name).mkdir(parents=True)
    for path in FILES:
        shutil.copy(path, root / (f"bin/{Path(path).name}" if "bin" in path else path[1:]))
    return root
