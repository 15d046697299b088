"""How fast the daemon is there: start to forwarding, a new peer to its first packet; and what it weighs idle.

The lab is two fabric nodes and a kernel VXLAN node whose lease the benchmark takes away and gives back: nobody else
looks after that lease. A probe in a pod sends one request per millisecond all the time, so the time of the first
answer is known to about a millisecond.
"""

from __future__ import annotations

import asyncio
import json
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.measures import Figures
from fabric.lab import Lab, LabError, Pod, measure, registry
from fabric.lab import system as machine
from fabric.store.base import Entry
from fabric.store.sqlite import SqliteStore

WAIT_SECONDS = 20.0


class Probe:
    """`bench.probe` in a pod, against an echo server in another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait(self, what: str, since: float) -> float:
        """Time of the next transition to "answered" or "silent" after `since`; LabError when it does not come."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if not select.select([self._process.stdout], [], [], 0.1)[0]:
                continue
            line = self._process.stdout.readline()
            if not line:
                break
            when = json.loads(line).get(what)
            if when is not None and when > since:
                return float(when)
        raise LabError(f"the probe did not become {what} within {WAIT_SECONDS:g} s")


@contextmanager
def probe(lab: Lab, source: Pod, target: Pod) -> Iterator[Probe]:
    """A probe from one pod to another for a with-block."""
    with measure.server(lab, target, target.ip, "rr-server", "--seconds", "300") as responder:
        argv = [*measure.tool()[:1], "-m", "bench.probe", target.ip, str(responder.port)]
        process = lab.popen(source.name, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)
        try:
            yield Probe(process)
        finally:
            # `ip netns exec` replaces itself by the probe, so the id is the probe's own.
            machine.stop([process.pid])
            process.communicate()


def start_to_forwarding(lab: Lab, source: Pod, target: Pod) -> float:
    """Seconds from starting the source node's daemon again to the first answer; lease and files are there ("warm")."""
    with probe(lab, source, target) as view:
        stopped = time.monotonic()
        lab.stop_daemon(source.node)
        view.wait("silent", stopped - 1)
        start = time.monotonic()
        lab.start_daemon(source.node)
        return view.wait("answered", start) - start


def peer_to_first_packet(lab: Lab, source: Pod, target: Pod) -> float:
    """Seconds from writing the target node's lease to the store to the first answer from its pod."""
    key = registry.PREFIX + lab.node(target.node).subnet.replace("/", "-")
    with probe(lab, source, target) as view:
        start = time.monotonic()
        entry = asyncio.run(take_lease(lab, key))
        view.wait("silent", start - 1)
        written = asyncio.run(give_lease(lab, entry))
        return view.wait("answered", written) - written


async def take_lease(lab: Lab, key: str) -> Entry:
    """Remove a lease from the lab's store; what it was."""
    store = SqliteStore(registry.store_path(lab.run_dir))
    await store.open()
    try:
        entries = (await store.list(registry.PREFIX)).entries
        if key not in entries:
            raise LabError(f"the store has no lease {key}")
        await store.delete(key, entries[key].revision)
        return entries[key]
    finally:
        await store.close()


async def give_lease(lab: Lab, entry: Entry) -> float:
    """Write it again; the monotonic time just before."""
    store = SqliteStore(registry.store_path(lab.run_dir))
    await store.open()
    try:
        before = time.monotonic()
        await store.put(entry.key, entry.value, 0, None)
        return before
    finally:
        await store.close()


def run(rounds: int = 3) -> list[Figures]:
    """Figures of `rounds` rounds: start_s, peer_ms, idle_mb (the larger of the two daemons)."""
    found = []
    with Lab(nodes=3, pods=1, kernel_peer=True, pod_kind="bridge") as lab:
        first, second, third = lab.pods
        measure.wait_reachable(lab)
        for _ in range(rounds):
            figures = {"idle_mb": max(measure.resident(pid) for pid in lab.daemon_pids().values()) / 1e6}
            figures["start_s"] = start_to_forwarding(lab, first, second)
            figures["peer_ms"] = peer_to_first_packet(lab, first, third) * 1000
            found.append(figures)
    return found
