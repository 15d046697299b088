"""The floors of the design as gates: each must hold, in a short form, on every machine that runs `./dev test`.

Every gate is a ratio of two variants of the same round (or, without a baseline, a plain figure). A series is one
load in one underlay mode; it runs rounds until all its gates are decided (`stats.decide`): at least MINIMUM, at most
MAXIMUM pairs, and no further ones once BUDGET seconds are used up. What is missed then is measured from the start
again after a pause, SITTINGS times in all: neighbours that use up a machine's memory do so for minutes, and a real loss
shows in every sitting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from bench import cases, cni_start, lifecycle
from bench.measures import MEASURES, Figures, Load
from bench.rig import Rig, Unavailable
from bench.stats import Spread, Verdict, decide, ratios, spread, values
from bench.variants import BY_NAME, FABRIC, KERNEL, POD_PORT, UNBATCHED
from fabric.lab import LabError
from fabric.lab.plan import Mode

MINIMUM = 3
MAXIMUM = 12
BUDGET = 500.0
SECONDS = 1.2
SITTINGS = 5
PAUSE = 15.0


@dataclass(frozen=True, slots=True)
class Gate:
    """`figure` of `variant`, divided by that of `baseline` when there is one, against `floor`; `aim` is for the eye."""

    name: str
    variant: str
    figure: str
    floor: float
    aim: float
    baseline: str | None = None
    better: str = "higher"
    digits: int = 2

    def found(self, rounds: Iterable[dict[str, Figures]]) -> list[float]:
        """The values of all rounds that have them."""
        if self.baseline is None:
            return values(rounds, self.variant, self.figure)
        return ratios(rounds, self.variant, self.baseline, self.figure)

    def uses(self) -> set[str]:
        """Variants that have to be measured for it."""
        return {self.variant} | ({self.baseline} if self.baseline else set())


Wanted = Callable[[str], bool]
"""Whether the gate of a name is to be measured in this sitting."""


@dataclass(frozen=True, slots=True)
class Series:
    """Gates that are decided by the same load."""

    mode: Mode
    measure: str
    gates: tuple[Gate, ...]

    @property
    def group(self) -> str:
        """Its name for `--only`."""
        return f"{self.mode} {self.measure}"

    def part(self, wanted: Wanted) -> Series:
        """The same load for some of the gates."""
        return replace(self, gates=tuple(gate for gate in self.gates if wanted(gate.name)))


@dataclass(frozen=True, slots=True)
class Result:
    """A decided gate; `note` says why there is no value."""

    gate: Gate
    verdict: Verdict
    value: Spread | None
    note: str = ""


def against_kernel(name: str, figure: str, floor: float, aim: float, **more: str) -> Gate:
    """The node port against kernel VXLAN."""
    variant = more.pop("variant", FABRIC.name)
    return Gate(f"{name} / kernel VXLAN", variant, figure, floor, aim, KERNEL.name, **more)  # type: ignore[arg-type]


def against(other: str, figure: str, floor: float, aim: float, name: str, better: str = "higher") -> Gate:
    """The node port against another user-space tunnel."""
    return Gate(f"{name} / {BY_NAME[other].label}", FABRIC.name, figure, floor, aim, other, better)


SERIES: tuple[Series, ...] = (
    Series(
        "wire",
        "tcp1",
        (
            against_kernel("wire, TCP 1 stream", "tcp1_gbps", 0.70, 1.0),
            against_kernel("wire, CPU per GB, 1 stream", "tcp1_cpu", 2.2, 1.3, better="lower"),
            *(against(other, "tcp1_gbps", 4.5, 7, "wire, TCP 1 stream") for other in (UNBATCHED.name, "tinc", "fastd")),
        ),
    ),
    Series("wire", "tcp4", (against_kernel("wire, TCP 4 streams", "tcp4_gbps", 0.55, 0.9),)),
    Series(
        "wire",
        "udp64",
        (
            against_kernel("wire, UDP 64 B, node port", "udp64_kpps", 1.3, 2),
            against_kernel("wire, UDP 64 B, pod port", "udp64_kpps", 1.6, 3, variant=POD_PORT.name),
        ),
    ),
    Series("wire", "mixed", (against_kernel("wire, UDP mixed sizes, 16 flows", "mixed_kpps", 0.75, 1.2),)),
    Series(
        "wire",
        "sparse",
        (
            against("tinc", "sparse_p50", 1.0, 0.7, "wire, round trip one per ms, p50", "lower"),
            against("tinc", "sparse_p99", 1.2, 0.8, "wire, round trip one per ms, p99", "lower"),
        ),
    ),
    Series(
        "veth",
        "tcp1",
        (against_kernel("veth, TCP 1 stream, pod port", "tcp1_gbps", 0.50, 0.8, variant=POD_PORT.name),),
    ),
    Series("bare", "tcp1", (against_kernel("bare, TCP 1 stream", "tcp1_gbps", 0.60, 1.0),)),
)

LIFECYCLE: tuple[Gate, ...] = (
    Gate("resident memory, idle, MB", FABRIC.name, "idle_mb", 60, 40, better="lower", digits=0),
    Gate("start to forwarding, s", FABRIC.name, "start_s", 1.0, 0.3, better="lower"),
    Gate("peer added to first packet, ms", FABRIC.name, "peer_ms", 100, 20, better="lower", digits=0),
)

Report = Callable[[Result], None]


@dataclass
class Runner:
    """Runs series after series; `report` gets every gate once it is decided."""

    report: Report
    seconds: float = SECONDS
    maximum: int = MAXIMUM
    pause: float = PAUSE
    started: float = field(default_factory=time.monotonic)
    results: list[Result] = field(default_factory=list)

    def decided(self, gate: Gate, rounds: Sequence[dict[str, Figures]], final: bool) -> Verdict:
        """The verdict so far; when `final`, one of PASS and FAIL."""
        found = gate.found(rounds)
        maximum = len(found) if final else self.maximum
        verdict = decide(found, gate.floor, gate.better, min(MINIMUM, maximum) or 1, maximum)
        return Verdict.FAIL if final and verdict is Verdict.MORE else verdict

    def finish(self, gate: Gate, rounds: Sequence[dict[str, Figures]], verdict: Verdict, note: str = "") -> None:
        """Remember and show a decided gate."""
        result = Result(gate, verdict, spread(gate.found(rounds)), note)
        self.results.append(result)
        self.report(result)

    def over(self) -> bool:
        """Whether the time for more pairs is used up."""
        return time.monotonic() - self.started > BUDGET

    def series(self, rig: Rig, series: Series) -> None:
        """Rounds until every gate of the series is decided."""
        rig.set_mode(series.mode)
        rounds: list[dict[str, Figures]] = []
        failures: dict[str, int] = {}
        notes: dict[str, str] = {}
        open_gates = list(series.gates)
        while open_gates:
            wanted = set.union(*(gate.uses() for gate in open_gates))
            names = [name for name in BY_NAME if name in wanted and name not in notes]
            rounds.append(self.round(rig, series.measure, names, failures, notes))
            final = self.over() or len(rounds) >= self.maximum
            for gate in list(open_gates):
                note = next((notes[name] for name in gate.uses() if name in notes), "")
                verdict = Verdict.FAIL if note else self.decided(gate, rounds, final)
                if verdict is not Verdict.MORE:
                    open_gates.remove(gate)
                    self.finish(gate, rounds, verdict, note)

    def round(
        self, rig: Rig, measure: str, names: Sequence[str], failures: dict[str, int], notes: dict[str, str]
    ) -> dict[str, Figures]:
        """Figures by variant, kernel VXLAN first. What is not installed or fails twice gets a note with the reason."""
        figures: dict[str, Figures] = {}
        for name in names:
            variant = BY_NAME[name]
            try:
                with rig.carrying(variant) as (source, target):
                    figures[name] = MEASURES[measure](Load(rig, variant, source, target, self.seconds))
            except LabError as error:
                failures[name] = failures.get(name, 0) + 1
                if isinstance(error, Unavailable) or failures[name] > 1:
                    notes[name] = str(error)
        return figures

    def lifecycle(self, wanted: Wanted) -> None:
        """Start-up and memory."""
        gates = [gate for gate in LIFECYCLE if wanted(gate.name)]
        if not gates:
            return
        rounds = [{FABRIC.name: figures} for figures in lifecycle.run(MINIMUM)]
        verdicts = {gate: self.decided(gate, rounds, False) for gate in gates}
        if Verdict.MORE in verdicts.values() and not self.over():
            rounds += [{FABRIC.name: figures} for figures in lifecycle.run(self.maximum - MINIMUM)]
        for gate in gates:
            self.finish(gate, rounds, self.decided(gate, rounds, True))

    def hot(self, wanted: Wanted) -> None:
        """Hot functions against their reference, tables of 1,000 peers against one."""
        for case in cases.CASES:
            name = f"{case.name} / {case.reference}"
            if wanted(name):
                self.hot_result(name, cases.measure_case(case).ratio, case.limit, 1)
        for scaling in cases.SCALINGS:
            if scaling.limit is not None and wanted(scaling.name):
                self.hot_result(scaling.name, cases.measure_scaling(scaling).ratio, scaling.limit, 2)

    def plugin(self, wanted: Wanted) -> None:
        """The start of the CNI plugin, which every pod waits for."""
        name = "processor time of the CNI plugin's start / of its interpreter's"
        if wanted(name):
            self.hot_result(name, cni_start.measure().ratio, cni_start.LIMIT, 1)

    def hot_result(self, name: str, ratio: float, limit: float, digits: int) -> None:
        """A ratio that needs no rounds as a gate; its aim is to stay where it was recorded."""
        gate = Gate(name, "hot", "ratio", limit, limit / 1.6 if digits == 1 else 1.1, better="lower", digits=digits)
        self.finish(gate, [{"hot": {"ratio": ratio}}], self.decided(gate, [{"hot": {"ratio": ratio}}], True))

    def run(self, only: str = "") -> bool:
        """All gates, or those of one group (hot, cni, lifecycle, or a series such as "wire tcp1"); whether all hold."""
        self.sitting(only, lambda name: True)
        for _ in range(SITTINGS - 1):
            missed = {result.gate.name for result in self.results if result.verdict is not Verdict.PASS}
            if not missed or self.over():
                break
            self.results = [result for result in self.results if result.gate.name not in missed]
            time.sleep(self.pause)
            self.sitting(only, missed.__contains__)
        if not self.results:
            raise LabError(f"there is no group of gates called {only}")
        return all(result.verdict is Verdict.PASS for result in self.results)

    def sitting(self, only: str, wanted: Wanted) -> None:
        """Measure and decide the wanted gates of a group."""
        if only in ("", "hot"):
            self.hot(wanted)
        if only in ("", "cni"):
            self.plugin(wanted)
        if only in ("", "lifecycle"):
            self.lifecycle(wanted)
        groups = [series.part(wanted) for series in SERIES if only in ("", series.mode, series.measure, series.group)]
        chosen = [series for series in groups if series.gates]
        if chosen:
            with Rig() as rig:
                for series in chosen:
                    self.series(rig, series)
