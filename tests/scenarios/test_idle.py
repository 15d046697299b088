"""An idle daemon costs next to nothing and says nothing."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.lab import Lab, measure
from tests.scenarios import flows
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.alone]

IDLE_BYTES = 60_000_000
IDLE_SHARE = 0.01
SECONDS = 3.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2, pods=2, pod_kind="mixed", ipv6=True) as made:
        measure.wait_reachable(made)
        yield made


def cpu_seconds(pid: int) -> float:
    """Time on a processor of all threads, in the scheduler's nanoseconds (/proc/PID/task/TID/schedstat)."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def watched(lab: Lab, seconds: float) -> dict[str, float]:
    """Share of one processor that each daemon uses over a while."""
    pids = lab.daemon_pids()
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    start = time.monotonic()
    select.select([], [], [], seconds)  # the measurement itself: this much time has to pass
    passed = time.monotonic() - start
    return {name: (cpu_seconds(pid) - before[name]) / passed for name, pid in pids.items()}


def test_an_idle_daemon_uses_no_processor_and_logs_nothing(lab: Lab) -> None:
    logs = {name: lab.log(name).read_text() for name in lab.daemon_pids()}
    shares = watched(lab, SECONDS)
    assert max(shares.values()) < IDLE_SHARE, shares
    assert {name: lab.log(name).read_text() for name in lab.daemon_pids()} == logs


def test_memory_is_small_before_and_after_traffic(lab: Lab) -> None:
    for name, pid in lab.daemon_pids().items():
        assert 0 < measure.resident(pid) <= IDLE_BYTES, name
    one, _, other, _ = lab.pods
    assert flows.send_tcp(one.netns, other.netns, other.ip, 64 << 20).intact
    measure.udp(lab, one, other, sizes=[64, 1200], flows=200, burst=1, seconds=0.5)
    for name, pid in lab.daemon_pids().items():
        assert 0 < measure.resident(pid) <= IDLE_BYTES, name


def test_traffic_is_not_logged(lab: Lab) -> None:
    """Neither what is carried nor what is dropped."""
    logs = {name: lab.log(name).read_text() for name in lab.daemon_pids()}
    one, _, other, _ = lab.pods
    measure.udp(lab, one, other, sizes=[64], seconds=0.3)
    assert flows.send_tcp(one.netns, other.netns, other.ip, 8 << 20).intact
    assert {name: lab.log(name).read_text() for name in lab.daemon_pids()} == logs


def test_load_leaves_nothing_behind(lab: Lab) -> None:
    """After traffic the daemon is as idle as before: no timer, no thread, no descriptor more."""
    one, _, other, _ = lab.pods
    pid = lab.daemon_pids()["node1"]

    def held() -> tuple[int, int]:
        return len(list(Path(f"/proc/{pid}/task").iterdir())), len(list(Path(f"/proc/{pid}/fd").iterdir()))

    before = held()
    for _ in range(20):
        lab.control("node1", "status")
        lab.control("node1", "counters")
    assert flows.send_tcp(one.netns, other.netns, other.ip, 8 << 20).intact
    wait_for(lambda: held() == before, f"{before} threads and descriptors, not {held()}")
    assert max(watched(lab, 1.0).values()) < IDLE_SHARE
