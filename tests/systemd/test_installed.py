"""What `fabricctl install` makes, as it is, under a real systemd: the unit, the environment, user and directories."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabric.cli.main import main
from fabric.control_client import ControlClient
from tests.fabric.install.staged import host_python
from tests.scenarios.waiting import wait_for
from tests.systemd.booted import Booted

pytestmark = [pytest.mark.root, pytest.mark.skipif(not host_python(), reason="no Python that every user can run")]


def test_an_installation_runs(netns: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["install", f"--root={tmp_path}", f"--python={host_python()}"])
    assert done.exit_code == 0, done.output
    booted = Booted(netns, "--iface=eth0", installed=tmp_path)
    try:
        booted.systemctl("start", "fabricd.service")
        pid = booted.main_pid()
        assert b"/opt/podfabric/bin/python" in Path(f"/proc/{pid}/cmdline").read_bytes()
        found = booted.run("/opt/podfabric/bin/fabricctl", "status", "--json")
        assert '"ready": true' in found
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: booted.main_pid() not in (0, pid), "the next start")
        booted.systemctl("stop", "fabricd.service")
        booted.systemctl("start", "fabricd.service")
        with ControlClient(str(booted.root / "run/fabric")) as client:
            assert client.ask("status")["ready"]
        text = Path(f"/proc/{booted.main_pid()}/status").read_text()
        assert "CapEff:\t0000000000001000" in text
        assert (booted.root / "run/flannel").stat().st_uid == (booted.root / "var/lib/fabric").stat().st_uid != 0
    finally:
        print(booted.console(), booted.log())
        booted.close()
