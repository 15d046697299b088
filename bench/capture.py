"""What a running `fabricctl capture` costs the traffic beside it: TCP and small packets with and without, in turn.

The capture runs on both nodes, on the same two cores as everything else.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

from fabric.lab import Lab, LabError, measure, system

CAPTURES: Mapping[str, tuple[str, ...]] = {
    "of refused packets": ("--verdict", "dropped"),
    "of one quiet pod": ("--inner", "host 10.244.250.1"),
    "of everything, 96 bytes each": ("--snaplen", "96"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """Shares of what went through without a capture, medians of pairs: TCP of one stream, datagrams of 64 bytes."""

    name: str
    tcp: float
    udp: float


@contextmanager
def capturing(lab: Lab, options: Sequence[str]) -> Iterator[None]:
    """Captures on every fabric node for a with-block."""
    with ExitStack() as stack:
        for node in lab.fabric_nodes:
            argv = [sys.executable, "-m", "fabric.cli.main", "capture", "-w", "-", *options,
                    "--run-dir", str(lab.run_dir / node.name / "run")]  # fmt: skip
            process = subprocess.Popen(
                system.inside(node.netns, argv), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert process.stdout is not None
            started = bool(process.stdout.read(1))  # the section's first byte: every tap is open
            stack.enter_context(subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL))
            process.stdout.close()
            stack.callback(_end, process)  # before the reader is waited for
            if not started:
                raise LabError("the capture did not start")
        yield


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def run(pairs: int = 5, seconds: float = 1.0) -> list[Row]:
    """Alternating pairs between two pods on ports of two nodes."""
    rows = []
    with Lab(nodes=2, pods=1) as lab:
        source, target = lab.nodes[0].pods[0], lab.nodes[1].pods[0]

        def figures() -> tuple[float, float]:
            tcp = measure.tcp(lab, source, target, seconds=seconds).gbps
            return tcp, measure.udp(lab, source, target, sizes=(64,), seconds=seconds).kpps

        figures()  # warm
        for name, options in CAPTURES.items():
            shares = []
            for _ in range(pairs):
                without = figures()
                with capturing(lab, options):
                    beside = figures()
                shares.append((beside[0] / without[0], beside[1] / without[1]))
            rows.append(Row(name, *(median(share[place] for share in shares) for place in (0, 1))))
    return rows


def lines(rows: Sequence[Row]) -> list[str]:
    """A table."""
    head = f"{'beside a capture':32} {'TCP, 1 stream':>14} {'UDP 64 B':>10}"
    return [head, *(f"{row.name:32} {row.tcp:14.2f} {row.udp:10.2f}" for row in rows)]
