"""No family grows without bound, and no text of others does harm in a label."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fabric.metrics.bounded import MAX_LABEL, bound, disarmed
from fabric.metrics.collector import Renderer
from fabric.metrics.families import Reading
from fabric.metrics.latency import Distribution


def hits(*values: int) -> list[Reading]:
    return [
        Reading("policy_rule_hits", (f"p{i}",), value) for i, value in enumerate(values)
    ]


def test_what_may_be_added_up_is() -> None:
    found = bound(hits(1, 2, 3, 4), most=2)
    assert [(item.labels[0], item.value) for item in found["policy_rule_hits"]] == [("p0", 1), ("p1", 2), ("other", 7)]
    assert found["metrics_left_out"] == [Reading("metrics_left_out", ("policy_rule_hits",), 2)]


def test_what_may_not_is_left_out() -> None:
    found = bound([Reading("peer_info", (key, "", "", "", ""), 1) for key in "abc"], most=1)
    assert [item.labels[0] for item in found["peer_info"]] == ["a"]
    assert found["metrics_left_out"] == [Reading("metrics_left_out", ("peer_info",), 2)]


def test_labels_that_become_equal_are_one_series() -> None:
    long = "x" * 500
    found = bound([Reading("drops", (long + "a",), 1), Reading("drops", (long + "b",), 2)])
    assert [(len(item.labels[0]), item.value) for item in found["drops"]] == [(MAX_LABEL, 3)]


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=5))
def test_any_label_can_be_read_back(texts: list[str]) -> None:
    """Lone halves of surrogate pairs, line breaks, quotes, backslashes: the page stays a page."""
    page = Renderer()(Reading("drops", (text,), 1) for text in texts).decode()
    found = {
        sample.labels["reason"]
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "podfabric_drops_total"
    }
    assert found == {disarmed(text) for text in texts}


def test_a_histogram() -> None:
    reading = Reading("programming_duration_seconds", ("policy",), Distribution((0.1, 1.0), (3, 1, 1), 7.65))
    page = Renderer()([reading]).decode()
    name = "podfabric_programming_duration_seconds"
    samples = {
        (sample.name.removeprefix(name), sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(page)
        if family.name == name
        for sample in family.samples
    }
    assert samples == {
        ("_bucket", "0.1"): 3, ("_bucket", "1.0"): 4, ("_bucket", "+Inf"): 5, ("_count", ""): 5, ("_sum", ""): 7.65,
    }  # fmt: skip
