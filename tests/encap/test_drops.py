"""Drop reasons: the enum, its stub and its texts say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from encap.drops import TEXTS, DropReason

PACKAGE = Path(__file__).resolve().parents[2] / "encap"


def declared(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^    ([A-Z_0-9]+) = (\d+)", text, re.MULTILINE)}


def test_stub_agrees_with_the_declaration() -> None:
    assert declared((PACKAGE / "drops.pyi").read_text()) == declared((PACKAGE / "drops.pxd").read_text())


def test_module_agrees_with_the_declaration() -> None:
    assert {reason.name: reason.value for reason in DropReason} == declared((PACKAGE / "drops.pxd").read_text())


def test_values_are_dense_and_fit_the_counters() -> None:
    assert sorted(reason.value for reason in DropReason) == list(range(DropReason.REASONS + 1))
    assert DropReason.REASONS <= 64


def test_every_reason_has_a_text() -> None:
    assert set(TEXTS) == {reason.name for reason in DropReason} - {"PASS", "REASONS"}
    for text in TEXTS.values():
        assert text[0].islower() or text.startswith(("IP", "VXLAN", "TTL"))
        assert not text.endswith(".")
        assert len(text) <= 110
    assert len(set(TEXTS.values())) == len(TEXTS)


def test_every_stub_parses() -> None:
    for stub in PACKAGE.glob("*.pyi"):
        ast.parse(stub.read_text())
