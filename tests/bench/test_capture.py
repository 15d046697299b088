"""What is shown of a capture's cost."""

from __future__ import annotations

from bench.capture import Row, lines


def test_what_is_shown() -> None:
    assert lines([Row("of everything", 0.5, 0.25)])[1].split() == ["of", "everything", "0.50", "0.25"]
