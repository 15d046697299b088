"""Control methods that answer in pages: flows and refused packets, and what is no page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fabric.daemon import report
from fabric.daemon.control import Descriptors
from fabric.errors import FabricError
from tests.fabric.daemon.test_node import run

NONE = Descriptors()


def test_a_page_of_flows(tmp_path: Path) -> None:
    async def body(bench: Any, store: Any, node: Any) -> None:
        methods = report.methods(node)
        assert [flow["place"] for flow in methods["flows"]({}, NONE)["flows"]] == [0, 1, 2, 3, 4]  # type: ignore[index]
        page: Any = methods["flows"]({"cursor": 2, "limit": 2}, NONE)
        assert ([flow["place"] for flow in page["flows"]], page["next"]) == ([2, 3], None)

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("flows", {"cursor": -1}),
        ("flows", {"cursor": 1 << 31}),
        ("flows", {"cursor": True}),
        ("flows", {"cursor": "0"}),
        ("flows", {"cursor": None}),
        ("flows", {"limit": 0}),
        ("flows", {"limit": 1001}),
        ("flows", {"limit": 1.5}),
        ("drops", {"since": "0"}),
        ("drops", {"since": 0.5}),
        ("drops", {"since": []}),
    ],
)
def test_what_is_no_page(tmp_path: Path, method: str, params: dict[str, object]) -> None:
    async def body(bench: Any, store: Any, node: Any) -> None:
        with pytest.raises(FabricError, match=f"^{method}: .*whole number"):
            report.methods(node)[method](params, NONE)
        assert not any("record_drops" in step for step in bench.journal.steps)

    run(tmp_path, body)


def test_numbers_that_lead_nowhere(tmp_path: Path) -> None:
    async def body(bench: Any, store: Any, node: Any) -> None:
        for since in (-(10**30), 10**30):
            answer: Any = report.methods(node)["drops"]({"since": since}, NONE)
            assert answer["drops"] == []

    run(tmp_path, body)
