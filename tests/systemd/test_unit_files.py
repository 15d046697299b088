"""The unit and its companions as systemd's own tools read them. Needs neither root nor a running systemd."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.unprivileged import ROOT

UNITS = ROOT / "systemd"
EXPOSURE = 2.0
FABRICD = "/opt/podfabric/bin/fabricd"


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists."""
    path = tmp_path / "fabricd.service"
    text = (UNITS / path.name).read_text()
    assert FABRICD in text
    path.write_text(text.replace(FABRICD, "/bin/true"))
    return path


def test_the_unit_is_understood(unit: Path) -> None:
    """Also with the drop-in of later versions, of whose keys an older systemd knows some not."""
    found = analyze("verify", str(unit))
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
    (unit.parent / "fabricd.service.d").mkdir()
    (unit.parent / "fabricd.service.d" / "254.conf").write_text((UNITS / "fabricd-254.conf").read_text())
    found = analyze("verify", str(unit))
    unknown = re.findall(r"Unknown key(?: name)? '(\w+)'", found.stdout + found.stderr)
    assert found.returncode == 0
    assert set(unknown) <= {"RestartSteps", "RestartMaxDelaySec", "FileDescriptorStorePreserve"}


def test_the_exposure_is_small(unit: Path) -> None:
    found = analyze("security", "--offline=true", f"--threshold={round(EXPOSURE * 10)}", str(unit))
    match = re.search(r"exposure level for fabricd.service: ([\d.]+)", found.stdout)
    assert match
    assert found.returncode == 0, match[0]
    assert float(match[1]) <= EXPOSURE


def test_the_one_capability_is_net_admin() -> None:
    settings = re.findall(r"^(\w*Capabilit\w*)=(.*)$", (UNITS / "fabricd.service").read_text(), re.MULTILINE)
    assert settings == [("AmbientCapabilities", "CAP_NET_ADMIN"), ("CapabilityBoundingSet", "CAP_NET_ADMIN")]


def test_user_and_directories_are_made(tmp_path: Path) -> None:
    """By systemd's own tools, in a root directory of their own. tmpfiles changes owners, so it only looks here."""
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", str(UNITS / "podfabric.sysusers")]
    subprocess.run(command, check=True, capture_output=True)
    assert re.search(r"^podfabric:x:\d+:\d+:.*:/usr/sbin/nologin$", (tmp_path / "etc" / "passwd").read_text(), re.M)
