"""Three days without the store, by a clock that the test moves: forwarding stays, the log stays quiet (F4, R4)."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fabric import leases, state_file
from fabric.daemon import own_lease
from fabric.daemon.node import Node
from fabric.lease_table import GRACE
from fabric.store.base import Unavailable
from fabric.store.memory import MemoryStore
from tests.fabric.clock import Clock, eventually
from tests.fabric.daemon.test_node import peer
from tests.fabric.fakes import Bench

P = leases.subnets_prefix()
HOURS = 72
PEERS = {"10.244.200.0/24": "192.0.2.200", "10.244.201.0/24": "192.0.2.201"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_lease, "PAUSE_SECONDS", 0.001)


async def three_days(clock: Clock) -> None:
    for _ in range(HOURS):
        clock.advance(3600)
        await asyncio.sleep(0.005)


async def cluster(clock: Clock) -> MemoryStore:
    store = MemoryStore(clock)
    for number in (200, 201):
        await store.put(*peer(number), 0, leases.TTL)
    return store


def ends(store: MemoryStore, node: Node) -> float | None:
    """When our lease ends by what is in the store; None when it is not there."""
    key = P + node.cluster.own_lease.key
    return store.entry(key).expires if store.has(key) else None


@asynccontextmanager
async def started(bench: Bench) -> AsyncIterator[Node]:
    node = bench.node()
    try:
        await node.start()
        yield node
    finally:
        await node.stop()


async def recovered(store: MemoryStore, node: Node, bench: Bench, clock: Clock) -> None:
    """The store is back, empty because everything in it has ended: nobody is cut off before they could renew."""
    store.recover()
    await eventually(lambda: ends(store, node) == clock.now + leases.TTL)
    assert bench.dataplane.peers == PEERS
    await store.put(*peer(200), 0, leases.TTL)
    clock.advance(GRACE + 1)
    await store.put(P + "nonsense", b"", 0, None)  # something to look at the time for
    await eventually(lambda: bench.dataplane.peers == {"10.244.200.0/24": "192.0.2.200"})


def test_a_running_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def whole() -> None:
        clock = Clock()
        store = await cluster(clock)
        bench = Bench(tmp_path, store, clock)
        async with started(bench) as node:
            applied, subnet = bench.journal.steps.count("apply"), node.cluster.own_lease.subnet
            caplog.clear()
            store.fail("etcd does not answer")
            await eventually(lambda: isinstance(node.cluster.state, Unavailable))
            await three_days(clock)
            assert bench.dataplane.peers == PEERS
            assert (bench.journal.steps.count("apply"), node.cluster.own_lease.subnet) == (applied, subnet)
            assert len([record for record in caplog.records if record.levelno >= logging.INFO]) <= 2
            await recovered(store, node, bench, clock)
            assert node.cluster.own_lease.subnet == subnet

    with caplog.at_level(logging.INFO):
        asyncio.run(whole())


@pytest.mark.slow
def test_a_node_that_starts_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def whole() -> None:
        clock = Clock()
        store = await cluster(clock)
        bench = Bench(tmp_path, store, clock)
        async with started(bench) as node:
            subnet = node.cluster.own_lease.subnet
        assert state_file.load(bench.state_dir).own is not None

        clock.advance(30 * 3600)  # longer than the lease
        silent = MemoryStore(clock)
        silent.fail("etcd does not answer")
        again = Bench(tmp_path, silent, clock)
        async with started(again) as node:
            caplog.clear()
            await three_days(clock)
            assert again.dataplane.peers == PEERS
            assert node.cluster.own_lease.subnet == subnet
            assert len([record for record in caplog.records if record.levelno >= logging.INFO]) <= 2
            await recovered(silent, node, again, clock)
            assert node.cluster.own_lease.subnet == subnet

    with caplog.at_level(logging.INFO):
        asyncio.run(whole())


def test_a_store_that_comes_and_goes_is_reported_once_in_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def whole() -> None:
        clock = Clock()
        store = await cluster(clock)
        bench = Bench(tmp_path, store, clock)
        async with started(bench) as node:
            caplog.clear()
            for _ in range(50):
                store.fail("etcd does not answer")
                await eventually(lambda: isinstance(node.cluster.state, Unavailable))
                store.recover()
                await eventually(lambda: not isinstance(node.cluster.state, Unavailable))
            assert len([record for record in caplog.records if record.levelno >= logging.INFO]) <= 2

    with caplog.at_level(logging.INFO):
        asyncio.run(whole())
