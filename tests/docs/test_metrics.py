"""docs/metrics.md and the dashboard against the table of metrics, and the table against the counters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fabric.metrics import counters, page
from fabric.metrics.families import BY_NAME, FAMILIES
from tests.docs.test_reference import counters_of_the_code

DOCS = Path(__file__).resolve().parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "grafana" / "podfabric.json").read_text())
PROCESS = {"process_resident_memory_bytes"}
GIVEN_BY_PROMETHEUS = {"instance", "job", "le"}


def test_the_page_is_what_the_code_says() -> None:
    assert (DOCS / "metrics.md").read_text() == page.page(), "run: python -m fabric.metrics.page docs/metrics.md"


def test_names_and_labels() -> None:
    assert len(BY_NAME) == len(FAMILIES)
    for family in FAMILIES:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", family.name)
        assert not family.name.endswith("_total")
        assert family.help
        assert "|" not in family.help
        assert all(re.fullmatch(r"[a-z]+", label) for label in family.labels)


def test_counters_lead_to_families_that_exist() -> None:
    for name in counters_of_the_code():
        for reading in counters.read({name: 1}):
            family = BY_NAME[reading.family]
            assert len(family.labels) == len(reading.labels), name
    assert set(counters.KNOWN) <= counters_of_the_code()


def expressions(node: Any) -> Iterator[str]:
    """Everything that is asked of Prometheus."""
    if isinstance(node, dict):
        yield from (node[key] for key in ("expr", "query") if isinstance(node.get(key), str))
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_the_dashboard_asks_for_what_exists() -> None:
    shown = {family.shown: family for family in FAMILIES}
    shown |= {f"{family.shown}_bucket": family for family in FAMILIES if family.kind == "histogram"}
    asked = list(expressions(DASHBOARD))
    assert len(asked) > 20
    for expression in asked:
        names = re.findall(r"(?:podfabric|process)_\w+", expression)
        assert names or expression == "prometheus"
        labels = set(GIVEN_BY_PROMETHEUS)
        for name in names:
            assert name in shown or name in PROCESS, f"{name} does not exist"
            labels |= set(shown[name].labels) if name in shown else set()
        for group in re.findall(r"by \(([\w, ]+)\)", expression):
            assert set(group.split(", ")) <= labels, expression
        for label in re.findall(r"(\w+)=~?\"", expression):
            assert label in labels, expression


def test_legends_name_labels_that_are_there() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            by = re.search(r"by \(([\w, ]+)\)", target["expr"])
            labels = set(by[1].split(", ")) if by else {"instance"}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, target
