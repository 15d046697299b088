"""One pod floods: what policy denies costs the others nothing, and neither does what it allows (R20)."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network

from fabric.forward.enforcement import Enforcement, RuleHits
from fabric.forward.flow_probe import FlowProbe
from fabric.forward.flows import FlowTable
from fabric.forward.snapshot import Snapshot
from fabric.model import ForwardingState, LocalVtep
from tests.fabric.forward.naive_flows import SYN
from tests.fabric.forward.policed import Object, address, allow, compile_for, policy
from tests.fabric.forward.test_flow_table import connect, make
from tests.fuzz.seeds import NullPort

A, B, C, OUTSIDE = (address(name, 4) for name in ("a", "b", "c", "outside"))
FLOOD = 100_000


def probe_on(table: FlowTable, policies: list[Object], packets: list[bytes]) -> FlowProbe:
    """Node 1 with a and b, accounts 1 and 2."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    ports = [NullPort(null), *(NullPort(null, 1450, (each,)) for each in (A, B))]
    for name, port in zip("ab", ports[1:], strict=True):
        port.name = name
    own = LocalVtep(ip_address("127.0.0.1"), b"\x02\0\0\0\0\x01", (ip_network("10.244.1.0/24"),))
    snapshot, hits = compile_for("node1", policies), RuleHits()
    hits.reserve(snapshot.names.next)
    enforcement = Enforcement(1, snapshot, False, (), hits)
    state, formats = ForwardingState(1, (own,), ()), {"vxlan": 1, "udp": 2}
    return FlowProbe(Snapshot(1, state, ports, 1, formats, True, table, enforcement), packets)  # type: ignore[arg-type]


def flood() -> list[bytes]:
    return [make(6, (A, 1024 + i % 60_000), (OUTSIDE, 80 + i // 60_000), SYN) for i in range(FLOOD)]


def test_a_denied_flood_takes_no_place() -> None:
    table = FlowTable(1024)
    probe = probe_on(table, [policy("a", egress=[])], flood())
    for port in range(100):
        connect(probe, (B, 5_000 + port), (C, 80), 2, 100)
    probe.run(1, 100, 1)
    counters = table.counters()
    assert (counters["flows"], counters["flow_inserted"]) == (100, 100)
    assert len(probe.denied()) <= 128


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
