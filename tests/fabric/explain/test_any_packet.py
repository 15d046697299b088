"""Whatever bytes are asked about, there is a story of them: damaged packets of every kind, by every way."""

from __future__ import annotations

import random

import pytest

from fabric.cli.explain import lines
from fabric.explain.arrival import ArrivalError
from tests.fabric.explain.tables import live, tell
from tests.fabric.explain.test_story import outer, wrapped
from tests.fabric.forward.harness import Fabric
from tests.fabric.forward.policed import Cluster, allow, packet, ping, policy, sctp, tcp, udp

CASES = 1500


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Up to three bytes are others, and some are cut off in a third of the cases."""
    out = bytearray(data)
    for _ in range(chance.randrange(4)):
        out[chance.randrange(len(out))] = chance.choice((0, 255, chance.randrange(256)))
    return bytes(out[: chance.randrange(len(out) + 1)] if chance.random() < 0.3 else out)


@pytest.mark.slow
def test_any_packet_has_a_story() -> None:
    chance, reasons = random.Random(25), set()
    with Fabric() as fabric:
        cluster = Cluster(fabric)
        cluster.apply(policy("b", ingress=[allow("a", "TCP", 80)]))
        tables = live(cluster.one, cluster.snapshot)
        inner = packet("c", "b", tcp(80))
        seeds = [
            (packet("a", "c", tcp(80)), False, ""), (packet("a", "b", ping(9, 6), 6), False, ""),
            (packet("a", "c", udp(5, size=3000)), False, ""), (packet("a", "b", sctp(4), 6), False, "pod1-10"),
            (outer(tables, wrapped(inner)), False, ""), (inner, False, "127.0.0.2"), (inner, False, "192.0.2.9"),
            (bytes(12) + b"\x08\0" + inner, True, ""), (inner, False, "underlay"),
        ]  # fmt: skip
        for _ in range(CASES):
            data, ethernet, by = chance.choice(seeds)
            try:
                told = tell(tables, damaged(chance, data), ethernet, by)
            except ArrivalError:
                assert by == "underlay"  # from which peer cannot be known when the source is damaged
                continue
            assert (told["verdict"] == "dropped") == bool(told["reason"])
            assert told["results"] or told["verdict"] == "dropped"
            assert all(line for line in lines(told))
            reasons.add(told["reason"])
    assert {"", "inner_short", "inner_length", "inner_checksum", "policy_ingress", "unknown_vtep"} <= reasons
