"""What the plugin does not load: it starts once for every pod, and these alone would take tens of milliseconds."""

from __future__ import annotations

import subprocess
import sys

DEAR = ("dataclasses", "inspect", "asyncio", "subprocess", "hashlib", "pyroute2", "routes.state")
LOADED = "import sys, fabric.cni.main, fabric.cni.native, fabric.cni.kinds.tun; print(*sys.modules)"


def test_an_add_of_a_tun_pod_loads_nothing_dear() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & set(DEAR) == set()
