"""`python -m tests.fabric.store.kube.reporter URL`: a process with a `KubeStore` that says what it sees, as JSON lines.

Each line has `time` (CLOCK_MONOTONIC, the same in every process), `rss` and `peak` (MB), `cpu` (seconds) and what the
snapshot has: `nodes`, `last` (the public address of the first node). The first line, with `nodes` -1, is from before
the store is opened, and has `imported`, the seconds that importing the store took.
"""

from __future__ import annotations

import json
import sys
import time

import uvloop

from fabric.lease_table import LeaseTable

P = "/coreos.com/network/subnets/"


def _memory() -> dict[str, float]:
    with open("/proc/self/status") as file:
        found = dict(line.split(":", 1) for line in file)
    return {name: int(found[key].split()[0]) / 1024 for name, key in (("rss", "VmRSS"), ("peak", "VmHWM"))}


def say(**found: object) -> None:
    print(json.dumps({"time": time.monotonic(), "cpu": time.process_time(), **_memory(), **found}), flush=True)


async def main(url: str) -> None:
    before = time.monotonic()
    from fabric.store.base import Snapshot
    from fabric.store.kube import access, annotate
    from fabric.store.kube.store import KubeStore

    imported = time.monotonic() - before
    store = KubeStore(access.load(url, "", {}), annotate.names(), "n0")
    table = LeaseTable(P)
    say(nodes=-1, imported=imported)
    await store.open()
    async for item in store.watch(P):
        if isinstance(item, Snapshot):
            table.update(item, 0.0)
            current = table.current(0.0)
            first = next((lease for lease in current if lease.node == "n0"), None)
            say(nodes=len(current), last=str(first.public_ip) if first else "", lists=store.lists)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
