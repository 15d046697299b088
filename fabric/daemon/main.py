"""`fabricd`: goes on forwarding where the last run left it, and only then loads the rest (`fabric.daemon.service`).

Nothing heavy is imported here: after a crash packets wait for every millisecond of it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from fabric.daemon import systemd


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon with `argv` (default: the process's); the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    store = systemd.FdStore()
    early = None
    if store.holds_any() and systemd.HANDOVER not in os.environ:  # a successor finds its predecessor forwarding
        gc.disable()  # what is imported stays
        from fabric.forward.resumed import resume

        early = resume(store, words)
    from fabric.daemon.service import run

    gc.enable()
    return run(words, store, early)


if __name__ == "__main__":
    sys.exit(main())
