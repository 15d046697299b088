"""What the plugin does not load: it starts once for every pod, and these alone would take tens of milliseconds."""

from __future__ import annotations

import subprocess
import sys

DEAR = {"dataclasses", "inspect", "asyncio", "subprocess", "hashlib", "logging", "concurrent", "routes.state"}
LOADED = "import sys, fabric.cni.main, fabric.cni.native, fabric.cni.kinds.tun; print(*sys.modules)"


def test_an_add_of_a_tun_pod_loads_nothing_dear() -> None:
    program = f"import sys; sys.path = {sys.path!r}; {LOADED}"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded & DEAR == set()
    assert {name for name in loaded if name.startswith("pyroute2")} == set()
