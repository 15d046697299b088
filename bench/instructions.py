"""Instructions per iteration of a hot function, by valgrind's callgrind: a count instead of a time.

The same case runs twice in a child process, with N and 3 N iterations; the difference is 2 N iterations without the
interpreter's start. `python -m bench.instructions NAME N` is the child.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from bench import data
from bench.cases import CASES, Case
from fabric.lab.plan import LabError

BY_NAME = {case.name: case for case in CASES}


def collected(case: Case, n: int) -> int:
    """All instructions of a child that does `n` iterations."""
    argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={os.devnull}", sys.executable]
    argv += ["-m", "bench.instructions", case.name, str(n)]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"}, timeout=300)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        words = done.stderr.strip().splitlines()
        raise LabError(f"valgrind failed on {case.name}: {words[-1] if words else done.returncode}")
    return int(found[1])


def run(part: str = "") -> Iterator[tuple[str, float]]:
    """Name and instructions per iteration of the cases whose name contains `part`."""
    if shutil.which("valgrind") is None:
        raise LabError("valgrind is not installed; apt-get install valgrind")
    for case in CASES:
        if part in case.name:
            n = data.FRAMES if case.reference == "core" else 20
            yield case.name, (collected(case, 3 * n) - collected(case, n)) / (2 * n)


if __name__ == "__main__":
    BY_NAME[sys.argv[1]].make()(int(sys.argv[2]))
