"""Runs verbs in child processes that wait to be traced first: `test_crash` kills them at a chosen system call.

Protocol on stdin and stdout, a line each: a request (JSON); the child's pid; the child's exit code, negative for a
signal. A child begins when `getppid` gives TRACED, which the tracer makes it give, so that the tracer counts system
calls from there on. The interpreter is started once; a fork is all that a crash point costs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from fabric.ipam import allocator
from tests.fabric.ipam.test_allocator import NEXT_BOOT, conf, pod

TRACED = 4242424  # no process has this number: pids end at 4194304
SECONDS = 60
SETS = ("10.244.1.0/28", "2001:db8::/124")


def serve(place: Path, verb: str) -> None:
    """One verb in the situation that `test_crash.prepare` made."""
    loaded = conf(place, *SETS)
    if verb == "allocate":
        allocator.allocate(loaded, pod(3))
    elif verb == "release":
        allocator.release(loaded.place, pod(2))
    elif verb == "gc":
        allocator.gc(loaded, [pod(1)])
    elif verb == "reconcile":
        allocator.reconcile(loaded, [pod(1)], NEXT_BOOT)


def run(request: Any) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        while os.getppid() != TRACED:
            pass
        serve(Path(request["place"]), request["verb"])
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    while line := sys.stdin.readline():
        print(run(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
