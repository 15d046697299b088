"""What pods notice when the unit's process is killed, restarted, or stopped and started: nothing that a pause does not.

The daemon may not enter pods (no CAP_SYS_ADMIN): it gets their queues back from systemd's store of descriptors, and
after a stop, when the store is empty, from the step of the unit that root does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fabric.control_client import DaemonUnavailableError
from tests.fabric.daemon.nodes import ip
from tests.scenarios import inside
from tests.scenarios.waiting import wait_for
from tests.systemd.booted import Booted
from tests.systemd.cluster import Pod, add_pod, client

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def pods(booted: Booted) -> Iterator[tuple[Pod, Pod]]:
    """Two pods on the node, made as the plugin makes them."""
    made: list[Pod] = []
    try:
        with client(booted) as daemon:
            subnet = daemon.ask("status")["subnets"][0].rpartition(".")[0]
        for number in (8, 9):
            pod = Pod(f"fabtest-sp{os.getpid()}-{number}", f"{subnet}.{number}")
            made.append(pod)
            add_pod(booted, pod)
        yield made[0], made[1]
    finally:
        for pod in made:
            subprocess.run(["ip", "netns", "delete", pod.netns], check=False)


def connected(one: Pod, other: Pod) -> tuple[socket.socket, socket.socket]:
    with inside.listen(other.netns, other.address) as listener:
        near = inside.connect(one.netns, other.address, listener.getsockname()[1])
        far, _ = listener.accept()
    near.settimeout(15)
    far.settimeout(15)
    return near, far


def kill(booted: Booted) -> None:
    before = booted.main_pid()
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: booted.main_pid() not in (0, before) and running(booted), "the next start", 30)


def thread_states(pid: int) -> set[str]:
    """Of all threads of a process, the letters of proc(5)."""
    files = Path(f"/proc/{pid}/task").glob("*/stat")
    return {file.read_text().rpartition(")")[2].split()[0] for file in files}


def running(booted: Booted) -> bool:
    return booted.show("SubState")["SubState"] == "running"


def restart(booted: Booted) -> None:
    booted.systemctl("restart", "fabricd.service")


def hand_over(booted: Booted) -> None:
    before = booted.main_pid()
    booted.systemctl("reload", "fabricd.service")
    wait_for(lambda: booted.main_pid() not in (0, before) and answers(booted), "the successor", 30)


def answers(booted: Booted) -> bool:
    with suppress(DaemonUnavailableError), client(booted) as daemon:
        return bool(daemon.ask("status")["ready"])
    return False


def stop_and_start(booted: Booted) -> None:
    booted.systemctl("stop", "fabricd.service")
    booted.systemctl("start", "fabricd.service")


@pytest.mark.parametrize("how", [kill, restart, hand_over, stop_and_start])
def test_connections_go_on(booted: Booted, pods: tuple[Pod, Pod], how: object) -> None:
    near, far = connected(*pods)
    with near, far:
        near.sendall(b"before")
        assert far.recv(100) == b"before"
        assert callable(how)
        said = booted.log().count("connections of an earlier run go on")
        how(booted)
        near.sendall(b"after")
        assert far.recv(100) == b"after"
        known = booted.log().count("connections of an earlier run go on") - said
        assert known == (how is not stop_and_start), "the table of flows is the same"
    with client(booted) as daemon:
        assert [item["problem"] for item in daemon.ask("endpoint.list")] == ["", ""]
        assert daemon.ask("status")["kernel"]["problems"] == []


@pytest.mark.parametrize("how", [kill, restart])
def test_what_is_sent_meanwhile_arrives(booted: Booted, pods: tuple[Pod, Pod], how: object) -> None:
    """It waits in the pod's queue and in the underlay's socket, which outlive the process; the node port, too."""
    one, other = pods
    link = json.loads(booted.run("ip", "-j", "link", "show", "flannel.1"))[0]["ifindex"]
    with inside.open_udp(other.netns, other.address) as sink, inside.open_udp(one.netns, one.address) as out:
        os.kill(booted.main_pid(), signal.SIGSTOP)
        wait_for(lambda: thread_states(booted.main_pid()) == {"T"}, "every thread to stand: none has read a packet")
        for number in range(300):
            out.sendto(number.to_bytes(2, "big"), sink.getsockname())
        assert callable(how)
        if how is restart:
            os.kill(booted.main_pid(), signal.SIGCONT)
        how(booted)
        assert [int.from_bytes(sink.recv(10), "big") for _ in range(300)] == list(range(300))
    assert json.loads(booted.run("ip", "-j", "link", "show", "flannel.1"))[0]["ifindex"] == link


def test_a_successor_that_does_not_start_changes_nothing(booted: Booted, pods: tuple[Pod, Pod]) -> None:
    """The predecessor goes on; the next one that can takes over, and is what systemd watches from then on."""
    before, starts = booted.main_pid(), booted.show("NRestarts")
    (booted.root / "run/flannel").chmod(0o555)
    booted.systemctl("reload", "fabricd.service")
    wait_for(lambda: "the successor does not take over" in booted.log(), "the predecessor to go on", 20)
    (booted.root / "run/flannel").chmod(0o755)
    near, far = connected(*pods)
    with near, far:
        near.sendall(b"x")
        assert far.recv(1) == b"x"
    assert booted.main_pid() == before
    hand_over(booted)
    for path in ("18471/readyz", "18472/metrics"):
        code = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{path}').status)"
        assert booted.run("/usr/bin/python3", "-c", code) == "200\n", "the endpoints are the successor's"
    assert booted.show("NRestarts") == starts, "systemd has started nothing"
    kill(booted)
    with client(booted) as daemon:
        assert [item["problem"] for item in daemon.ask("endpoint.list")] == ["", ""]


def test_a_pod_that_went_meanwhile_is_dropped(booted: Booted, pods: tuple[Pod, Pod]) -> None:
    """Its queue is in the store, but its device is gone; another of the same name starts anew."""
    booted.systemctl("stop", "fabricd.service")
    ip("netns", "delete", pods[1].netns)
    booted.systemctl("start", "fabricd.service")
    with client(booted) as daemon:
        assert [item["name"] for item in daemon.ask("endpoint.list")] == [pods[0].netns]
    add_pod(booted, pods[1])
    kill(booted)
    with client(booted) as daemon:
        assert [item["problem"] for item in daemon.ask("endpoint.list")] == ["", ""]
    assert "is dropped: its namespace" in booted.log()
