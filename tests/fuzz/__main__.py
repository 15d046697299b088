"""Millions of malformed inputs: `python -m tests.fuzz [--scale FACTOR] [--seed N] [TARGET...]`.

Each target runs in a process of its own, two at a time: a crash is seen as such and does not take the others with it.
Every target has to meet all the reasons it can give, so a generator that gets nowhere fails too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.targets import TARGETS


def run_here(name: str, seed: int, scale: float) -> int:
    """One target in this process; prints one line."""
    function, full, expected = TARGETS[name]
    count = max(1, int(full * scale))
    start = time.monotonic()
    counts = function(seed, count)
    dropped = sum(value for reason, value in counts.items() if reason != "pass")
    seconds = time.monotonic() - start
    print(f"fuzz: {name}: {count:,} cases, {dropped:,} dropped under {len(counts) - 1} reasons, {seconds:.1f} s")
    missed = expected - counts.keys()
    if missed and count >= 20_000:
        print(f"fuzz: {name}: FAILED: never met: {', '.join(sorted(missed))}")
        return 1
    return 0


def run_apart(name: str, seed: int, scale: float) -> bool:
    """One target in its own process; False when it failed or crashed."""
    command = [sys.executable, "-W", "error", "-m", "tests.fuzz", "--here", "--seed", str(seed), "--scale", str(scale)]
    code = subprocess.run([*command, name], check=False).returncode
    if code:
        what = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        print(f"fuzz: {name}: FAILED: {what}; again with: python -m tests.fuzz --here --seed {seed} {name}", flush=True)
    return code == 0


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Malformed inputs for the hot path.")
    arguments.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--scale", type=float, default=1.0, help="factor on the number of cases")
    arguments.add_argument("--here", action="store_true", help="in this process, one after another (for a debugger)")
    options = arguments.parse_args()
    if unknown := set(options.targets) - TARGETS.keys():
        arguments.error(f"no such target: {', '.join(sorted(unknown))}")
    names = options.targets or list(TARGETS)
    if options.here:
        return max(run_here(name, options.seed, options.scale) for name in names)
    with ThreadPoolExecutor(2) as pool:
        good = list(pool.map(lambda name: run_apart(name, options.seed, options.scale), names))
    total = sum(max(1, int(TARGETS[name][1] * options.scale)) for name in names)
    print(f"fuzz: {total:,} cases in all, {good.count(False)} of {len(names)} targets failed")
    return 1 if False in good else 0


if __name__ == "__main__":
    sys.exit(main())
