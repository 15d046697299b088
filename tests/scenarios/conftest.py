"""What every scenario shares: a machine without a lab before, and without a trace of one after."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.lab import state, system
from fabric.lab.lab import remove


def traces() -> list[str]:
    """Everything of a lab or a scenario that exists: namespaces, files, devices of the host, processes."""
    found = [str(path) for prefix in ("fablab-", "fabtest-sc") for path in system.NETNS_DIR.glob(prefix + "*")]
    found += [str(path) for path in state.RUN_DIR.parent.glob("fablab*")]
    shown = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    found += re.findall(r"\S*(?:fablab|flannel|node\d)\S*", shown)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if re.search(r"fabricd .*fablab|fabric\.lab\.traffic|fabricctl lab", words):
                found.append(words)
    return found


@pytest.fixture(scope="module", autouse=True)
def _machine() -> Iterator[None]:
    remove()
    assert traces() == []
    yield
    left = traces()
    remove()
    assert left == []
