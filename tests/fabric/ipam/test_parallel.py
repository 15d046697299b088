"""Many plugins at once on one directory, ours and the reference plugin mixed."""

from __future__ import annotations

import fcntl
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fabric.ipam.plugin import OURS, REFERENCE, Outcome, document, files, outcome, reserved, start
from tests.scenarios.waiting import wait_for

MANY = 50
SECONDS = 60.0  # for 50 interpreters to start on a noisy machine
PROGRAMS: tuple[tuple[str, ...], ...] = (OURS, (REFERENCE,))


@contextmanager
def together(place: Path, processes: list[subprocess.Popen[bytes]], conf: dict[str, Any]) -> Iterator[None]:
    """Holds the lock until all processes wait for it, so that they come on at one moment."""
    pids = {process.pid for process in processes}
    with (place / "pods" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(conf).encode())
            process.stdin.close()
            process.stdin = None
        wait_for(lambda: pids <= waiting_for_locks(), f"{len(pids)} processes at the lock", SECONDS)
    yield


def waiting_for_locks() -> set[int]:
    """Processes that wait for a lock. Source: proc(5), /proc/locks; waiters are marked by `->`."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return {int(words[5]) for words in lines if words[1] == "->"}


def finish(processes: list[subprocess.Popen[bytes]]) -> list[Outcome]:
    found = []
    for process in processes:
        output, _ = process.communicate(timeout=SECONDS)
        found.append(outcome(process.returncode, output))
    return found


def run(place: Path, conf: dict[str, Any], commands: list[tuple[str, str]]) -> list[Outcome]:
    """The commands at one moment, every second one by the reference plugin."""
    processes = [start(PROGRAMS[index % 2], *command) for index, command in enumerate(commands)]
    with together(place, processes, conf):
        return finish(processes)


@pytest.mark.slow
def test_fifty_at_once_get_fifty_addresses(tmp_path: Path) -> None:
    conf = document(tmp_path, "10.244.1.0/24", "2001:db8::/64")
    (tmp_path / "pods").mkdir(0o755)
    (tmp_path / "pods" / "lock").touch()
    added = run(tmp_path, conf, [("ADD", f"pod-{number}") for number in range(MANY)])
    assert [item.error for item in added] == [""] * MANY
    given = [address for item in added for address in item.addresses]
    assert len(set(given)) == len(given) == 2 * MANY
    assert set(given) == set(reserved(tmp_path))

    # Half of them go while as many others come; who deletes is not who added.
    gone = [("DEL", f"pod-{number}") for number in range(1, MANY // 2 + 1)]
    mixed = [
        command
        for pair in zip(gone, [("ADD", f"new-{number}") for number in range(25)], strict=True)
        for command in pair
    ]
    changed = run(tmp_path, conf, mixed[1:] + mixed[:1])
    assert [item.error for item in changed] == [""] * MANY
    expected = {f"pod-{number}" for number in (0, *range(26, MANY))} | {f"new-{number}" for number in range(25)}
    owners = [content.partition(b"\r\n")[0].decode() for content in reserved(tmp_path).values()]
    assert sorted(owners) == sorted([*expected, *expected])

    ended = run(tmp_path, conf, [("DEL", name) for name in sorted(expected)])
    assert [item.error for item in ended] == [""] * len(expected)
    assert set(files(tmp_path / "pods")) == {"lock", "last_reserved_ip.0", "last_reserved_ip.1"}


@pytest.mark.slow
def test_the_last_addresses_go_to_exactly_as_many(tmp_path: Path) -> None:
    conf = document(tmp_path, "10.244.1.0/28")  # 13 addresses
    (tmp_path / "pods").mkdir(0o755)
    (tmp_path / "pods" / "lock").touch()
    added = run(tmp_path, conf, [("ADD", f"pod-{number}") for number in range(20)])
    given = [address for item in added for address in item.addresses]
    assert len(set(given)) == len(given) == 13
    assert sum("no IP addresses available" in item.error for item in added) == 7


def test_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    """A plugin that is killed while it holds the lock blocks nobody."""
    conf = document(tmp_path, "10.244.1.0/24")
    (tmp_path / "pods").mkdir(0o755)
    lock = tmp_path / "pods" / "lock"
    lock.touch()
    with subprocess.Popen(["flock", str(lock), "sh", "-c", "echo held; exec cat"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        waiter = start(OURS, "ADD", "pod-1")
        assert waiter.stdin is not None
        waiter.stdin.write(json.dumps(conf).encode())
        waiter.stdin.close()
        waiter.stdin = None
        wait_for(lambda: waiter.pid in waiting_for_locks(), "the plugin at the lock", SECONDS)
        assert holder.stdin is not None
        holder.stdin.close()  # `cat` ends; the lock's descriptor ends with the shell's process
        assert finish([waiter])[0].addresses == ["10.244.1.2"]
