"""The comparison: rounds over modes and variants, and what comes out as one plain object.

{"format": 1, "machine": {...}, "settings": {...}, "notes": [...], "lifecycle": [{figure: value}],
 "modes": {"wire": [{variant: {figure: value}}, ...one per round...], ...}}
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import lifecycle
from bench.measures import MEASURES, Figures, Load
from bench.rig import Rig, Unavailable
from bench.variants import Variant
from fabric.lab import LabError
from fabric.lab.plan import MODES, Mode

FORMAT = 1
SHORT = ("tcp1", "tcp4", "udp64", "sparse")
OTHER_MODES = ("tcp1", "tcp4", "udp64", "mixed")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is run. `measures` maps a mode to the loads in it."""

    rounds: int
    seconds: float
    variants: Sequence[Variant]
    measures: dict[Mode, Sequence[str]]
    lifecycle: bool = True

    def steps(self) -> int:
        """Measurements in all."""
        return self.rounds * sum(len(self.of_mode(mode)) * len(names) for mode, names in self.measures.items())

    def of_mode(self, mode: Mode) -> list[Variant]:
        """The variants that are measured in a mode: on one node only in the first, since no underlay is on the way."""
        return [v for v in self.variants if not v.same_node or mode == next(iter(self.measures))]


def settings(
    quick: bool,
    rounds: int | None,
    modes: Sequence[str],
    variants: Sequence[Variant],
    measures: Sequence[str],
    seconds: float | None,
) -> Settings:
    """Defaults for what was not given; latency is measured in wire mode only, unless measures were named."""
    chosen: list[Mode] = [m for m in MODES if m in modes] or ([MODES[0]] if quick else list(MODES))
    plan: dict[Mode, Sequence[str]] = {}
    for mode in chosen:
        default: Sequence[str] = SHORT if quick else (tuple(MEASURES) if mode == "wire" else OTHER_MODES)
        plan[mode] = [name for name in MEASURES if name in (measures or default)]
    return Settings(rounds or (1 if quick else 3), seconds or (0.6 if quick else 1.0), variants, plan, not measures)


@dataclass
class Results:
    """Everything that was measured."""

    settings: Settings
    machine: dict[str, Any]
    modes: dict[str, list[dict[str, Figures]]] = field(default_factory=dict)
    lifecycle: list[Figures] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as above."""
        chosen = self.settings
        return {
            "format": FORMAT,
            "machine": self.machine,
            "settings": {
                "rounds": chosen.rounds,
                "seconds": chosen.seconds,
                "variants": {v.name: v.label for v in chosen.variants},
                "measures": {mode: list(names) for mode, names in chosen.measures.items()},
            },
            "notes": self.notes,
            "lifecycle": self.lifecycle,
            "modes": self.modes,
        }

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "model": model[0] if model else platform.machine(),
        "congestion_control": control,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def measure_variant(rig: Rig, variant: Variant, names: Sequence[str], results: Results, progress: Progress) -> Figures:
    """All measures of one variant in one round; what fails is noted and left out."""
    figures: Figures = {}
    task = progress.task_ids[0]
    done = 0
    try:
        with rig.carrying(variant) as (source, target):
            load = Load(rig, variant, source, target, results.settings.seconds)
            for name in names:
                progress.update(task, description=f"{rig.lab.mode}: {variant.label}: {name}")
                try:
                    figures |= MEASURES[name](load)
                except LabError as error:
                    results.note(f"{rig.lab.mode}, {variant.label}, {name}: {error}")
                progress.advance(task)
                done += 1
    except Unavailable as error:
        results.note(str(error))
    except LabError as error:
        results.note(f"{rig.lab.mode}, {variant.label}: {error}")
    progress.advance(task, len(names) - done)
    return figures


def run(chosen: Settings, screen: Console) -> Results:
    """Measure everything; raises LabError only when the lab itself cannot be made."""
    results = Results(chosen, machine())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        progress.add_task("bringing the lab up", total=chosen.steps())
        with Rig() as rig:
            for mode, names in chosen.measures.items():
                rig.set_mode(mode)
                rounds = results.modes.setdefault(mode, [])
                for number in range(chosen.rounds):
                    figures = {v.name: measure_variant(rig, v, names, results, progress) for v in chosen.of_mode(mode)}
                    rounds.append({name: found for name, found in figures.items() if found})
                    if not screen.is_terminal:
                        screen.print(f"{mode}: round {number + 1} of {chosen.rounds} done")
    if chosen.lifecycle:
        try:
            results.lifecycle = lifecycle.run(max(chosen.rounds, 1))
        except LabError as error:
            results.note(f"start and peer times: {error}")
    return results
