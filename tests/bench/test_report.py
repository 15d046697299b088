"""What readers get from a comparison: tables, plot, JSON and gate lines, also when something is missing."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from bench import plot, publish, report
from bench.compare import Results, settings
from bench.gates import SERIES, Gate, Result, Runner
from bench.stats import Spread, Verdict
from bench.variants import BY_NAME, KERNEL, VARIANTS, choose

MACHINE = {"kernel": "6.1", "cpus": 2, "model": "x", "congestion_control": "bbr", "date": "2026-01-01"}


def results() -> Results:
    chosen = settings(False, 2, ["wire"], choose(["vxlan", "tinc"]), [], None)
    made = Results(chosen, MACHINE, lifecycle=[{"start_s": 0.2, "peer_ms": 12.0}], notes=["fastd <is> not installed"])
    made.modes["wire"] = [
        {"kernel": {"tcp1_gbps": 10.0, "udp64_kpps": 300.0}, "vxlan": {"tcp1_gbps": 9.0, "udp64_kpps": 600.0}},
        {"kernel": {"tcp1_gbps": 8.0}, "vxlan": {"tcp1_gbps": 8.0, "idle_mb": 35.0}},
    ]
    return made


def test_table_has_medians_ratios_and_only_what_was_measured() -> None:
    found = results()
    columns = report.columns_of(found, "wire")
    assert columns == ["tcp1_gbps", "udp64_kpps", "idle_mb"]
    assert report.rows(found, "wire", columns) == [
        ["kernel VXLAN", "9.00", "300", "-"],
        ["podfabric, node port", "8.50  x0.95 [0.90-1.00]", "600  x2.00", "35"],
    ]


def test_published_files() -> None:
    text = publish.markdown(results())
    assert "| podfabric, node port | 8.50  x0.95 [0.90-1.00] | 600  x2.00 | 35 |" in text
    assert "start to forwarding 0.20 s, peer added to first packet 12 ms" in text
    assert "- fastd <is> not installed" in text
    assert json.loads(json.dumps(results().to_json()))["modes"]["wire"][1]["vxlan"]["idle_mb"] == 35.0


def test_plot_is_well_formed_and_labelled() -> None:
    root = ElementTree.fromstring(plot.svg(results()))
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"podfabric, node port", "0.95", "2.00", "wire: ratio to kernel VXLAN"} <= set(words)
    assert "kernel VXLAN" not in words


def test_plot_of_nothing_is_still_a_picture() -> None:
    ElementTree.fromstring(plot.svg(Results(results().settings, MACHINE, modes={"wire": []})))


def test_choose_keeps_the_baseline_first_and_names_what_is_unknown() -> None:
    assert [variant.name for variant in choose(["tinc", "vxlan"])] == ["kernel", "vxlan", "tinc"]
    assert choose(list(BY_NAME)) == list(VARIANTS)
    with pytest.raises(ValueError, match="no variant zerotier"):
        choose(["zerotier"])


def test_every_gate_names_variants_that_exist() -> None:
    for series in SERIES:
        for gate in series.gates:
            assert gate.uses() <= set(BY_NAME)
            assert gate.baseline != gate.variant


GATE = Gate("wire, TCP", "vxlan", "tcp1_gbps", 0.7, 1.0, KERNEL.name)


def test_gate_line_shows_figure_floor_aim_and_reason() -> None:
    good = report.gate_line(Result(GATE, Verdict.PASS, Spread(0.9, 0.8, 1.0, 3)))
    assert good.split() == ["pass", "wire,", "TCP", "0.90", "[0.80-1.00]", ">=", "0.7", "1", "3", "pairs"]
    bad = report.gate_line(Result(GATE, Verdict.FAIL, None, "tinc is not installed; apt-get install tinc"))
    assert "FAIL" in bad
    assert "not measured" in bad
    assert bad.endswith("apt-get install tinc")


def test_final_decision_is_never_open_and_no_value_is_a_failure() -> None:
    runner = Runner(lambda result: None, maximum=8)
    rounds = results().modes["wire"]
    assert runner.decided(GATE, rounds, final=False) is Verdict.MORE
    assert runner.decided(GATE, rounds, final=True) is Verdict.PASS
    assert runner.decided(GATE, [], final=True) is Verdict.FAIL
