"""`fabricctl flows` and `fabricctl top` against a fake daemon's socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fabric.cli import rates, top
from tests.fabric.cli.test_main import ANSWERS, FLOWS, run, run_dir

__all__ = ["run_dir"]


def ports(*words: str) -> list[int]:
    result = run("flows", *words, "--json")
    assert result.exit_code == 0, result.output
    return [item["sport"] for item in json.loads(result.stdout)["flows"]]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), [40000, 40001, 40002, 40003, 0]),
        (("--pod", "shop/web-1"), [40000, 40001, 40002, 0]),
        (("--pod", "web-1", "--proto", "TCP"), [40000, 40002]),
        (("--pod", "10.244.1.5", "--proto", "17"), [40001]),
        (("--peer", "n2"), [40000, 40001, 40003, 0]),
        (("--peer", "192.0.2.3"), [40002]),
        (("--peer", "10.244.2.0/24", "--proto", "47"), [0]),
        (("--limit", "2"), [40000, 40001]),
    ],
)
def test_which_are_shown(run_dir: Path, words: tuple[str, ...], expected: list[int]) -> None:
    assert ports(*words, "--run-dir", str(run_dir)) == expected


def test_a_table_with_names(run_dir: Path) -> None:
    shown = run("flows", "--limit", "1", "--run-dir", str(run_dir))
    for word in ("tcp", "10.244.1.5:40000", "shop/web-1", "10.244.2.7:80", "n2", "established", "underlay", "3 s"):
        assert word in shown.stdout
    assert shown.stderr == "there are more than 1: choose with --pod, --peer and --proto, or raise --limit\n"
    assert "(reset)" in run("flows", "--proto", "47", "--run-dir", str(run_dir)).stdout


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("--pod", "x"), 1, "fabricctl: no pod x on this node: see fabricctl pods"),
        (("--peer", "x"), 1, "fabricctl: no peer x: see fabricctl peers"),
        (("--proto", "x"), 2, "'x' is neither of tcp"),
    ],
)
def test_unknown_names(run_dir: Path, words: tuple[str, ...], code: int, line: str) -> None:
    result = run("flows", *words, "--run-dir", str(run_dir))
    assert result.exit_code == code
    assert line.removeprefix("'x' is neither of tcp") in result.stderr


def look(time: float, **counters: int) -> rates.Look:
    answers: Any = ANSWERS
    flows = [{**flow, "protocol": "tcp"} for flow in FLOWS]
    pods = [{**item, "traffic": None} for item in answers["endpoint.list"]]
    return rates.Look(time, answers["status"], counters, answers["peers"], pods, flows, True)


def test_rates_between_two_looks() -> None:
    found = rates.view(look(1.0, egress_packets=100, drop_a=5, drop_b=1), look(3.0, egress_packets=300, drop_a=7))
    assert (found["rates"]["egress_packets"], found["drops"]) == (100.0, {"a": 1.0})
    assert {item["name"]: item["flows"] for item in found["pods"]} == {"shop/web-1": 4, "c2": 0}
    assert [(item["node"], item["flows"]) for item in found["peers"]][:2] == [("n2", 4), ("192.0.2.3", 1)]
    assert found["flows"]["states"] == {"established": 4, "replied": 1}


def test_a_restart_between_two_looks_gives_no_negative_rates() -> None:
    before, after = look(1.0, egress_packets=100), look(2.0, egress_packets=30)
    restarted = rates.Look(2.0, {**after.status, "pid": 8}, after.counters, after.peers, after.pods, (), True)
    assert rates.view(before, restarted)["rates"]["egress_packets"] == 30
    assert rates.view(before, after)["rates"]["egress_packets"] == 0


def test_rates_of_a_pod() -> None:
    def with_traffic(time: float, number: int) -> rates.Look:
        plain = look(time)
        counts = {"frames_from": number, "bytes_from": 10 * number, "frames_to": 0, "bytes_to": 0, "drops": number}
        return rates.Look(time, plain.status, {}, plain.peers, [{**plain.pods[0], "traffic": counts}], (), True)

    (pod,) = rates.view(with_traffic(1.0, 5), with_traffic(3.0, 25))["pods"]
    assert pod["rates"] == {"frames_from": 10, "bytes_from": 100, "frames_to": 0, "bytes_to": 0, "drops": 10}
    (pod,) = rates.view(look(1.0), with_traffic(2.0, 4))["pods"]
    assert pod["rates"]["frames_from"] == 4
    assert rates.view(look(1.0), look(2.0))["pods"][0]["rates"] is None


def test_rates_of_a_peer() -> None:
    def with_traffic(time: float, number: int) -> rates.Look:
        plain = look(time)
        counts = {"packets_to": number, "bytes_to": 10 * number, "packets_from": 0, "bytes_from": 0}
        return rates.Look(time, plain.status, {}, [{**plain.peers[0], "traffic": counts}], (), (), True)

    view = rates.view(with_traffic(1.0, 5), with_traffic(3.0, 25))
    assert view["peers"][0]["rates"] == {"packets_to": 10, "bytes_to": 100, "packets_from": 0, "bytes_from": 0}
    assert top.render(view, every=True) is not None


def test_top_once(run_dir: Path) -> None:
    shown = run("top", "--once", "--interval", "0.2", "--run-dir", str(run_dir))
    assert shown.exit_code == 0, shown.output
    for word in ("n1", "5", "shop/web-1", "n2", "no drops", "pods to peers", "! task lease is not running"):
        assert word in shown.stdout
    found = run("top", "--once", "--json", "--interval", "0.2", "--run-dir", str(run_dir))
    assert json.loads(found.stdout)["rates"]["egress_packets"] == 0


def test_top_without_a_daemon_is_one_line(tmp_path: Path) -> None:
    result = run("top", "--run-dir", str(tmp_path))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
