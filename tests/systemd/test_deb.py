"""The Debian package by Debian's own tools: built, installed, upgraded, removed and purged, in a root directory that is
the host's with a layer of its own on top. How it runs: test_installed.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from deploy import deb
from tests.fabric.install.staged import host_python
from tests.systemd.package_life import live

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(host_python() != "/usr/bin/python3", reason="Debian's python3 is of another version"),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deb.build(tmp_path_factory.mktemp("dist"), "/usr/bin/python3", "gzip")


def test_what_it_says_about_itself(package: Path) -> None:
    fields = subprocess.run(["dpkg-deb", "-f", package], check=True, capture_output=True, text=True).stdout
    assert re.search(r"^Package: podfabric$", fields, re.M)
    assert re.search(r"^Depends: python3 \(>= 3\.(\d+)\), python3 \(<< 3\.\d+\), libc6 ", fields, re.M)
    listed = subprocess.run(["dpkg-deb", "-c", package], check=True, capture_output=True, text=True).stdout
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    assert not [line for line in listed.splitlines() if "setuid" in line or re.match(r".{3}[sS]", line)]


def test_its_life(package: Path, tmp_path: Path) -> None:
    live(package, tmp_path / "layer")
