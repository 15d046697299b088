"""What is measured of one variant: each measure runs one load between two pods and returns figures by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.rig import Rig
from bench.variants import Variant
from fabric.lab import LabError, Pod, measure

Figures = dict[str, float]
MIXED = (64, 64, 200, 64, 700)
LOADED_INTERVAL = 0.002
SPARSE_INTERVAL = 0.001


@dataclass(frozen=True, slots=True)
class Figure:
    """How a figure is shown. `better` says which direction is good."""

    label: str
    unit: str
    better: str = "higher"
    digits: int = 2


@dataclass(frozen=True, slots=True)
class Load:
    """Where and how long: what a measure gets."""

    rig: Rig
    variant: Variant
    source: Pod
    target: Pod
    seconds: float

    def busy(self) -> float:
        """CPU seconds the variant's own processes have used."""
        return sum(measure.process_busy(pid) for pid in self.rig.pids(self.variant))

    def resident(self) -> float:
        """Largest resident memory of the variant's processes in MB; 0 for the kernel."""
        return max((measure.resident(pid) / 1e6 for pid in self.rig.pids(self.variant)), default=0.0)


def tcp(load: Load, streams: int) -> Figures:
    """Throughput, CPU of the machine and of the tunnel's processes per GB, memory under load."""
    before = load.busy()
    found = measure.tcp(load.rig.lab, load.source, load.target, streams=streams, seconds=load.seconds)
    name = f"tcp{streams}"
    figures = {f"{name}_gbps": found.gbps, f"{name}_cpu": found.cpu_per_gb}
    if load.variant.kind != "kernel":
        figures[f"{name}_own_cpu"] = (load.busy() - before) / (found.bytes / 1e9)
        figures["loaded_mb"] = load.resident()
    return figures


def udp(load: Load, name: str, sizes: Sequence[int], flows: int, burst: int) -> Figures:
    """Datagrams delivered, in thousands per second, and CPU microseconds of the machine per datagram."""
    found = measure.udp(
        load.rig.lab,
        load.source,
        load.target,
        sizes=sizes,
        flows=flows,
        burst=burst,
        seconds=load.seconds,
        unread=True,
    )
    if not found.delivered:
        raise LabError(f"{load.variant.name} delivered no datagram")
    return {f"{name}_kpps": found.kpps, f"{name}_cpu": found.cpu.machine / found.delivered * 1e6}


def round_trips(load: Load, name: str, interval: float) -> Figures:
    """Round trips of one request in flight, in microseconds."""
    found = measure.round_trips(load.rig.lab, load.source, load.target, interval=interval, seconds=load.seconds)
    if not found.count:
        raise LabError(f"{load.variant.name} answered no request")
    return {f"{name}_p50": found.p50, f"{name}_p99": found.p99}


def loaded(load: Load) -> Figures:
    """Round trips while a TCP stream runs from the same source to the same target."""
    errors: list[LabError] = []

    def stream() -> None:
        try:
            measure.tcp(load.rig.lab, load.source, load.target, seconds=load.seconds + 0.8)
        except LabError as error:
            errors.append(error)

    background = threading.Thread(target=stream)
    background.start()
    try:
        figures = round_trips(load, "loaded", LOADED_INTERVAL)
    finally:
        background.join()
    if errors:
        raise errors[0]
    return figures


def idle_memory(load: Load) -> Figures:
    """Resident memory of the larger of the two processes, as it is now."""
    return {} if load.variant.kind == "kernel" else {"idle_mb": load.resident()}


MEASURES: Mapping[str, Callable[[Load], Figures]] = {
    "memory": idle_memory,
    "tcp1": lambda load: tcp(load, 1),
    "tcp4": lambda load: tcp(load, 4),
    "udp64": lambda load: udp(load, "udp64", (64,), 1, 32),
    "udp64x16": lambda load: udp(load, "udp64x16", (64,), 16, 32),
    "mixed": lambda load: udp(load, "mixed", MIXED, 16, 1),
    "sparse": lambda load: round_trips(load, "sparse", SPARSE_INTERVAL),
    "rr": lambda load: round_trips(load, "rr", 0.0),
    "loaded": loaded,
}

FIGURES: Mapping[str, Figure] = {
    "tcp1_gbps": Figure("TCP, 1 stream", "Gb/s"),
    "tcp4_gbps": Figure("TCP, 4 streams", "Gb/s"),
    "tcp1_cpu": Figure("CPU, 1 stream", "s/GB", "lower"),
    "tcp4_cpu": Figure("CPU, 4 streams", "s/GB", "lower"),
    "tcp1_own_cpu": Figure("CPU of the daemons, 1 stream", "s/GB", "lower"),
    "tcp4_own_cpu": Figure("CPU of the daemons, 4 streams", "s/GB", "lower"),
    "udp64_kpps": Figure("UDP 64 B, 1 flow", "kpps", digits=0),
    "udp64_cpu": Figure("CPU, UDP 64 B, 1 flow", "us/packet", "lower"),
    "udp64x16_kpps": Figure("UDP 64 B, 16 flows", "kpps", digits=0),
    "udp64x16_cpu": Figure("CPU, UDP 64 B, 16 flows", "us/packet", "lower"),
    "mixed_kpps": Figure("UDP mixed sizes, 16 flows", "kpps", digits=0),
    "mixed_cpu": Figure("CPU, UDP mixed", "us/packet", "lower"),
    "sparse_p50": Figure("round trip, one per ms, p50", "us", "lower", 0),
    "sparse_p99": Figure("round trip, one per ms, p99", "us", "lower", 0),
    "rr_p50": Figure("round trip, back to back, p50", "us", "lower", 0),
    "rr_p99": Figure("round trip, back to back, p99", "us", "lower", 0),
    "loaded_p50": Figure("round trip under TCP, p50", "us", "lower", 0),
    "loaded_p99": Figure("round trip under TCP, p99", "us", "lower", 0),
    "idle_mb": Figure("resident memory, idle", "MB", "lower", 0),
    "loaded_mb": Figure("resident memory, loaded", "MB", "lower", 0),
}
