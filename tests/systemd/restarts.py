"""What traffic notices of kills and restarts of fabricd under systemd, in figures.

    python -m tests.systemd.restarts [--kills 50] [--restarts 20] [--rolling 5] [--rate 10000]

Two nodes (five for the rolling restart) run the unit under a real systemd each. Numbered datagrams of 200 bytes go both
ways between their pods at `rate` a second while the first node's fabricd is killed (SIGKILL), then restarted
(`systemctl restart`), then all nodes' one after the other. Needs root; run it in namespaces of its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.scenarios.waiting import wait_for
from tests.systemd.booted import UNIT, Booted
from tests.systemd.cluster import Cluster, used_peers
from tests.systemd.sequence import Flow, Summary, flowing

PORT = 7000
PAUSE = 1.0


class Figures(NamedTuple):
    """Of one kind of fault: each direction over all of it, and for each fault the loss and the longest gap."""

    name: str
    whole: tuple[Summary, Summary]
    losses: list[int]
    gaps: list[float]
    latency: float

    def report(self) -> str:
        one, other = self.whole
        gaps = sorted(self.gaps)
        return (
            f"{self.name}: {len(self.losses)} times; lost {one.lost} + {other.lost} of {one.sent + other.sent}"
            f" (worst {max(self.losses)} at a time), doubled {one.doubled + other.doubled},"
            f" out of order {one.reordered + other.reordered}; gap median {statistics.median(gaps) * 1e3:.0f} ms,"
            f" worst {gaps[-1] * 1e3:.0f} ms; latest after {self.latency * 1e3:.0f} ms"
        )


def kill(node: Booted) -> None:
    """End fabricd without a word and wait for the next one."""
    written = (node.root / "run/flannel/subnet.env").stat
    before = written().st_ino
    os.kill(node.main_pid(), signal.SIGKILL)
    wait_for(lambda: written().st_ino != before, "the next one to be ready", 30)


def restart(node: Booted) -> None:
    node.systemctl("restart", UNIT)


def under_traffic(cluster: Cluster, name: str, actions: list[Callable[[], None]], rate: int) -> Figures:
    """Do `actions`, a pause between them, while datagrams go both ways between the first two pods."""
    one, other = cluster.pods[:2]
    flows = (
        Flow(one.netns, other.netns, other.address, PORT, rate, cluster.directory),
        Flow(other.netns, one.netns, one.address, PORT, rate, cluster.directory),
    )
    moments = []
    with flowing(*flows):
        time.sleep(PAUSE)  # the load itself, as the pauses after each
        steady = time.monotonic()
        for action in actions:
            moments.append(time.monotonic())
            action()
            time.sleep(PAUSE)
        end = time.monotonic()
    spans = list(zip(moments, [*moments[1:], end], strict=True))
    each = [[flow.summary(start, until) for flow in flows] for start, until in spans]
    whole = flows[0].summary(steady, end), flows[1].summary(steady, end)
    return Figures(
        name,
        whole,
        [sum(summary.lost for summary in pair) for pair in each],
        [max(summary.gap for summary in pair) for pair in each],
        max(summary.latency for summary in whole),
    )


def rolling(cluster: Cluster) -> list[Callable[[], None]]:
    """Restart every node, each when the one before knows the others again."""

    def one(node: Booted) -> None:
        restart(node)
        wait_for(lambda: used_peers(node) == len(cluster.nodes) - 1, "the node to know the others")

    return [lambda node=node: one(node) for node in cluster.nodes]  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("kills", 50), ("restarts", 20), ("rolling", 5), ("rate", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=number)
    asked = parser.parse_args()
    cluster = Cluster(max(2, asked.rolling))
    try:
        node = cluster.nodes[0]
        if asked.kills:
            print(under_traffic(cluster, "killed", [lambda: kill(node)] * asked.kills, asked.rate).report(), flush=True)
        if asked.restarts:
            found = under_traffic(cluster, "restarted", [lambda: restart(node)] * asked.restarts, asked.rate)
            print(found.report(), flush=True)
        if asked.rolling:
            print(under_traffic(cluster, "rolling restart", rolling(cluster), asked.rate).report(), flush=True)
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
