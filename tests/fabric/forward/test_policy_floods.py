"""One pod floods: what policy denies costs the others nothing, and neither does what it allows (R20)."""

from __future__ import annotations

import pytest

from fabric.forward.flows import FlowTable
from tests.fabric.forward.naive_flows import SYN
from tests.fabric.forward.policed import address, allow, policy, probe_on
from tests.fabric.forward.test_flow_table import connect, make

A, B, C, OUTSIDE = (address(name, 4) for name in ("a", "b", "c", "outside"))
FLOOD = 100_000


def flood() -> list[bytes]:
    return [make(6, (A, 1024 + i % 60_000), (OUTSIDE, 80 + i // 60_000), SYN) for i in range(FLOOD)]


@pytest.mark.slow
def test_a_denied_flood_takes_no_place() -> None:
    table = FlowTable(1024)
    probe = probe_on(table, [policy("a", egress=[])], flood())
    for port in range(100):
        connect(probe, (B, 5_000 + port), (C, 80), 2, 100)
    probe.run(1, 100, 1)
    counters = table.counters()
    assert (counters["flows"], counters["flow_inserted"]) == (100, 100)
    assert len(probe.denied()) <= 128


@pytest.mark.slow
def test_an_allowed_flood_takes_its_own_places() -> None:
    table = FlowTable(8192)
    probe = probe_on(table, [policy("a", egress=[allow()]), policy("b", egress=[allow("c", "TCP", 80)])], flood())
    for port in range(300):
        connect(probe, (B, 5_000 + port), (C, 80), 2, 100)
    probe.run(1, 100, 1)
    for port in range(300):
        connect(probe, (B, 6_000 + port), (C, 80), 2, 100)
    held = [flow for flow in table.dump(10_000, 100) if flow["account"] == "b"]
    assert [flow["state"] for flow in held] == ["established"] * 600
    assert table.counters()["flows"] <= 8192 // 8 + 600
