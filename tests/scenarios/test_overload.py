"""More than anybody can carry: every loss is counted somewhere, and it is over when the burst is over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fabric.lab import Lab, Pod, measure
from tests.scenarios import fabric_view, flows, inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.alone]

BURST_SECONDS = 1.0
BACK_TO_IDLE_SECONDS = 2 * 0.1
OTHERS = 10


@pytest.fixture(scope="module", params=["bridge", "tun"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(nodes=2, pods=2, pod_kind=request.param) as made:
        measure.wait_reachable(made)
        yield made


@pytest.fixture(autouse=True)
def _clean(lab: Lab) -> Iterator[None]:
    yield
    assert fabric_view.all_checksum_errors(lab) == {}
    assert lab.dead_daemons() == []


def losses(lab: Lab) -> dict[str, int]:
    """Everything that says where a datagram can have been lost: daemons, and queues of the pods' own devices."""
    found = {}
    for node in lab.fabric_nodes:
        for name, value in fabric_view.counters(lab, node.name).items():
            if (name.startswith("drop_") and name not in fabric_view.HARMLESS) or name.endswith("overflows"):
                found[f"{node.name} {name}"] = value
    for pod in lab.pods:
        link = inside.ip_json(pod.netns, "-s", "link", "show", "dev", "eth0")[0]["stats64"]
        found[f"{pod.name} queue"] = link["tx"]["dropped"]
    return found


def counted(lab: Lab, before: dict[str, int]) -> dict[str, int]:
    return fabric_view.more(before, losses(lab))


def assert_accounted(lab: Lab, before: dict[str, int], sent: int, delivered: int) -> None:
    """Every datagram that did not arrive is counted; a few packets of the kernels' own may have been lost as well."""
    wait_for(lambda: sent - delivered <= sum(counted(lab, before).values()), "the losses to be counted", 3)
    lost = counted(lab, before)
    assert sum(lost.values()) <= sent - delivered + OTHERS, (sent, delivered, lost)


def assert_soon_idle(lab: Lab, one: Pod, other: Pod) -> None:
    """Round trips are as short as ever right after a burst."""
    with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
        start = time.monotonic()
        assert probes.wait_answer(start, "an answer after the burst") < BACK_TO_IDLE_SECONDS


@pytest.mark.parametrize("size", [1, 1200])
def test_a_burst_is_accounted_for_to_the_last_datagram(lab: Lab, size: int) -> None:
    one, other = lab.pod("node1-pod1"), lab.pod("node2-pod1")
    before = losses(lab)
    done = measure.udp(lab, one, other, sizes=[size], flows=8, burst=32, seconds=BURST_SECONDS)
    assert_accounted(lab, before, done.sent, done.delivered)
    assert_soon_idle(lab, one, other)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that does not run for a while: a machine that is overloaded or suspended."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def bare(lab: Lab) -> Iterator[Lab]:
    """Nothing is joined on the underlay: the kernel counts what a full socket refuses by message, not by datagram."""
    mode = lab.mode
    lab.set_mode("bare")
    yield lab
    lab.set_mode(mode)


def test_a_receiver_that_stands_still_counts_what_it_missed(bare: Lab) -> None:
    lab = bare
    one, other = lab.pod("node1-pod1"), lab.pod("node2-pod1")
    pid = lab.daemon_pids()["node2"]
    before = losses(lab)
    with inside.open_udp(other.netns, other.ip) as sink:
        sink.setsockopt(1, inside.SO_RCVBUFFORCE, 256 << 20)
        with frozen(pid):
            sent = 0
            while sent < 30_000:  # in pieces that the sending node's queue holds
                carried = fabric_view.counters(lab, "node1")["egress_packets"]
                sent += flows.blast(one.netns, one.ip, sink.getsockname(), 1400, 500)
                wait_for(
                    lambda carried=carried: fabric_view.counters(lab, "node1")["egress_packets"] >= carried + 500,  # type: ignore[misc]
                    "node1 to carry them",
                )
        with inside.open_udp(one.netns, one.ip) as out:
            # The kernel tells of its losses with the next datagram that it delivers.
            delivered = 0
            sink.settimeout(0.5)
            for _ in range(3):
                out.sendto(b"one more", sink.getsockname())
                sent += 1
                delivered += flows.drain(sink)
    assert_accounted(lab, before, sent, delivered)
    assert counted(lab, before).get("node2 receive_overflows", 0) > 0, "this many do not fit into any buffer"
    assert_soon_idle(lab, one, other)


def test_a_sender_that_stands_still_loses_only_what_its_queue_cannot_hold(lab: Lab) -> None:
    one, other = lab.pod("node1-pod1"), lab.pod("node2-pod1")
    before = losses(lab)
    with inside.open_udp(other.netns, other.ip) as sink:
        sink.setsockopt(1, inside.SO_RCVBUFFORCE, 64 << 20)
        with frozen(lab.daemon_pids()["node1"]):
            sent = flows.blast(one.netns, one.ip, sink.getsockname(), 100, 5000)
        sink.settimeout(0.5)
        delivered = flows.drain(sink)
    assert_accounted(lab, before, sent, delivered)
    assert delivered >= 500, "a queue's worth arrives late, but arrives"


def test_a_busy_pod_does_not_starve_its_neighbour(lab: Lab) -> None:
    """While one pod sends as fast as it can, the other's requests are answered."""
    loud, quiet = lab.pod("node1-pod1"), lab.pod("node1-pod2")
    other, third = lab.pod("node2-pod1"), lab.pod("node2-pod2")
    with flows.probing(quiet.netns, quiet.ip, third.netns, third.ip) as probes:
        start = time.monotonic()
        measure.udp(lab, loud, other, sizes=[64], flows=4, seconds=BURST_SECONDS)
        asked = sum(1 for sent in probes.sent if sent >= start)
        lost = probes.lost(start)
    assert lost < asked / 2, f"{lost} of {asked} requests were lost"
