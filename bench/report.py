"""Tables and lines for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.compare import Results
from bench.gates import Result
from bench.measures import FIGURES
from bench.stats import Verdict, ratios, spread, values
from bench.variants import Variant

COLUMNS = (
    "tcp1_gbps",
    "tcp4_gbps",
    "tcp1_cpu",
    "tcp1_own_cpu",
    "udp64_kpps",
    "udp64x16_kpps",
    "mixed_kpps",
    "sparse_p50",
    "sparse_p99",
    "rr_p50",
    "rr_p99",
    "loaded_p50",
    "loaded_p99",
    "idle_mb",
    "loaded_mb",
)
LIFECYCLE = (("start_s", "start to forwarding", "s", 2), ("peer_ms", "peer added to first packet", "ms", 0))
NO_BASELINE = {"idle_mb", "loaded_mb", "tcp1_own_cpu"}
GATE_HEAD = f"{'':6} {'gate':62} {'figure':>20} {'floor':>8} {'aim':>6}"


def columns_of(results: Results, mode: str) -> list[str]:
    """Figures that at least one variant has in this mode."""
    return [c for c in COLUMNS if any(values(results.modes[mode], v.name, c) for v in results.settings.variants)]


def cell(results: Results, mode: str, variant: Variant, figure: str) -> str:
    """Median of the figure, and the ratio to the variant's baseline of the same rounds with its range."""
    rounds = results.modes[mode]
    found = spread(values(rounds, variant.name, figure))
    if found is None:
        return "-"
    text = f"{found.median:.{FIGURES[figure].digits}f}"
    ratio = spread(ratios(rounds, variant.name, variant.baseline, figure))
    if variant.name == variant.baseline or figure in NO_BASELINE or ratio is None:
        return text
    return f"{text}  x{ratio.text()}"


def heading(figure: str) -> str:
    """Label and unit."""
    return f"{FIGURES[figure].label}, {FIGURES[figure].unit}"


def rows(results: Results, mode: str, columns: Sequence[str]) -> list[list[str]]:
    """Label and cells of every variant that was measured in this mode."""
    return [
        [variant.label, *(cell(results, mode, variant, column) for column in columns)]
        for variant in results.settings.variants
        if any(values(results.modes[mode], variant.name, column) for column in columns)
    ]


def lifecycle_line(results: Results) -> str:
    """Start and peer times in one sentence; empty when they were not measured."""
    parts = []
    for name, label, unit, digits in LIFECYCLE:
        found = spread(figures[name] for figures in results.lifecycle if name in figures)
        if found:
            parts.append(f"{label} {found.text(digits)} {unit}")
    return ", ".join(parts)


def show(results: Results, console: Console) -> None:
    """One table per mode and group of figures, then what was left out and why."""
    for mode in results.modes:
        columns = columns_of(results, mode)
        for start in range(0, len(columns), 4):
            part = columns[start : start + 4]
            table = Table(title=f"{mode}: median, x = ratio to the kernel in the same round [smallest-largest]")
            table.add_column("")
            for column in part:
                table.add_column(heading(column), justify="right")
            for row in rows(results, mode, part):
                table.add_row(*(escape(text) for text in row))
            console.print(table)
    if line := lifecycle_line(results):
        console.print(escape(line))
    for note in results.notes:
        console.print(f"not measured: {escape(note)}")


def gate_line(result: Result) -> str:
    """Verdict, name, figure, floor and aim of a decided gate."""
    gate = result.gate
    figure = result.value.text(gate.digits) if result.value else "not measured"
    sign = ">=" if gate.better == "higher" else "<="
    word = "pass" if result.verdict is Verdict.PASS else "[bold red]FAIL[/]"
    pairs = f"  {result.value.count} pairs" if result.value and result.value.count > 1 else ""
    note = f"  {result.note}" if result.note else ""
    line = f"{gate.name:62} {figure:>20} {sign} {gate.floor:<5g} {gate.aim:>6.3g}{pairs}{note}"
    return f"{word}   {escape(line)}"


def gate_summary(results: Sequence[Result]) -> str:
    """One sentence at the end."""
    missed = [result.gate.name for result in results if result.verdict is not Verdict.PASS]
    if missed:
        return f"{len(missed)} of {len(results)} gates missed: {'; '.join(missed)}"
    return f"all {len(results)} gates hold"
