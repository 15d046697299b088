"""Requests to the control socket of a running node: the real server and the real methods, around a data path of fakes.

Every line gets one line of answer, a result or a printable reason, and the connection stays.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from fabric.store.memory import MemoryStore
from tests.fabric.clock import Clock
from tests.fabric.fakes import Bench
from tests.fuzz.mutation import Mutator

Counts = dict[str, int]
PIPELINED = 200
REQUESTS = (
    b'{"method":"status","params":{}}',
    b'{"method":"counters"}',
    b'{"method":"peers","params":null}',
    b'{"method":"port.add","params":{"name":"p1","netns":"/run/netns/pod","ifname":"eth0","addresses":["10.244.1.5/24"],'
    b'"mtu":1400}}',
    b'{"method":"port.add","params":{"name":"p2","netns":"/run/netns/pod","ifname":"eth0","addresses":[],"mtu":null}}',
    b'{"method":"port.delete","params":{"name":"p1"}}',
)
WORDS = (b'"leases"', b'"routes"', b'"port.list"', b'"method"', b'"params"', b'"../x"', b"1e308")


def fuzz(seed: int, count: int) -> Counts:
    """`count` lines over one connection."""
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_whole(Path(directory), Mutator(seed, REQUESTS, WORDS), count))


async def _whole(directory: Path, text: Mutator, count: int) -> Counts:
    bench = Bench(directory, MemoryStore(), Clock())
    node = bench.node()
    await node.start()
    try:
        reader, writer = await asyncio.open_unix_connection(bench.run_dir / "fabricd.sock")
        counts = {"pass": 0, "refused": 0}
        for start in range(0, count, PIPELINED):
            lines = [text().replace(b"\n", b" ") for _ in range(min(PIPELINED, count - start))]
            writer.write(b"\n".join(lines) + b"\n")
            for line in lines:
                counts[_kind(await reader.readline(), line)] += 1
            bench.journal.steps.clear()
        writer.close()
        return counts
    finally:
        await node.stop()


def _kind(answer: bytes, line: bytes) -> str:
    document = json.loads(answer)
    if "result" in document:
        return "pass"
    reason = document["error"]
    assert reason.isprintable(), f"not one line: {reason!r} for {line!r}"
    assert "failed inside the daemon" not in reason, line
    return "refused"
