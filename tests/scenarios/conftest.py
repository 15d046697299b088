"""What every scenario shares: a machine without a lab before, and without a trace of one after."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from fabric.lab import state, system
from fabric.lab.lab import remove
from tests.scenarios import inside


def traces() -> list[str]:
    """Everything of a lab or a scenario that exists: namespaces, files, devices of the host, processes."""
    found = [str(path) for prefix in ("fablab-", "fabtest-sc") for path in system.NETNS_DIR.glob(prefix + "*")]
    found += [str(path) for path in state.RUN_DIR.parent.glob("fablab*")]
    shown = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    found += re.findall(r"\S*(?:fablab|flannel|node\d)\S*", shown)
    ours = re.compile(r"fabricd .*fablab|fabric\.lab\.traffic|fabricctl lab")
    return found + [words for words in inside.command_lines() if ours.search(words)]


@pytest.fixture(scope="module", autouse=True)
def _machine() -> Iterator[None]:
    remove()
    assert traces() == []
    yield
    left = traces()
    remove()
    assert left == []
