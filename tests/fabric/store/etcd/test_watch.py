"""The watch on a real etcd that fails in every way an etcd can."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from time import time

import pytest
import uvloop

from fabric.errors import StoreUnavailableError
from fabric.lease_table import LeaseTable
from fabric.store.base import Unavailable, WatchItem
from fabric.store.etcd import watch as watch_module
from fabric.store.etcd.store import EtcdStore
from tests.fabric.store.etcd.watched import P, range_calls, watched
from tests.fabric.store.etcd_server import EtcdServer, cluster, running
from tests.fabric.store.proxy import Proxy

pytestmark = pytest.mark.root


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with running(tmp_path) as server:
        yield server


def run(body: Awaitable[None]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(body, 90)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


def in_thread(function: Callable[..., object], *args: object) -> Awaitable[object]:
    """Do something slow to etcd while the store goes on living."""
    return asyncio.to_thread(function, *args)


def test_a_restart_is_one_outage(etcd: EtcdServer) -> None:
    async def body() -> None:
        etcd.ctl("put", P + "a", "1")
        async with watched(etcd.url) as watch:
            await watch.until_shows({"a": b"1"})
            await in_thread(etcd.kill)
            await watch.until(lambda: watch.outages)
            await in_thread(etcd.start)
            await watch.until_shows({"a": b"1"})
            etcd.ctl("put", P + "b", "2")
            await watch.until_shows({"a": b"1", "b": b"2"})
            assert len(watch.outages) == 1
            assert "refuses" in watch.outages[0].reason or "closed" in watch.outages[0].reason
            assert len({snapshot.store_id for snapshot in watch.snapshots}) == 1

    run(body())


def test_compaction_while_away_costs_exactly_one_list(etcd: EtcdServer, caplog: pytest.LogCaptureFixture) -> None:
    """R6: one re-list, in step again within two seconds, at most ten lines of log."""
    caplog.set_level(logging.INFO)

    async def body() -> None:
        etcd.ctl("put", P + "a", "1")
        etcd.ctl("put", P + "b", "1")
        async with Proxy(etcd.url) as proxy, watched(proxy.url) as watch:
            await watch.until_shows({"a": b"1", "b": b"1"})
            await proxy.cut()
            await watch.until(lambda: watch.outages)
            await in_thread(etcd.ctl, "del", P + "a")
            await in_thread(etcd.ctl, "put", P + "c", "1")
            await in_thread(etcd.compact)
            before = range_calls(etcd.url)
            await proxy.mend()
            took = await watch.until_shows({"b": b"1", "c": b"1"})
            after = range_calls(etcd.url)
            assert (after["OK"] - before["OK"], after.get("OutOfRange", 0)) == (1, 1)
            assert len({snapshot.store_id for snapshot in watch.snapshots}) == 1
            assert len(watch.outages) == 1
            assert took < 10  # two seconds on a quiet machine
            etcd.ctl("put", P + "d", "1")
            await watch.until_shows({"b": b"1", "c": b"1", "d": b"1"})
            assert range_calls(etcd.url)["OK"] == after["OK"]

    run(body())
    assert len(caplog.records) <= 10


@pytest.mark.parametrize(("spread", "lists"), [(1e6, 0), (0.5, 1)], ids=["not its turn yet", "its turn"])
def test_after_a_long_outage_the_list_waits_for_its_turn(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch, spread: float, lists: int
) -> None:
    """All nodes find etcd back in the same moment. Only a list is put off, a watch that can be resumed never is."""
    monkeypatch.setattr(watch_module, "LONG", 0.0)
    monkeypatch.setattr(watch_module, "SPREAD", spread)

    async def body() -> None:
        etcd.ctl("put", P + "a", "1")
        async with Proxy(etcd.url) as proxy, watched(proxy.url) as watch:
            await watch.until_shows({"a": b"1"})
            await proxy.cut()
            await watch.until(lambda: watch.outages)
            await in_thread(etcd.ctl, "del", P + "a")
            await in_thread(etcd.compact)
            before = range_calls(etcd.url)
            await proxy.mend()
            await watch.until(lambda: range_calls(etcd.url).get("OutOfRange", 0) > before.get("OutOfRange", 0))
            if lists:
                await watch.until_shows({})
            assert range_calls(etcd.url)["OK"] - before["OK"] == lists

    run(body())


def test_changes_while_away_are_caught_up_without_a_list(etcd: EtcdServer) -> None:
    async def body() -> None:
        etcd.ctl("put", P + "a", "1")
        async with Proxy(etcd.url) as proxy, watched(proxy.url) as watch:
            await watch.until_shows({"a": b"1"})
            await proxy.cut()
            await watch.until(lambda: watch.outages)
            await in_thread(etcd.ctl, "del", P + "a")
            await in_thread(etcd.ctl, "put", P + "b", "1")
            before = range_calls(etcd.url)["OK"]
            await proxy.mend()
            await watch.until_shows({"b": b"1"})
            assert range_calls(etcd.url)["OK"] - before == 1

    run(body())


@pytest.mark.slow
def test_an_etcd_that_hangs_is_noticed_and_found_again(etcd: EtcdServer) -> None:
    async def body() -> None:
        async with watched(etcd.url) as watch:
            await watch.until_shows({})
            etcd.freeze()
            await watch.until(lambda: watch.outages)
            etcd.thaw()
            etcd.ctl("put", P + "a", "1")
            await watch.until_shows({"a": b"1"})
            assert len(watch.outages) == 1

    run(body())


def test_a_restored_backup_is_another_store(etcd: EtcdServer, tmp_path: Path) -> None:
    """The revision runs backwards under the same cluster id."""

    async def body() -> None:
        etcd.ctl("put", P + "a", "1")
        etcd.save(tmp_path / "backup")
        etcd.ctl("put", P + "b", "1")
        etcd.ctl("put", P + "c", "1")
        async with watched(etcd.url) as watch:
            await watch.until_shows({"a": b"1", "b": b"1", "c": b"1"})
            await in_thread(etcd.restore, tmp_path / "backup")
            await watch.until_shows({"a": b"1"})
            etcd.ctl("put", P + "d", "1")
            await watch.until_shows({"a": b"1", "d": b"1"})
            await in_thread(etcd.restart)
            etcd.ctl("put", P + "e", "1")
            await watch.until_shows({"a": b"1", "d": b"1", "e": b"1"})
            ids = [snapshot.store_id for snapshot in watch.snapshots]
            assert len(dict.fromkeys(ids)) == 2  # the old one and then the new one
            assert ids == sorted(ids)
            assert (await watch.store.list(P)).store_id == ids[-1]

    run(body())


def test_a_restored_backup_that_has_overtaken_us_is_another_store(etcd: EtcdServer, tmp_path: Path) -> None:
    """While nobody was connected the restored history grew beyond the revision that we knew."""

    async def body() -> None:
        etcd.ctl("put", P + "a", "1")
        etcd.save(tmp_path / "backup")
        etcd.ctl("put", P + "b", "1")
        async with Proxy(etcd.url) as proxy, watched(proxy.url) as watch:
            await watch.until_shows({"a": b"1", "b": b"1"})
            await proxy.cut()
            await watch.until(lambda: watch.outages)
            await in_thread(etcd.restore, tmp_path / "backup")
            for number in range(5):
                etcd.ctl("put", P + "c", str(number))
            await proxy.mend()
            await watch.until_shows({"a": b"1", "c": b"4"})
            assert len({snapshot.store_id for snapshot in watch.snapshots}) == 2

    run(body())


def test_a_restored_backup_takes_no_peer_away(etcd: EtcdServer, tmp_path: Path) -> None:
    """R6: the routes follow the lease table, and that keeps a lease which the older history does not have."""

    async def body() -> None:
        for number in (1, 2, 3):
            etcd.ctl("put", f"{P}10.244.{number}.0-24", f'{{"PublicIP":"192.0.2.{number}","BackendType":"host-gw"}}')
            if number == 2:
                etcd.save(tmp_path / "backup")
        async with watched(etcd.url) as watch:
            await watch.until(lambda: watch.snapshots)
            await in_thread(etcd.restore, tmp_path / "backup")
            await watch.until(lambda: len(watch.snapshots[-1].entries) == 2)
            etcd.ctl("put", f"{P}10.244.3.0-24", '{"PublicIP":"192.0.2.3","BackendType":"host-gw"}')
            await watch.until(lambda: len(watch.snapshots[-1].entries) == 3)
        table = LeaseTable(P)
        for snapshot in watch.snapshots:
            assert not table.update(snapshot, time())
            assert [str(lease.public_ip) for lease in table.current(time())] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
        assert not table.remembered()

    run(body())


def test_another_cluster_under_the_same_address_is_another_store(etcd: EtcdServer, tmp_path: Path) -> None:
    async def body() -> None:
        etcd.save(tmp_path / "backup")
        etcd.ctl("put", P + "a", "1")
        async with watched(etcd.url) as watch:
            await watch.until_shows({"a": b"1"})
            await in_thread(lambda: etcd.restore(tmp_path / "backup", token="another"))
            await watch.until_shows({})
            assert len({snapshot.store_id for snapshot in watch.snapshots}) == 2

    run(body())


@pytest.mark.slow
def test_a_cluster_that_loses_a_member_and_then_its_leader(tmp_path: Path) -> None:
    async def body() -> None:
        with cluster(tmp_path, 3) as members:
            async with watched(*(member.url for member in members)) as watch:
                await watch.until_shows({})
                members[0].ctl("put", P + "a", "1")
                await watch.until_shows({"a": b"1"})
                await in_thread(members[0].kill)
                await in_thread(members[1].put_soon, P + "b", "1")
                await watch.until_shows({"a": b"1", "b": b"1"})
                before = len(watch.outages)
                await in_thread(members[1].kill)
                await watch.until(lambda: len(watch.outages) > before)
                async with asyncio.timeout(30):
                    while "has no leader" not in await refusal(watch.store):
                        pass
                await in_thread(members[1].start)
                await in_thread(members[2].put_soon, P + "c", "1")
                await watch.until_shows({"a": b"1", "b": b"1", "c": b"1"})
                assert all(kind is not Unavailable for kind in after_unavailable(watch.items))
                assert len({snapshot.store_id for snapshot in watch.snapshots}) == 1

    run(body())


def after_unavailable(items: Sequence[WatchItem]) -> list[type]:
    """What kinds of items follow an Unavailable."""
    return [type(after) for item, after in itertools.pairwise(items) if isinstance(item, Unavailable)]


async def refusal(store: EtcdStore) -> str:
    with pytest.raises(StoreUnavailableError) as caught:
        await store.list(P)
    return str(caught.value)


def test_a_burst_comes_as_few_snapshots(etcd: EtcdServer) -> None:
    async def body() -> None:
        async with watched(etcd.url) as watch:
            await watch.until_shows({})
            puts = [watch.store.put(P + f"{number}", b"x" * 500, 0, None) for number in range(500)]
            await asyncio.gather(*puts)
            await watch.until_shows({f"{number}": b"x" * 500 for number in range(500)})
            assert not any(isinstance(item, Unavailable) for item in watch.items)
            assert len(watch.items) < 400

    run(body())


def test_a_list_longer_than_a_page_and_the_window(etcd: EtcdServer) -> None:
    async def body() -> None:
        lines = [f"put {P}{number:05} {'x' * 500}" for number in range(6000)]
        for start in range(0, len(lines), 100):
            etcd.ctl("txn", input="\n" + "\n".join(lines[start : start + 100]) + "\n\n\n")
        async with watched(etcd.url) as watch:
            await watch.until(lambda: watch.snapshots)
            assert len(watch.snapshots[0].entries) == 6000
            assert watch.snapshots[0].entries == (await watch.store.list(P)).entries

    run(body())
