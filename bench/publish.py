"""Results as files: JSON for machines, a Markdown table and an SVG for readers."""

from __future__ import annotations

import json
import time
from pathlib import Path

from bench import plot, report
from bench.compare import Results


def write(results: Results, directory: Path, extra: Path | None) -> list[Path]:
    """Dated JSON in `directory`, and a copy at `extra`; the paths written."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{time.strftime('%Y%m%d-%H%M%S')}.json", *([extra] if extra else [])]
    for path in paths:
        path.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    return paths


def publish(results: Results, directory: Path) -> list[Path]:
    """results.json, README.md and throughput.svg for the documentation; the paths written."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.json": json.dumps(results.to_json(), indent=1) + "\n",
        "README.md": markdown(results),
        "throughput.svg": plot.svg(results),
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
    return [directory / name for name in texts]


def markdown(results: Results) -> str:
    """The tables with how to read them."""
    machine, chosen = results.machine, results.settings
    lines = [
        "# Benchmarks",
        "",
        f"{machine['date']}, Linux {machine['kernel']}, {machine['cpus']} CPUs ({machine['model']}), "
        f"TCP congestion control {machine['congestion_control']}. Two nodes, sender and receiver share these CPUs. "
        f"{chosen.rounds} rounds, {chosen.seconds:g} s per measurement; each round measures kernel VXLAN first, then "
        "every variant.",
        "",
        "A cell is the median; `x` is the ratio to kernel VXLAN in the same round, on one node to the kernel's bridge: "
        "median [smallest-largest]. Only ratios may be compared with other runs. `./dev bench --publish` makes this "
        "page; the text of the package `bench` says what is measured and how. nebula and wireguard-go encrypt, the "
        "others do not.",
        "",
        "![throughput against kernel VXLAN](throughput.svg)",
    ]
    for mode in results.modes:
        columns = report.columns_of(results, mode)
        lines += ["", f"## {mode}", ""]
        for start in range(0, len(columns), 4):
            part = columns[start : start + 4]
            lines += ["| | " + " | ".join(report.heading(c) for c in part) + " |", "| --- |" + " ---: |" * len(part)]
            lines += ["| " + " | ".join(row) + " |" for row in report.rows(results, mode, part)]
            lines.append("")
    if line := report.lifecycle_line(results):
        lines += [f"Start and change: {line}.", ""]
    if results.notes:
        lines += ["Not measured:", "", *(f"- {note}" for note in results.notes), ""]
    return "\n".join(lines)
