"""fabricd's unit under a real systemd: ready, hardened, watched, started again whatever happens."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fabric.control_client import ControlClient
from tests.scenarios.waiting import duration, wait_for
from tests.systemd.booted import Booted
from tests.systemd.conftest import WATCHDOG

pytestmark = pytest.mark.root


def restarted(booted: Booted, before: int) -> bool:
    found = booted.show("NRestarts", "ActiveState", "SubState")
    return int(found["NRestarts"]) > before and (found["ActiveState"], found["SubState"]) == ("active", "running")


def restarts(booted: Booted) -> int:
    return int(booted.show("NRestarts")["NRestarts"])


def status_of(booted: Booted) -> dict[str, str]:
    text = Path(f"/proc/{booted.main_pid()}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_it_is_ready_and_nothing_was_refused(booted: Booted) -> None:
    """`systemctl start` returned, so READY=1 came. The hardening is in the way of nothing."""
    with ControlClient(str(booted.root / "run/fabric")) as client:
        status = client.ask("status")
    assert status["ready"]
    assert status["kernel"]["problems"] == []
    assert [line for line in status["firewall"]["problems"] if "ip_forward" not in line] == []
    assert "ermission" not in booted.log()
    assert (booted.root / "run/flannel/subnet.env").read_text().startswith("FLANNEL_NETWORK=")
    assert booted.run("cat", "/proc/sys/net/ipv4/conf/flannel.1/accept_local") == "1\n"


def test_what_it_may(booted: Booted) -> None:
    found = status_of(booted)
    uid = booted.run("id", "-u", "podfabric").strip()
    assert found["Uid"].split() == [uid] * 4
    assert {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {1 << 12}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert os.sched_getscheduler(booted.main_pid()) == os.SCHED_BATCH


def test_a_process_that_hangs_is_ended_and_started_again(booted: Booted) -> None:
    """SIGSTOP: nothing moves, so nobody tells systemd that all is well."""
    before, pid = restarts(booted), booted.main_pid()
    os.kill(pid, signal.SIGSTOP)
    seconds = duration(lambda: restarted(booted, before), "the watchdog to end it and systemd to start it again", 15)
    assert seconds > WATCHDOG / 2
    assert booted.main_pid() not in (0, pid)


def test_a_running_process_is_left_alone(booted: Booted) -> None:
    """Twice the watchdog's interval without a restart: it is told."""
    before = restarts(booted)
    stamp = booted.show("WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"]
    for _ in range(4):  # every change is another ping
        last = stamp
        stamp = wait_for(lambda last=last: changed(booted, last), "the next ping")
    assert restarts(booted) == before


def changed(booted: Booted, last: str) -> str:
    now = booted.show("WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"]
    return now if now != last else ""


def test_it_never_gives_up(booted: Booted) -> None:
    """More kills in a row than systemd's own limit of five in ten seconds."""
    for _ in range(6):
        before = restarts(booted)
        os.kill(booted.main_pid(), signal.SIGKILL)
        wait_for(lambda before=before: restarted(booted, before), "the next start")
    assert booted.show("Result")["Result"] == "success"


def test_a_refused_start_is_tried_again_at_leisure(booted: Booted) -> None:
    """While its interface is away; and it comes back by itself."""
    booted.run("ip", "link", "set", "eth0", "name", "away0")
    try:
        os.kill(booted.main_pid(), signal.SIGKILL)
        wait_for(lambda: booted.log().count("fabricd does not start") >= 2, "two refused starts", 20)
        said = booted.log().count("fabricd does not start")
    finally:
        booted.run("ip", "link", "set", "away0", "name", "eth0")
    wait_for(lambda: booted.show("SubState")["SubState"] == "running", "it to be ready", 20)
    assert booted.log().count("fabricd does not start") <= said + 2


def test_stop_leaves_the_subnet_and_takes_the_run_directory(booted: Booted) -> None:
    env = booted.root / "run/flannel/subnet.env"
    before = env.read_text()
    booted.systemctl("stop", "fabricd.service")
    assert booted.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert env.read_text() == before
    assert not (booted.root / "run/fabric").exists()
    booted.systemctl("start", "fabricd.service")
    assert env.read_text() == before
