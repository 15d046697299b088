"""The ring of refused packets: order, its bound, one writer and one reader at once; and the window behind it."""

from __future__ import annotations

import threading
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from encap.drops import DropReason
from fabric.daemon import drops
from fabric.forward.drop_ring import DropRing
from fabric.forward.refused import refused_packet
from fabric.model import RefusedPacket
from tests.fabric.clock import eventually
from tests.fabric.daemon.test_node import nothing, run
from tests.fabric.forward.conftest import Pair
from tests.fabric.forward.harness import address4, address6, wait_for
from tests.fabric.forward.packets import udp4, udp6

SLOTS, BYTES = 512, 256


def test_what_is_written_is_read_once_and_in_order() -> None:
    ring = DropRing()
    before = time.time_ns()
    ring.write(0, DropReason.NO_ROUTE, 3, b"x" * 300)
    ring.write_from(DropReason.UNKNOWN_VTEP, 6, int(ip_address("2001:db8::1")), 1, b"y")
    first, second = (refused_packet(record, ["node", "a", "b", "c"]) for record in ring.read())
    assert (first.reason, first.length, first.data, first.port) == ("no_route", 300, b"x" * BYTES, "c")
    assert before <= first.time <= second.time <= time.time_ns()
    assert (second.source, second.encapsulation, second.data) == (ip_address("2001:db8::1"), "udp", b"y")
    assert ring.read() == []


def test_a_port_that_went_meanwhile() -> None:
    ring = DropRing()
    ring.write(1, DropReason.PORT_ETHERNET, 3, b"")
    assert [(packet.port, packet.ethernet) for packet in (refused_packet(r, ["node"]) for r in ring.read())] == [
        ("?", True)
    ]


def test_a_full_ring_loses_the_newest_and_counts() -> None:
    ring = DropRing()
    for number in range(SLOTS + 10):
        ring.write(0, 1, number, b"")
    assert [record[3] for record in ring.read()] == list(range(SLOTS))
    assert ring.lost == 10
    ring.write(0, 1, 7, b"")
    assert [record[3] for record in ring.read()] == [7]


def test_reading_beside_writing_tears_nothing() -> None:
    ring = DropRing()
    total = 20_000

    def write() -> None:
        for number in range(total):
            ring.write(0, number % 30 + 1, number, number.to_bytes(4, "little") * 64)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive():
        seen += ring.read()
    writer.join()
    seen += ring.read()
    assert len(seen) + ring.lost == total
    assert [record[3] for record in seen] == sorted({record[3] for record in seen})
    for record in seen:
        assert record[2] == record[3] % 30 + 1
        assert record[8] == record[3].to_bytes(4, "little") * 64


def packet(number: int) -> RefusedPacket:
    return RefusedPacket(number, "no_route", 1, b"\xff", port="node")


def test_the_window(tmp_path: Path) -> None:
    async def body(bench, store, node) -> None:  # type: ignore[no-untyped-def]
        start = node.drops.read(None)
        assert start["drops"] == []
        bench.dataplane.refused = [packet(number) for number in range(600)]
        first = node.drops.read(start["next"])
        assert [item["time"] for item in first["drops"]] == list(range(512))
        assert first["drops"][0]["data"] == "/w=="
        second = node.drops.read(first["next"])
        assert [item["time"] for item in second["drops"]] == list(range(512, 600))
        assert node.drops.read(start["next"])["drops"] == first["drops"]  # another reader
        bench.dataplane.refused = [packet(number) for number in range(5000)]
        late = node.drops.read(second["next"])
        assert (late["lost"], late["drops"][0]["time"]) == (5000 - drops.WINDOW, 5000 - drops.WINDOW)
        assert node.drops.read(10**9)["drops"] == []
        node.drops.close()
        node.drops.close()

    bench = run(tmp_path, body)
    steps = [step for step in bench.journal.steps if "record_drops" in step]
    assert steps == ["record_drops True", "record_drops False"]


def test_it_ends_when_nobody_asks(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(drops, "SECONDS", 0.01)

    async def body(bench, store, node) -> None:  # type: ignore[no-untyped-def]
        node.drops.read(None)
        await eventually(lambda: "record_drops False" in bench.journal.steps)

    run(tmp_path, body)
    run(tmp_path, nothing)


@pytest.mark.parametrize("family", [4, 6])
def test_workers_take_refused_packets_down(pair: Pair, family: int) -> None:
    """On the way out and in; nothing before it was asked for, and nothing of what passes."""
    make, address = (udp4, address4) if family == 4 else (udp6, address6)
    spoofed, good = make(address(2, 77), address(1, 5)), make(address(3, 5), address(2, 10))
    pair.pod_b.peer.inject(spoofed)
    pair.b.wait_drop("source_spoofed")
    assert pair.b.worker.recorded_drops() == ([], 0)
    pair.b.worker.record_drops(True)
    pair.pod_b.peer.inject(spoofed)
    pair.raw.send(pair.b, bytes(61))  # no I flag
    pair.raw.send(pair.b, pair.raw.wrap(pair.b, good))
    pair.pod_b.take()

    found: list[RefusedPacket] = []

    def both() -> bool:
        found.extend(refused_packet(record, ["node", "pod"]) for record in pair.b.worker.recorded_drops()[0])
        return len(found) >= 2

    wait_for(both)
    out, into = sorted(found, key=lambda packet: packet.reason)
    assert (out.reason, out.data, out.length) == ("source_spoofed", spoofed[:BYTES], len(spoofed))
    assert out.port
    assert (into.reason, into.data, into.source) == ("vxlan_flags", bytes(61), pair.raw.address)
    pair.b.worker.record_drops(False)
    pair.pod_b.peer.inject(spoofed)
    pair.raw.send_inner(pair.b, good)
    pair.pod_b.take()
    assert pair.b.worker.recorded_drops() == ([], 0)
