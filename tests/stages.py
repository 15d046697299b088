"""The stages of `./dev test`: what each one runs, and the report. `fast` is all that needs neither root nor minutes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


class Stage(NamedTuple):
    """One `command`, at most `limit` seconds; `missing` gives a reason not to run it: None, or (fatal, why)."""

    name: str
    about: str
    command: Sequence[str]
    limit: int
    missing: Callable[[], tuple[bool, str] | None] = lambda: None


class Result(NamedTuple):
    stage: str
    state: str  # passed, failed, skipped
    seconds: float


def needs_root() -> tuple[bool, str] | None:
    return None if os.geteuid() == 0 else (True, "needs root: it makes network namespaces and devices")


def needs_bench() -> tuple[bool, str] | None:
    return needs_root() if (ROOT / "bench" / "__main__.py").exists() else (False, "there is no bench/__main__.py yet")


GRACE = 60  # seconds for a stage to clean up after its limit
MODULE = (sys.executable, "-m")
PYTEST = (*MODULE, "pytest", "-q", "--no-header", "--durations=15", "--durations-min=3", "-m")
PARALLEL = ("-n", "2", "--dist", "loadfile")  # a file's tests stay together: they share what is dear to make
# Workers in namespaces of their own: labs and pods of one name do not meet. Three for two cores, as they wait much.
SHARED = "root and not alone"
ISOLATED = ("--dist", "loadfile", "--tx", f"3*popen//python={sys.executable} -m tests.isolated")
# Only what may have such tests is read: that costs half a minute otherwise (`test_stages` holds it to be all).
WITH_ALONE = ("tests/scenarios", "tests/systemd")
STAGES = (
    Stage("ruff", "style and common mistakes", [str(BIN / "ruff"), "check", "--no-cache", "."], 60),
    Stage("mypy", "types, strict", [str(BIN / "mypy")], 300),
    Stage("imports", "who may import and cimport whom", [*MODULE, "tests.stages_contracts"], 60),
    Stage("unit", "tests without privilege", [*PYTEST, "not root and not slow", *PARALLEL], 300),
    Stage("long", "the same, of more than a second each", [*PYTEST, "not root and slow", *PARALLEL], 300),
    Stage("root", "tests on real devices in network namespaces", [*PYTEST, SHARED, *ISOLATED], 1500, needs_root),
    Stage("alone", "the same, of what others would disturb", [*PYTEST, "root and alone", *WITH_ALONE], 600, needs_root),
    Stage("fuzz", "malformed inputs", [*MODULE, "tests.fuzz"], 600),
    Stage("asan", "compiled modules under AddressSanitizer", [*MODULE, "tests.stages_asan"], 600),
    Stage("bench", "speed against its floors", [*MODULE, "bench", "gate"], 900, needs_bench),
)
SLOW = {"long", "root", "alone", "fuzz", "asan", "bench"}


def choose(words: Sequence[str]) -> list[Stage]:
    """Stages by name, in their own order; `fast` and `all` stand for sets, nothing means `all`.

    Raises ValueError for a word that is neither.
    """
    names = {stage.name for stage in STAGES}
    groups = {"all": names, "fast": names - SLOW} | {name: {name} for name in names}
    unknown = [word for word in words if word not in groups]
    if unknown:
        known = ", ".join(["fast", "all", *(stage.name for stage in STAGES)])
        raise ValueError(f"no such stage: {', '.join(unknown)} (there are {known})")
    chosen = set().union(*(groups[word] for word in words or ["all"]))
    return [stage for stage in STAGES if stage.name in chosen]


def run_command(stage: Stage) -> int:
    """Exit code; 124 when the limit was reached. Interrupts the command first, so that it can clean up."""
    with subprocess.Popen(stage.command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        try:
            return process.wait(stage.limit)
        except subprocess.TimeoutExpired:
            print(f"{stage.name}: longer than {stage.limit} s, stopping it", flush=True)
            process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
        return 124


def run_stage(stage: Stage) -> Result:
    """Run it with its output passed through; Ctrl-C ends everything."""
    print(f"\n== {stage.name}: {stage.about}", flush=True)
    start = time.monotonic()
    reason = stage.missing()
    state = "passed"
    if reason:
        fatal, why = reason
        print(f"{stage.name}: {why}")
        state = "failed" if fatal else "skipped"
    elif run_command(stage) != 0:
        state = "failed"
    seconds = time.monotonic() - start
    print(f"== {stage.name} {state} in {seconds:.1f} s", flush=True)
    return Result(stage.name, state, seconds)


def report(results: Sequence[Result]) -> str:
    """Table of the stages and the closing line."""
    lines = [f"  {result.stage:<8} {result.state:<8} {result.seconds:7.1f} s" for result in results]
    counts = {state: sum(result.state == state for result in results) for state in ("passed", "failed", "skipped")}
    closing = f"{counts['passed']} passed, {counts['failed']} failed"
    if counts["skipped"]:
        closing += f", {counts['skipped']} skipped"
    return "\n".join(["", "stages:", *lines, closing])
