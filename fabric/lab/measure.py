"""Measurements between pods of a lab: reachability, TCP and UDP rates, round trips, CPU and memory.

Senders and receivers are `fabric.lab.traffic` processes inside the pods. Rates are taken at the receiver.
CPU seconds are the machine's busy time (/proc/stat, all cores, clock ticks), everything included: both nodes,
both pods, softirq.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fabric.lab import system
from fabric.lab.lab import Lab
from fabric.lab.plan import LabError, Pod

TICKS = os.sysconf("SC_CLK_TCK")
Progress = Callable[[float, float], None]


def ignore(_amount: float, _seconds: float) -> None:
    """The progress callback of those who do not want one."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """Busy seconds: of the whole machine, and of each daemon by node name."""

    machine: float
    daemons: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tcp:
    """Bytes the receiver got in `seconds`."""

    bytes: int
    seconds: float
    cpu: Cpu

    @property
    def gbps(self) -> float:
        """Gigabits of payload per second."""
        return self.bytes * 8 / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def cpu_per_gb(self) -> float:
        """Busy CPU seconds of the machine per gigabyte of payload."""
        return self.cpu.machine / (self.bytes / 1e9) if self.bytes else float("inf")


@dataclass(frozen=True, slots=True)
class Udp:
    """Datagrams `sent` in `seconds`, `delivered` to the receiver's socket layer, `received` by its program."""

    sent: int
    delivered: int
    received: int
    seconds: float
    cpu: Cpu

    @property
    def kpps(self) -> float:
        """Thousands of datagrams delivered per second."""
        return self.delivered / self.seconds / 1000 if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Round trips in microseconds; all zero when nothing came back."""

    count: int
    avg: float
    p50: float
    p99: float
    cpu: Cpu


@dataclass(frozen=True, slots=True)
class Pings:
    """One pair of pods: probes sent and answered, best round trip in microseconds."""

    source: str
    target: str
    address: str
    sent: int
    answered: int
    best: float
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether at least one probe came back."""
        return self.answered > 0


def tool(*argv: str) -> list[str]:
    """The command line of a traffic tool."""
    return [sys.executable, "-m", "fabric.lab.traffic", *argv]


class Server:
    """A traffic server in a pod; `port` is where it listens, `result` what it said last."""

    def __init__(self, lab: Lab, pod: Pod, address: str, *argv: str) -> None:
        self._process = lab.popen(
            pod.name,
            tool(*argv, "--address", address),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.port = int(self._line().get("ready", 0))
        if not self.port:
            raise LabError(f"{argv[0]} in {pod.name} did not start: {self._errors()}")

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        return json.loads(text) if text else {}

    def _errors(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().strip() or "no output"

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it says until its end."""
        while line := self._line():
            yield line

    def ask_to_stop(self) -> None:
        """Close its stdin; it answers with its result."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def close(self) -> None:
        """Stop and reap it."""
        self.ask_to_stop()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def server(lab: Lab, pod: Pod, address: str, *argv: str) -> Iterator[Server]:
    """A traffic server on one of the pod's addresses, for a with-block."""
    made = Server(lab, pod, address, *argv)
    try:
        yield made
    finally:
        made.close()


def machine_busy() -> float:
    """Busy seconds of all cores since boot: everything but idle and I/O wait (steal is not ours)."""
    names = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, kernel, _idle, _wait, irq, softirq = (int(value) for value in names[:7])
    return (user + nice + kernel + irq + softirq) / TICKS


def process_busy(pid: int) -> float:
    """CPU seconds a process has used, all threads; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident(pid: int) -> int:
    """Resident memory of a process in bytes (VmRSS); 0 for one that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


class CpuMeter:
    """Busy time from its creation to `read`."""

    def __init__(self, lab: Lab) -> None:
        self._pids = lab.daemon_pids()
        self._start = self._now()

    def _now(self) -> tuple[float, dict[str, float]]:
        return machine_busy(), {name: process_busy(pid) for name, pid in self._pids.items()}

    def read(self) -> Cpu:
        """Busy seconds since the start."""
        machine, daemons = self._now()
        first_machine, first = self._start
        return Cpu(machine - first_machine, {name: used - first[name] for name, used in daemons.items()})


def client(lab: Lab, pod: Pod, *argv: str, timeout: float) -> dict[str, Any]:
    """Run a traffic client to its end; its result."""
    lines = lab.exec(pod.name, tool(*argv), timeout=timeout).splitlines()
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def address(pod: Pod, family: int | None) -> str:
    """The pod's address of a family (4 or 6), its first one when the family does not matter."""
    for ip in pod.ips:
        if family is None or (":" in ip) == (family == 6):
            return ip
    raise LabError(f"{pod.name} has no IPv{family} address; make the lab with --ipv6")


def tcp(
    lab: Lab,
    source: Pod,
    target: Pod,
    *,
    streams: int = 1,
    seconds: float = 2.0,
    family: int | None = None,
    progress: Progress = ignore,
) -> Tcp:
    """TCP throughput from one pod to another. `progress` gets bytes and seconds so far, five times a second."""
    ip = address(target, family)
    with server(lab, target, ip, "tcp-sink", "--streams", str(streams), "--seconds", str(seconds + 10)) as sink:
        where = ("--address", ip, "--port", str(sink.port))
        with Sender(lab, source, "tcp-send", *where, "--streams", str(streams), "--seconds", str(seconds)) as sender:
            meter = CpuMeter(lab)
            sender.go()
            result = follow(sink, sender, progress)
            cpu = meter.read()
        if not result.get("bytes"):
            raise LabError(f"TCP from {source.name} to {target.name} did not work: connected, but nothing arrived")
        return Tcp(result["bytes"], result["seconds"], cpu)


class Sender:
    """A traffic sender in a pod, prepared (connected) and waiting for `go`, so that its start costs nobody."""

    def __init__(self, lab: Lab, pod: Pod, *argv: str) -> None:
        pipe = subprocess.PIPE
        self._process = lab.popen(pod.name, tool(*argv, "--hold"), stdin=pipe, stdout=pipe, stderr=pipe)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            _, errors = self._process.communicate()
            raise LabError(f"{argv[0]} in {pod.name} did not start: {errors.strip() or 'no output'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def go(self) -> None:
        """Start sending."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def ended(self) -> bool:
        """Whether it is done."""
        return self._process.poll() is not None

    def result(self) -> dict[str, Any]:
        """What it said last; empty when it failed."""
        output, _ = self._process.communicate(timeout=5)
        lines = output.splitlines()
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found


def follow(sink: Server, sender: Sender, progress: Progress) -> dict[str, Any]:
    """Pass the sink's progress on until its end, which comes at the latest after the sender's; the sink's result."""
    result: dict[str, Any] = {}
    for line in sink.lines():
        if "progress" in line:
            progress(line["progress"], line["seconds"])
        result = line
        if sender.ended():
            sink.ask_to_stop()
    return result


def udp(
    lab: Lab,
    source: Pod,
    target: Pod,
    *,
    sizes: Sequence[int] = (64,),
    flows: int = 1,
    burst: int = 32,
    seconds: float = 2.0,
    family: int | None = None,
    unread: bool = False,
    progress: Progress = ignore,
) -> Udp:
    """Datagrams from one pod to another as fast as the sender can; `burst` 1 interleaves the flows.

    `unread` leaves them in the socket, so that the receiving program's work is not part of the load.
    """
    extra = ["--unread"] if unread else []
    ip = address(target, family)
    with server(lab, target, ip, "udp-sink", "--seconds", str(seconds + 10), *extra) as sink:
        where = ("--address", ip, "--port", str(sink.port), "--seconds", str(seconds))
        load = ("--sizes", ",".join(map(str, sizes)), "--flows", str(flows), "--burst", str(burst))
        with Sender(lab, source, "udp-blast", *where, *load) as sender:
            meter = CpuMeter(lab)
            sender.go()
            result = follow(sink, sender, progress)
            cpu = meter.read()
            sent = sender.result()
        if not sent.get("sent") or "delivered" not in result:
            raise LabError(f"UDP from {source.name} to {target.name} did not work: nothing was sent")
        return Udp(sent["sent"], result["delivered"], result["received"], sent["seconds"], cpu)


def round_trips(
    lab: Lab,
    source: Pod,
    target: Pod,
    *,
    interval: float = 0.0,
    seconds: float = 1.0,
    size: int = 64,
    family: int | None = None,
) -> RoundTrip:
    """UDP request and response with one in flight, back to back or one per `interval` seconds."""
    ip = address(target, family)
    with server(lab, target, ip, "rr-server", "--seconds", str(seconds + 10)) as responder:
        meter = CpuMeter(lab)
        where = ("--address", ip, "--port", str(responder.port))
        load = ("--size", str(size), "--interval", str(interval), "--seconds", str(seconds))
        found = client(lab, source, "rr-client", *where, *load, timeout=seconds + 20)
        return RoundTrip(
            found["count"], found.get("avg", 0.0), found.get("p50", 0.0), found.get("p99", 0.0), meter.read()
        )


def ping_pairs(lab: Lab, *, count: int = 2, size: int = 56, dont_fragment: bool = False) -> list[Pings]:
    """ICMP echo between every ordered pair of pods, all addresses, one source after the other."""
    pairs: list[Pings] = []
    for source in lab.pods:
        owners = {ip: pod.name for pod in lab.pods if pod is not source for ip in pod.ips}
        if not owners:
            continue
        argv = tool("ping", *owners, "--count", str(count), "--size", str(size), *(["--df"] if dont_fragment else []))
        process = lab.popen(source.name, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        pairs += answers_of(source, owners, process)
    return pairs


def answers_of(source: Pod, owners: Mapping[str, str], process: subprocess.Popen[str]) -> Iterator[Pings]:
    """What one source's pings found; a source that could not ping at all shows as unanswered with the reason."""
    output, errors = process.communicate(timeout=60)
    answers = json.loads(output)["answers"] if output else []
    if not answers:
        reason = (errors.strip().splitlines() or ["no output"])[-1]
        yield from (Pings(source.name, name, ip, 0, 0, 0.0, reason) for ip, name in owners.items())
    for answer in answers:
        times = answer["times"]
        best = min(times) * 1e6 if times else 0.0
        target = answer["target"]
        yield Pings(source.name, owners[target], target, answer["sent"], len(times), best, answer["error"])


def wait_reachable(lab: Lab, seconds: float = 10.0) -> list[Pings]:
    """Ping all pairs until all answer or the time is over; the last result."""
    deadline = time.monotonic() + seconds
    while True:
        pairs = ping_pairs(lab)
        if all(pair.ok for pair in pairs) or time.monotonic() > deadline:
            return pairs


def namespace_counters(lab: Lab, name: str) -> str:
    """/proc/net/snmp of a node or pod."""
    return system.run(lab.netns(name), ["cat", "/proc/net/snmp"])
