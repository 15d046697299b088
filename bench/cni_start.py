"""How dear the start of the CNI plugin is, which every pod waits for: against the start of its interpreter alone.

A start is everything that an ADD of kind `tun` loads, by the launcher that `fabricctl cni install` writes. Counted is
the processor time of a child (user and system), the smallest of many starts, those with and without the plugin in turn:
a busy neighbour makes both dearer. The same in milliseconds is shown by `python -m bench cni`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

from fabric.cni import launcher
from fabric.lab import LabError

STARTS = 15
LIMIT = 8.0
"""Recorded: 5.5. pyroute2's messages or `logging` alone would be 2 to 3 more, a console script's `site` 3 to 6."""
LOADED = "import fabric.cni.main, fabric.cni.native, fabric.cni.kinds.tun, fabric.cni.kinds.queue"


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds of processor time: of the plugin's start, and of the bare interpreter's."""

    plugin: float
    interpreter: float

    @property
    def ratio(self) -> float:
        """The first in parts of the second."""
        return self.plugin / self.interpreter


def measure(starts: int = STARTS) -> Start:
    """Raises LabError when a start fails."""
    text = launcher.here()
    if not text:
        raise LabError(f"no launcher can start {sys.executable}: its path is too long or has a space")
    loading = [line for line in text.splitlines() if line.startswith(("import ", "gc.", "sys.path"))]
    plugin, interpreter = "\n".join([*loading, LOADED, "os._exit(0)"]), "pass"
    found = [(cpu(plugin), cpu(interpreter)) for _ in range(starts)]
    return Start(min(pair[0] for pair in found), min(pair[1] for pair in found))


def cpu(program: str) -> float:
    """Processor time of a Python that runs `program` and ends."""
    child = subprocess.Popen([sys.executable, "-IS", "-c", program], stdin=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise LabError(f"the plugin's modules cannot be loaded: exit status {child.returncode}")
    return used.ru_utime + used.ru_stime
