"""docs/cni.md against the code: keys, error codes, and the requirements of the specification with their tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fabric.cni import errors
from fabric.cni.kinds import NAMES
from fabric.cni.kinds.bridge import UNSUPPORTED
from fabric.ipam import errors as ipam_errors

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cni.md"
MUSTS = [
    78, 112, 113, 114, 115, 116, 119, 121, 124, 141, 149, 199, 202, 219, 226, 228, 233, 245, 247, 271, 276, 297, 298,
    307, 312, 313, 314, 334, 340, 350, 352, 386, 388, 392, 414, 415, 416, 417, 418, 427, 433, 444, 460, 488, 498, 499,
    500, 543, 548, 561, 567, 571, 599, 604, 609, 647, 649, 661,
]  # fmt: skip
"""Lines of SPEC.md at commit 3f51e88 with the word "must": `git show 3f51e88:SPEC.md | grep -niw must`."""


def rows(title: str) -> list[list[str]]:
    """The cells of the table under `## title`, without its head."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[title]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def sources() -> str:
    return "".join(path.read_text() for path in sorted((ROOT / "fabric" / "cni").rglob("*.py")))


def test_every_key_that_the_code_reads_has_a_row_and_the_reverse() -> None:
    read = set(re.findall(r"\bconf\.(?:text|flag|path|section)\(\"(\w+)\"", sources()))
    read |= {"mtu"}
    from_the_runtime = {"args", "runtimeconfig"}
    documented = {cells[0].strip("`").lower() for cells in rows("Keys")}
    assert documented == read - from_the_runtime


def test_kinds_and_refused_keys_are_named() -> None:
    assert [cells[0].strip("`") for cells in rows("Kinds of interfaces")] == list(NAMES)
    named = {name.lower() for name in re.findall(r"`(\w+)`", PAGE.read_text())}
    assert set(UNSUPPORTED) <= named


def test_every_error_code() -> None:
    codes = {
        value
        for module in (errors, ipam_errors)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int)
    }
    assert [int(cells[0].strip("`")) for cells in rows("Error codes")] == sorted(codes)


def functions_of(name: str) -> set[str]:
    """The test functions of all files of this name."""
    return {
        node.name
        for path in (ROOT / "tests").rglob(name)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.slow
def test_every_must_of_the_specification_has_a_row_with_tests_that_exist() -> None:
    table = rows("The specification, requirement by requirement")
    assert [int(cells[0]) for cells in table] == MUSTS
    assert len(MUSTS) == 58
    for line, _, _, shown in table:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", shown)
        assert named, f"line {line} names no test"
        for file, function in named:
            assert function in functions_of(file), f"line {line}: there is no {file}::{function}"
