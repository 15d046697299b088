"""Whatever ends the lab, and at whatever moment: nothing of it is left on the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fabric.lab import state, system
from tests.scenarios import inside
from tests.scenarios.conftest import traces
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

FABRICCTL = str(Path(sys.executable).with_name("fabricctl"))
INTERRUPTED = 130


def machine() -> dict[str, Any]:
    """What the machine has, as far as a lab could change it."""
    words = (("link",), ("addr",), ("-4", "route", "show", "table", "all"), ("-6", "route", "show", "table", "all"))
    found: dict[str, Any] = {" ".join(word): host_json(*word) for word in (*words, ("rule",))}
    places = (Path("/run"), Path("/var/lib/fabric"), Path("/run/flannel"), Path("/var/lib/cni"), Path("/etc/netns"))
    found["files"] = sorted(str(path) for place in places if place.exists() for path in place.glob("*"))
    found["namespaces"] = sorted(path.name for path in inside.NETNS_DIR.glob("*"))
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found["mounts"] = sorted(line for line in mounts if "netns" in line and line.split()[1] != str(inside.NETNS_DIR))
    found["sysctls"] = [Path(f"/proc/sys/net/{name}").read_text() for name in SYSCTLS]
    return found


SYSCTLS = ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/all/rp_filter")


def host_json(*words: str) -> list[dict[str, Any]]:
    """`ip WORDS` in the host's namespace, without what runs down by itself."""
    shown = subprocess.run(["ip", "-j", *words], capture_output=True, text=True, check=True).stdout

    def steady(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: steady(item) for name, item in value.items() if name not in RUNNING_DOWN}
        return [steady(item) for item in value] if isinstance(value, list) else value

    found: list[dict[str, Any]] = steady(json.loads(shown or "[]"))
    return found


RUNNING_DOWN = ("valid_life_time", "preferred_life_time", "expires")


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    inside.NETNS_DIR.mkdir(exist_ok=True)
    before = machine()
    yield
    wait_for(lambda: traces() == [], f"no trace, not {traces()}", 5)
    assert machine() == before


def ctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([FABRICCTL, "lab", *words], capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A lab command with a process group of its own, as a shell starts one on a terminal."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([FABRICCTL, "lab", *words], text=True, process_group=0, **pipes)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def any_process(word: str) -> bool:
    return any(word in command for command in inside.command_lines())


PHASES: dict[str, Callable[[], bool]] = {
    "its directory": lambda: state.RUN_DIR.exists(),
    "its first namespace": lambda: bool(system.namespaces()),
    "its underlay": lambda: "fablab-node2" in system.namespaces(),
    "its first daemon": lambda: any_process("bin/fabricd "),
    "a node that is ready": lambda: (state.RUN_DIR / "node1" / "subnet.env").exists(),
    "a ping": lambda: any_process("fabric.lab.traffic ping"),
    "a measurement": lambda: any_process("tcp-send"),
    "the small packets": lambda: any_process("udp-blast"),
    "the capture": lambda: any_process("tcpdump"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_during_a_run(phase: str) -> None:
    seconds = "0.2" if phase in ("the small packets", "the capture") else "30"
    with running("run", "--seconds", seconds) as process:
        wait_for(lambda: PHASES[phase]() or process.poll() is not None, phase, 30)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED, errors
    assert errors.strip() == "interrupted"


@pytest.mark.parametrize("phase", ["its first daemon", "a measurement"])
def test_an_impatient_user(phase: str) -> None:
    """Ctrl-C again and again while the lab cleans up."""
    with running("run", "--seconds", "30") as process:
        wait_for(lambda: PHASES[phase]() or process.poll() is not None, phase, 30)

        def again() -> bool:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            return process.poll() is not None

        wait_for(again, "the end", 30)
        assert process.returncode in (INTERRUPTED, -signal.SIGINT)
        errors = process.communicate()[1]
    assert "Error" not in errors, errors


def test_ctrl_c_during_up_leaves_no_lab() -> None:
    with running("up", "--nodes", "5", "--pods", "2") as process:
        wait_for(PHASES["its first daemon"], "the first daemon")
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED
    assert ctl("status").stderr.strip() == "Error: no lab is up; `fabricctl lab up` makes one"


@pytest.mark.parametrize("options", [(), ("--pod-kind", "mixed", "--peer", "kernel", "--ipv6")], ids=["plain", "all"])
def test_down_after_up(options: tuple[str, ...]) -> None:
    done = ctl("up", *options)
    assert done.returncode == 0, done.stderr
    assert traces() != []
    assert ctl("ping").returncode == 0
    assert ctl("down").stdout.strip() == "everything removed"


@pytest.mark.parametrize("phase", ["its underlay", "its first daemon", "a node that is ready", "a measurement"])
def test_down_after_the_lab_was_killed(phase: str) -> None:
    with running("run", "--seconds", "30", "--peer", "kernel", "--nodes", "3") as process:
        wait_for(PHASES[phase], phase, 30)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    assert traces() != [], "a killed lab cannot clean up"
    done = ctl("down")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "everything removed"


def test_down_after_everything_was_killed() -> None:
    """The lab's process and all daemons at once; the devices went with the daemons, the rest goes with `down`."""
    with running("run", "--seconds", "30") as process:
        wait_for(PHASES["a measurement"], "a measurement", 30)
        daemons = system.processes_in(system.namespaces())
        for pid in (process.pid, *daemons):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=30)
    assert ctl("down").stdout.strip() == "everything removed"


def test_down_while_it_is_being_killed() -> None:
    """A `down` that was killed half way is finished by the next."""
    assert ctl("up", "--nodes", "4").returncode == 0
    with running("down") as process:
        wait_for(lambda: len(system.namespaces()) < 13 or process.poll() is not None, "the first namespace to go")
        process.kill()
        process.communicate()
    assert ctl("down").returncode == 0


def test_a_run_after_a_crash_cleans_up_first() -> None:
    with running("run", "--seconds", "30") as process:
        wait_for(PHASES["a node that is ready"], "a node", 30)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    done = ctl("run", "--seconds", "0.2", "--pods", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("everything removed")
