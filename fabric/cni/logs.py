"""Free text for whoever reads the runtime's log: stderr, one line each. Results and errors go to stdout instead."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_muted = False


def log(line: str) -> None:
    """Write one line. A closed stderr is no reason to fail."""
    if _muted:
        return
    try:
        sys.stderr.write(f"fabric-cni: {line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Say nothing in the block: for the daemon, which has a log of its own and says there what it did."""
    global _muted
    _muted = True
    try:
        yield
    finally:
        _muted = False
