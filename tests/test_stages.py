"""The test runner: which stages words stand for, the closing line, and the contract for cimports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.stages import ROOT, WITH_ALONE, Result, Stage, choose, report, run_stage
from tests.stages_contracts import broken_cimports


def names(*words: str) -> list[str]:
    return [stage.name for stage in choose(words)]


def test_words() -> None:
    fast = ["ruff", "mypy", "imports", "unit"]
    assert names("fast") == fast
    assert names() == names("all") == [*fast, "long", "root", "alone", "fuzz", "asan", "bench"]
    assert names("fuzz", "unit", "fuzz") == ["unit", "fuzz"]
    assert names("fast", "asan") == [*names("fast"), "asan"]
    with pytest.raises(ValueError, match="no such stage: nonsense \\(there are fast, all, ruff"):
        names("unit", "nonsense")


def test_closing_line() -> None:
    results = [Result("a", "passed", 1.0), Result("b", "failed", 2.0), Result("c", "passed", 0.5)]
    assert report(results).splitlines()[-1] == "2 passed, 1 failed"
    assert report([*results, Result("d", "skipped", 0.0)]).splitlines()[-1] == "2 passed, 1 failed, 1 skipped"


@pytest.mark.parametrize(("code", "state"), [("pass", "passed"), ("raise SystemExit(3)", "failed")])
def test_stage_state(code: str, state: str, capfd: pytest.CaptureFixture[str]) -> None:
    result = run_stage(Stage("demo", "a demonstration", [sys.executable, "-c", code], 30))
    assert (result.stage, result.state) == ("demo", state)
    assert "== demo: a demonstration" in capfd.readouterr().out


@pytest.mark.slow
def test_stage_that_never_ends_is_interrupted(capfd: pytest.CaptureFixture[str]) -> None:
    code = "try: __import__('time').sleep(60)\nexcept KeyboardInterrupt: print('cleaned up')"
    assert run_stage(Stage("demo", "slow", [sys.executable, "-c", code], 1)).state == "failed"
    out = capfd.readouterr().out
    assert "longer than 1 s" in out
    assert "cleaned up" in out


@pytest.mark.parametrize(("fatal", "state"), [(True, "failed"), (False, "skipped")])
def test_stage_that_cannot_run(fatal: bool, state: str) -> None:
    stage = Stage("demo", "absent", [sys.executable, "-c", "raise SystemExit(1)"], 30, lambda: (fatal, "why"))
    assert run_stage(stage).state == state


def test_tests_that_run_alone_are_where_their_stage_looks_for_them() -> None:
    mark = "pytest.mark." + "alone"
    marked = {path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py") if mark in path.read_text()}
    assert marked
    assert [str(path) for path in marked if not str(path).startswith(tuple(f"{name}/" for name in WITH_ALONE))] == []


@pytest.mark.parametrize(
    ("file", "text", "broken"),
    [
        ("tun/a.pxd", "from encap.inner cimport Inner\n", True),
        ("tun/a.pxd", "cimport fabric.forward.lane\n", True),
        ("encap/a.py", "from cython.cimports.tun.split import split_open\n", True),
        ("routes/a.py", "def f():\n    from cython.cimports.encap.bytes import load16\n", True),
        ("routes/a.py", "import cython.cimports.fabric.forward.lane\n", True),
        ("tun/a.pxd", "from tun.vnet cimport VnetHeader\nfrom libc.stdint cimport uint8_t\n", False),
        ("encap/a.py", "from cython.cimports.encap.bytes import load16\n", False),
        ("tun/a.pxd", "# like encap.inner, but cimport nothing\n", False),
    ],
)
def test_cimport_contract(tmp_path: Path, file: str, text: str, broken: bool) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(text)
    assert bool(broken_cimports(tmp_path)) == broken


def test_cimports_of_this_tree() -> None:
    assert broken_cimports() == []
