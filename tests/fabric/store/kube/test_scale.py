"""A cluster of 1,000 nodes: time to sync, memory, and what one change costs. `-s` shows the figures."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest

from tests.apiserver.process import NODES, ApiServer, node
from tests.fabric.store.kube.harness import MAC

pytestmark = [pytest.mark.root, pytest.mark.slow]
COUNT = 1000
MERGE = "application/merge-patch+json"


def large_node(number: int) -> dict[str, Any]:
    """About 10 kB, as Nodes with 40 images are."""
    found = node(f"n{number}", f"10.{number // 250}.{number % 250}.0/24", mac=MAC, public=f"192.0.2.{number % 250}")
    digest = "ab" * 32
    found["status"]["images"] = [
        {"names": [f"registry.example.org/team/image-{n}@sha256:{digest}", f"registry.example.org/team/image-{n}:v1"],
         "sizeBytes": n} for n in range(40)
    ]  # fmt: skip
    return found


@contextmanager
def reporter(url: str) -> Iterator[IO[str]]:
    argv = [sys.executable, "-m", "tests.fabric.store.kube.reporter", url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()


def test_a_thousand_nodes(api: ApiServer) -> None:
    api.create(*(large_node(number) for number in range(COUNT)))
    with reporter(api.url) as lines:
        start = json.loads(lines.readline())
        synced = json.loads(lines.readline())
        assert (synced["nodes"], synced["lists"]) == (COUNT, 1)
        delays = []
        for number in range(50):
            address = f"198.51.100.{number}"
            before = time.monotonic()
            api.annotate("n0", public_ip=address)
            found = json.loads(lines.readline())
            assert found["last"] == address
            delays.append(found["time"] - before)
        for beat in range(20):  # a heartbeat is nothing to anybody
            api.ask("PATCH", f"{NODES}/n1/status", {"status": {"heartbeat": str(beat)}}, MERGE)
        api.annotate("n0", public_ip="198.51.100.200")
        last = json.loads(lines.readline())
        assert (last["last"], last["lists"]) == ("198.51.100.200", 1)
    seconds, median = synced["time"] - start["time"], statistics.median(delays)
    each = (found["cpu"] - synced["cpu"]) / len(delays)
    print(f"\n{COUNT} nodes: import {start['imported'] * 1000:.0f} ms, sync {seconds:.2f} s; RSS {start['rss']:.1f} MB "
          f"before, {last['rss']:.1f} MB then (peak {last['peak']:.1f}); change to snapshot {median * 1000:.1f} ms "
          f"(median of 50, most {max(delays) * 1000:.1f}), {each * 1000:.2f} ms CPU each")  # fmt: skip
    assert seconds < 10, "R9"
    assert median < 0.5, "R8"
    assert last["peak"] - start["rss"] < 40
