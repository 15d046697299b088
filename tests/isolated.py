"""Runs Python in namespaces of its own, so that several workers can run root tests side by side.

    python -m tests.isolated -u -c ...        what pytest-xdist starts a worker with (see `stages`)

Own are processes, mounts, the network, and what is on disk below the directories of `PRIVATE`: two labs of one name do
not meet, and nothing outlives the worker. The host's network stays out of reach of root tests this way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

UNSHARE = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
PRIVATE = (Path("/run"), Path("/var/lib/cni"), Path("/var/lib/fabric"))
INSIDE = "FABRIC_TEST_ISOLATED"
CGROUPS = "/sys/fs/cgroup"


def enter(arguments: list[str]) -> None:
    """Replace this process by one in new namespaces that goes on with `inside`."""
    environment = {**os.environ, INSIDE: "1"}
    os.execvpe(UNSHARE[0], [*UNSHARE, sys.executable, "-m", "tests.isolated", *arguments], environment)


def inside(arguments: list[str]) -> None:
    """Make the new namespaces habitable and become the worker."""
    for path in PRIVATE:
        path.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(path))
    Path("/run/netns").mkdir()
    Path("/run/lock").mkdir()
    # A sysfs of the new network namespace, with the control groups of the old one.
    held = "/run/cgroup"
    Path(held).mkdir()
    run("mount", "--rbind", CGROUPS, held)
    run("mount", "-t", "sysfs", "sysfs", "/sys")
    run("mount", "--move", held, CGROUPS)
    run("ip", "link", "set", "lo", "up")
    os.execv(sys.executable, [sys.executable, *arguments])


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    (inside if os.environ.pop(INSIDE, "") else enter)(sys.argv[1:])
