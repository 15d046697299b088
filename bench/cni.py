"""How long a container runtime waits for the CNI plugin: ADD and DEL one after the other, and many ADDs at once.

The node is full while it is measured: a hundred and more pods are there, their records, reservations and ports. A time
is what the runtime sees, from the start of the process to its end; `ip netns exec` (about 3 ms) is part of it. After
all that every pod has an address of its own and answers its node.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench import cni_start
from bench.cni_start import Start
from fabric.lab import Lab, LabError, Pod, measure
from fabric.lab.plan import PodKind

PODS = 110
AT_ONCE = 50
CALLS = 50
SINGLE_TARGET = 0.250
"""Seconds for the 99th percentile of single calls."""
AT_ONCE_TARGET = 5.0
"""Seconds until all ADDs that began at once are done."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds: of single ADDs and DELs, sorted; of each of the ADDs that began at once, sorted; until all were done."""

    kind: PodKind
    pods: int
    add: Sequence[float]
    delete: Sequence[float]
    at_once: Sequence[float]
    all_done: float

    @property
    def holds(self) -> bool:
        """Whether every target was met."""
        single = max(percentile(self.add, 99), percentile(self.delete, 99))
        return single <= SINGLE_TARGET and self.all_done <= AT_ONCE_TARGET


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent of the sorted values do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def timed(work: Callable[[str], None], pod: Pod) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work(pod.name)
    return time.perf_counter() - start


def run(kind: PodKind, pods: int = PODS, calls: int = CALLS, at_once: int = AT_ONCE) -> Latency:
    """Measure on a node with so many pods. Raises LabError when a call fails or a pod is not as it should be."""
    with Lab(nodes=1, pods=pods, pod_kind=kind) as lab:
        add, delete = [], []
        for number in range(calls):
            pod = lab.pods[number % pods]
            delete.append(timed(lab.unplug, pod))
            add.append(timed(lab.plug, pod))
        together, all_done = plug_at_once(lab, lab.pods[:at_once])
        refuse_faults(lab)
    return Latency(kind, pods, sorted(add), sorted(delete), sorted(together), all_done)


def plug_at_once(lab: Lab, pods: Sequence[Pod]) -> tuple[list[float], float]:
    """Delete these pods' interfaces, then make them all at once, with addresses that IPAM chooses."""
    for pod in pods:
        lab.unplug(pod.name)
        pod.ips = []
    start = time.perf_counter()
    with ThreadPoolExecutor(len(pods)) as pool:
        times = list(pool.map(lambda pod: timed(lab.plug, pod), pods))
    return times, time.perf_counter() - start


def refuse_faults(lab: Lab) -> None:
    """Raise LabError when two pods have the same address, or one does not answer its node."""
    ips = [ip for pod in lab.pods for ip in pod.ips]
    if len(set(ips)) < len(lab.pods):
        raise LabError(f"{len(lab.pods)} pods have only {len(set(ips))} addresses")
    answers = json.loads(lab.exec("node1", measure.tool("ping", *ips, "--timeout", "5")))["answers"]
    silent = [answer["target"] for answer in answers if not answer["times"]]
    if silent:
        raise LabError(f"{len(silent)} of {len(ips)} pods do not answer, among them {silent[0]}")


def start() -> str:
    """The start alone, measured now."""
    return start_line(cni_start.measure())


def start_line(found: Start) -> str:
    """What of a call is the start."""
    return (
        f"start of the plugin with what an ADD loads: {found.plugin * 1000:.0f} ms of processor time, "
        f"{found.ratio:.1f} times its interpreter's"
    )


def lines(found: Latency) -> list[str]:
    """What was measured, with the targets."""
    rows = [f"kind {found.kind}, {found.pods} pods on the node, {len(found.add)} calls one after the other:"]
    for verb, times in (("ADD", found.add), ("DEL", found.delete)):
        p50, p99 = (percentile(times, percent) * 1000 for percent in (50, 99))
        rows.append(f"  {verb}  p50 {p50:4.0f} ms  p99 {p99:4.0f} ms  (target: p99 <= {SINGLE_TARGET * 1000:.0f} ms)")
    slowest = found.at_once[-1]
    rows.append(
        f"  {len(found.at_once)} ADDs at once: all done after {found.all_done:.2f} s (target: {AT_ONCE_TARGET:g} s), "
        f"p50 {percentile(found.at_once, 50):.2f} s, slowest {slowest:.2f} s"
    )
    return [*rows, "  every pod has its own address and answers"]
