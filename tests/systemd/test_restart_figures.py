"""Kills, restarts and a rolling restart under traffic: what is lost, doubled or out of order.

The targets: a SIGKILL loses at most 64 packets and stops traffic for 400 ms, a planned restart loses none, and all keep
their order; kills are held to twice that. The rate is one at which the queues outlast the pause for a start; a handover
has to be quick. `python -m tests.systemd.restarts` takes figures of it all.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.systemd.booted import Booted
from tests.systemd.cluster import Cluster, client
from tests.systemd.restarts import Figures, kill, reload, restart, rolling, under_traffic

pytestmark = [pytest.mark.root, pytest.mark.alone, pytest.mark.slow]
RATE = 1000
LOST_PER_KILL = 2 * 64
GAP_SECONDS = 2 * 0.4
PAUSE_SECONDS = 2 * 0.05


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(3)
    try:
        yield made
    finally:
        made.close()


def told(figures: Figures) -> Figures:
    print(figures.report())
    return figures


def test_kills(cluster: Cluster) -> None:
    found = told(under_traffic(cluster, "killed", [lambda: kill(cluster.nodes[0])] * 3, RATE))
    assert max(found.losses) <= LOST_PER_KILL
    assert max(found.gaps) <= GAP_SECONDS
    assert all(summary.doubled == 0 and summary.reordered == 0 for summary in found.whole)


def test_planned_restarts(cluster: Cluster) -> None:
    found = told(under_traffic(cluster, "restarted", [lambda: restart(cluster.nodes[0])] * 3, RATE))
    assert all((summary.lost, summary.doubled, summary.reordered) == (0, 0, 0) for summary in found.whole)


def test_handovers(cluster: Cluster) -> None:
    """A reload: the pause is that between two threads, not the start of a process.

    One after the other for longer than the watchdog's interval, no process long enough to send the second WATCHDOG=1.
    """
    node = cluster.nodes[0]
    starts = node.show("NRestarts")
    found = told(under_traffic(cluster, "handed over", [lambda: reload(node)] * 8, RATE))
    assert all((summary.lost, summary.doubled, summary.reordered) == (0, 0, 0) for summary in found.whole)
    assert node.show("NRestarts") == starts, "systemd has started nothing"
    assert sorted(found.gaps)[-2] <= PAUSE_SECONDS, "all but one, which may be the machine's"


def test_a_rolling_restart(cluster: Cluster) -> None:
    before = [who(node) for node in cluster.nodes]
    found = told(under_traffic(cluster, "rolling restart", rolling(cluster), RATE))
    assert all((summary.lost, summary.doubled, summary.reordered) == (0, 0, 0) for summary in found.whole)
    assert [who(node) for node in cluster.nodes] == before, "subnet, MAC and pods' addresses are as before"


def who(node: Booted) -> object:
    with client(node) as daemon:
        own = [item for item in daemon.ask("leases") if item["own"]]
        return [{key: item[key] for key in ("key", "public", "mac") if key in item} for item in own], sorted(
            address for item in daemon.ask("endpoint.list") for address in item["addresses"]
        )
