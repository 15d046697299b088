"""The test runner: which stages words stand for, the closing line, and the contract for cimports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.stages import Result, Stage, choose, report, run_stage, run_stages
from tests.stages_contracts import broken_cimports


def names(*words: str) -> list[str]:
    return [stage.name for stage in choose(words)]


def test_words() -> None:
    assert names("fast") == ["ruff", "mypy", "imports", "unit"]
    assert names() == names("all") == ["ruff", "mypy", "imports", "unit", "root", "fuzz", "alone", "asan", "bench"]
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


def test_stage_that_never_ends_is_interrupted(capfd: pytest.CaptureFixture[str]) -> None:
    code = "try: __import__('time').sleep(60)\nexcept KeyboardInterrupt: print('cleaned up')"
    assert run_stage(Stage("demo", "slow", [sys.executable, "-c", code], 1)).state == "failed"
    out = capfd.readouterr().out
    assert "longer than 1 s" in out
    assert "cleaned up" in out


@pytest.mark.parametrize(("code", "state"), [(0, "passed"), (3, "failed")])
def test_stage_beside_another(code: int, state: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The first waits for what the second writes: they run at the same time, and what is said comes in order."""
    mark = f"__import__('pathlib').Path({str(tmp_path / 'mark')!r})"
    wait = f"import time\nwhile not {mark}.exists(): time.sleep(0.01)\nprint('first said')"
    write = f"print('second said')\n{mark}.touch()\nraise SystemExit({code})"
    first = Stage("first", "waits", [sys.executable, "-c", wait], 30)
    second = Stage("second", "goes beside", [sys.executable, "-c", write], 30, beside="first")
    assert [result.state for result in run_stages([first, second])] == ["passed", state]
    said = capfd.readouterr().out
    assert said.index("== first") < said.index("first said") < said.index("== second") < said.index("second said")


def test_stage_whose_companion_is_not_run(capfd: pytest.CaptureFixture[str]) -> None:
    second = Stage("second", "goes beside", [sys.executable, "-c", "print('second said')"], 30, beside="first")
    assert [result.state for result in run_stages([second])] == ["passed"]
    assert "second said" in capfd.readouterr().out


@pytest.mark.parametrize(("fatal", "state"), [(True, "failed"), (False, "skipped")])
def test_stage_that_cannot_run(fatal: bool, state: str) -> None:
    stage = Stage("demo", "absent", [sys.executable, "-c", "raise SystemExit(1)"], 30, lambda: (fatal, "why"))
    assert run_stage(stage).state == state


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
