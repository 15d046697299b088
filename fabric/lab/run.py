"""What `fabricctl lab run` and `lab bench` do: the whole show on one lab, and the fabric against the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fabric.lab import capture, measure, report
from fabric.lab.lab import Lab
from fabric.lab.path import Path, paths
from fabric.lab.plan import LabError, Options, Pod

CAPTURED = 4


class Measured(Protocol):
    """A measurement that can show how far it is."""

    def __call__(self, progress: measure.Progress) -> Any: ...


@dataclass(frozen=True, slots=True)
class Gauge:
    """Live display of one measurement after the other; plain lines when there is no terminal."""

    console: Console
    progress: Progress

    def show(self, label: str, seconds: float, unit: str, scale: float, run: Measured) -> Any:
        """Run a measurement of about `seconds`; `scale` turns what it counts into `unit` per second."""
        task = self.progress.add_task(label, total=seconds, rate="")

        def step(amount: float, elapsed: float) -> None:
            rate = amount * scale / elapsed if elapsed else 0.0
            self.progress.update(task, completed=min(elapsed, seconds), rate=f"{rate:.2f} {unit}")

        try:
            return run(step)
        finally:
            self.progress.remove_task(task)


@contextmanager
def gauge(console: Console) -> Iterator[Gauge]:
    """The live display for a with-block."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Gauge(console, progress)


def tcp(view: Gauge, lab: Lab, path: Path, streams: int, seconds: float) -> measure.Tcp:
    """TCP with a live rate."""

    def run(progress: measure.Progress) -> measure.Tcp:
        return measure.tcp(lab, path.source, path.target, streams=streams, seconds=seconds, progress=progress)

    label = f"TCP {streams} stream{'s' if streams > 1 else ''} {path.label}"
    result: measure.Tcp = view.show(label, seconds, "Gb/s", 8e-9, run)
    return result


def udp(view: Gauge, lab: Lab, path: Path, seconds: float, **load: Any) -> measure.Udp:
    """UDP with a live rate."""

    def run(progress: measure.Progress) -> measure.Udp:
        return measure.udp(lab, path.source, path.target, seconds=seconds, progress=progress, **load)

    result: measure.Udp = view.show(f"UDP 64 B {path.label}", seconds, "kpps", 1e-3, run)
    return result


def ping_all(console: Console, lab: Lab) -> bool:
    """Ping every pair and show it; whether all answered."""
    pairs = measure.wait_reachable(lab)
    console.print(report.ping_line(pairs))
    console.print(report.ping_matrix(pairs))
    return all(pair.ok for pair in pairs)


def show_wire(console: Console, lab: Lab) -> None:
    """A few VXLAN packets between the first two nodes, decoded."""
    first = next(iter(paths(lab)), None)
    if first is None:
        return

    def traffic() -> None:
        argv = measure.tool("ping", first.target.ip, "--count", str(CAPTURED // 2), "--interval", "0.05")
        lab.exec(first.source.name, argv)

    lines = capture.capture(lab, first.source.node, traffic, CAPTURED)
    console.print(f"on the wire at {first.source.node} eth0, UDP {capture.PORT}, while {first.source.name} pings:")
    console.print(report.packets(lines))


def run_lab(options: Options, seconds: float, console: Console) -> bool:
    """Up, ping, throughput, capture, summary, down; whether every pair answered and every path carried traffic."""
    lab = Lab(options)
    with_status(console, "bringing the lab up", lab.up)
    try:
        console.print(report.nodes_table(lab))
        good = ping_all(console, lab)
        rows = []
        with gauge(console) as view:
            for path in paths(lab):
                try:
                    one, four = (tcp(view, lab, path, streams, seconds) for streams in (1, 4))
                    small = udp(view, lab, path, seconds)
                    sparse = measure.round_trips(lab, path.source, path.target, interval=0.001)
                except LabError as error:
                    console.print(f"[bold red]{path.label}:[/] {escape(str(error))}")
                    good = False
                    continue
                rows.append(report.path_row(path, one, four, small, sparse))
                console.print(f"{path.label} ({path.kind}): {one.gbps:.2f} Gb/s, {four.gbps:.2f} Gb/s with 4 streams")
        show_wire(console, lab)
        console.print(report.summary(rows, lab.mode))
        console.print(report.memory_line(lab.daemon_pids()))
        for line in lab.dead_daemons():
            console.print(line, style="bold red", markup=False)
            good = False
    finally:
        lab.down()
    console.print("everything removed")
    return good


MEASURES: tuple[tuple[str, str], ...] = (
    ("TCP 1 stream", "Gb/s"),
    ("TCP 4 streams", "Gb/s"),
    ("UDP 64 B", "kpps"),
    ("CPU per GB, 1 stream", "s"),
    ("round trip p50", "us"),
)


def bench_once(view: Gauge, lab: Lab, path: Path, seconds: float) -> list[float]:
    """One value per row of MEASURES."""
    one, four = (tcp(view, lab, path, streams, seconds) for streams in (1, 4))
    small = udp(view, lab, path, seconds)
    sparse = measure.round_trips(lab, path.source, path.target, interval=0.001)
    return [one.gbps, four.gbps, small.kpps, one.cpu_per_gb, sparse.p50]


@contextmanager
def bridged(lab: Lab, path: Path) -> Iterator[Path]:
    """The same path between pods in bridges; pods made for it are gone after the block."""
    made: list[Pod] = []

    def bridge(pod: Pod) -> Pod:
        if pod.kind != "bridge":
            made.append(lab.add_pod(pod.node, "bridge"))
        return pod if pod.kind == "bridge" else made[-1]

    try:
        yield Path(bridge(path.source), bridge(path.target), path.label, path.kind)
    finally:
        for pod in made:
            lab.remove_pod(pod.name)


def bench_lab(lab: Lab, rounds: int, seconds: float, console: Console) -> dict[str, Any]:
    """Kernel VXLAN and the fabric in turn; medians and the median of the rounds' ratios.

    The kernel is measured between pods in bridges, as flannel has them: those of the lab, or two made for it.
    """
    path = next(iter(paths(lab)), None)
    if path is None:
        raise LabError("the comparison needs two nodes with a pod each; this lab has none")
    kernel: list[list[float]] = []
    fabric: list[list[float]] = []
    with bridged(lab, path) as baseline:
        overlay = lab.kernel_overlay()
        try:
            with gauge(console) as view:
                for _ in range(rounds):
                    with overlay.active():
                        kernel.append(bench_once(view, lab, baseline, seconds))
                    fabric.append(bench_once(view, lab, path, seconds))
        finally:
            lab.remove_kernel_overlay()
    result: dict[str, Any] = {"path": path.label, "mode": lab.mode, "rounds": rounds}
    for i, (name, unit) in enumerate(MEASURES):
        ratios = [ours[i] / theirs[i] for ours, theirs in zip(fabric, kernel, strict=True) if theirs[i]]
        values = {"kernel": median(r[i] for r in kernel), "fabric": median(r[i] for r in fabric)}
        result[name] = {"unit": unit, **values, "ratio": median(ratios or [0.0]), "ratios": ratios}
    return result


def bench_table(result: dict[str, Any]) -> Table:
    """The comparison as a table."""
    table = Table("", "kernel VXLAN", "this lab", "ratio", "of each round", title=f"{result['path']}, {result['mode']}")
    for name, unit in MEASURES:
        row = result[name]
        rounds = " ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        table.add_row(f"{name}, {unit}", f"{row['kernel']:.2f}", f"{row['fabric']:.2f}", f"{row['ratio']:.2f}", rounds)
    return table


def with_status(console: Console, text: str, run: Callable[[], object]) -> None:
    """Run something with a spinner on a terminal."""
    if not console.is_terminal:
        run()
        return
    with console.status(text):
        run()
