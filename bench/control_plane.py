"""What one node that comes or goes costs the daemon of another, among 10, 100 and 1,000 nodes, and what all cost it.

One fabric node in the lab; the others are leases in its store that nobody serves. They are written one after another
(all join), then one is taken away and written again a few times, and at last the daemon is started anew. The figure of
one change is the daemon's processor time until the kernel's routes follow and half a second beyond, for what it does
afterwards, less what it uses in the same time without a change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from statistics import median

from fabric import leases
from fabric.lab import Lab, LabError, registry
from fabric.model import Lease
from fabric.store.sqlite import SqliteStore

SIZES = (10, 100, 1000)
CHANGES = 12
AFTERWARDS = 0.5
WAIT_SECONDS = 10.0
NET_CONF = {"Network": "10.240.0.0/12", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a daemon that knows `nodes` others.

    `change_ms` of processor time for one that comes or goes, `idle_ms` in a second without one, `reach_ms` from a
    lease's return to its route, the slowest of all. `join_s` from the first lease to the last route, `behind_ms` of it
    after the last lease; `join_cpu_s` of processor time for that. `rss_mb` is memory then, `start_s` a new start to the
    last route.
    """

    nodes: int
    change_ms: float
    idle_ms: float
    reach_ms: float
    join_s: float
    behind_ms: float
    join_cpu_s: float
    rss_mb: float
    start_s: float


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far, to the nanosecond (its threads' schedstat)."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def routes(pid: int) -> int:
    """IPv4 routes in the network namespace of a process."""
    return Path(f"/proc/{pid}/net/route").read_text().count("\n")


def others(count: int) -> Iterator[tuple[str, bytes]]:
    """Key and value of the leases of `count` further nodes, from the upper half of the network."""
    for number in range(count):
        subnet = IPv4Network((int(IPv4Address("10.248.0.0")) + (number << 8), 24))
        mac = b"\x02" + (number + 1).to_bytes(5, "big")
        lease = Lease(
            subnet=subnet,
            ipv6_subnet=None,
            public_ip=IPv4Address(int(IPv4Address("198.18.0.1")) + number),
            public_ipv6=None,
            backend_type="vxlan",
            backend_data=leases.vxlan_data(1, mac),
            key=leases.key_of(subnet, None),
        )
        yield registry.PREFIX + lease.key, leases.emit_value(lease)


def wait_routes(pid: int, count: int) -> None:
    """Until there are `count` routes."""
    deadline = time.monotonic() + WAIT_SECONDS
    while routes(pid) != count:
        if time.monotonic() > deadline:
            raise LabError(f"{routes(pid)} routes instead of {count} after {WAIT_SECONDS:g} s")
        time.sleep(0.005)


def measure(size: int, changes: int = CHANGES) -> Figures:
    """The figures of a daemon that knows `size` other nodes."""
    with Lab(nodes=1, pods=1, net_conf=NET_CONF) as lab:
        return asyncio.run(_measure(lab, size, changes))


async def _measure(lab: Lab, size: int, changes: int) -> Figures:
    pid = lab.daemon_pids()["node1"]
    known = routes(pid)
    store = SqliteStore(registry.store_path(lab.run_dir))
    await store.open()
    try:
        joined, behind, cpu = await _join(store, pid, size)
        await asyncio.sleep(2)
        start, used = time.monotonic(), processor_seconds(pid)
        await asyncio.sleep(3)
        idle = (processor_seconds(pid) - used) / (time.monotonic() - start)
        change, reach = await _change(store, pid, size, changes, idle)
    finally:
        await store.close()
    memory = resident_mb(pid)
    lab.stop_daemon("node1")
    start = time.monotonic()
    lab.start_daemon("node1")
    wait_routes(lab.daemon_pids()["node1"], known + size)
    started = time.monotonic() - start
    return Figures(size, change * 1000, idle * 1000, reach * 1000, joined, behind * 1000, cpu, memory, started)


async def _join(store: SqliteStore, pid: int, size: int) -> tuple[float, float, float]:
    """All nodes' leases, one after another: seconds to the last route, those behind the last lease, processor seconds.
    """
    known, start, used = routes(pid), time.monotonic(), processor_seconds(pid)
    for key, value in others(size):
        await store.put(key, value, 0, None)
    written = time.monotonic()
    wait_routes(pid, known + size)
    return time.monotonic() - start, time.monotonic() - written, processor_seconds(pid) - used


async def _change(store: SqliteStore, pid: int, size: int, changes: int, idle: float) -> tuple[float, float]:
    """Processor seconds for one node that comes or goes, the median; and seconds until one that comes has its route,
    the longest."""
    known = routes(pid)
    key, value = list(others(size))[size // 2]
    costs, reached = [], [0.0]
    for number in range(changes):
        start, used = time.monotonic(), processor_seconds(pid)
        if number % 2:
            await store.put(key, value, 0, None)
        else:
            await store.delete(key, (await store.list(registry.PREFIX)).entries[key].revision)
        written = time.monotonic()
        wait_routes(pid, known - 1 + number % 2)
        reached.append((time.monotonic() - written) * (number % 2))
        await asyncio.sleep(AFTERWARDS)
        costs.append(processor_seconds(pid) - used - idle * (time.monotonic() - start))
    return median(costs), max(reached)


def run() -> Iterator[Figures]:
    """The figures of each size."""
    return map(measure, SIZES)
