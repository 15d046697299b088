"""Policies in etcd and SQLite; the store in memory passes the same contract and can be broken at will."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fabric.policing import objects, store_source
from fabric.policing.documents import Given
from fabric.policing.source import PolicySourceError
from fabric.policing.store_source import StorePolicySource
from fabric.store.base import Store
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.store import EtcdStore
from fabric.store.memory import MemoryStore
from fabric.store.sqlite import SqliteStore
from tests.fabric.clock import eventually
from tests.fabric.policing.recorder import network_policy
from tests.fabric.store.etcd_server import running

PREFIX = "/coreos.com/network/policy/"
NAME = f"{PREFIX}networking.k8s.io/v1/NetworkPolicy/shop/all"
TIER = {"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {"name": "ops"}, "spec": {"order": 1}}


def titles(source: StorePolicySource) -> list[str] | None:
    return None if source.content is None else sorted(map(objects.title, source.content.objects))


@asynccontextmanager
async def followed(store: Store) -> AsyncIterator[StorePolicySource]:
    await store.open()
    source = StorePolicySource(store, PREFIX, "test", "somewhere")
    await source.first(None)
    task = asyncio.get_running_loop().create_task(source.run())
    try:
        yield source
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(body(), 30)

    asyncio.run(whole())


async def write_change_remove(source: StorePolicySource) -> None:
    assert titles(source) == []
    for value in (network_policy("all"), TIER):
        key, value = objects.normal(value)
        await source.put(key, value)
    await eventually(lambda: titles(source) == ["NetworkPolicy shop/all", "Tier ops"])
    key, value = objects.normal(network_policy("all", ingress=[{}]))
    assert await source.put(key, value) == f"store test somewhere, key {NAME}"
    await eventually(lambda: source.content and source.content.objects[key].value == value)
    await source.remove(key)
    await eventually(lambda: titles(source) == ["Tier ops"])
    with pytest.raises(PolicySourceError):
        await source.remove(key)


def test_sqlite(tmp_path: Path) -> None:
    async def body() -> None:
        async with followed(SqliteStore(tmp_path / "f.db")) as source:
            await write_change_remove(source)

    run(body)


@pytest.mark.root
def test_etcd(tmp_path: Path) -> None:
    with running(tmp_path) as server:

        async def body() -> None:
            async with followed(EtcdStore(EtcdSettings((server.url,)))) as source:
                await write_change_remove(source)

        run(body)


def put(store: MemoryStore, name: str, value: Any) -> Awaitable[Any]:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return store.put(name, data, store.entry(name).revision if store.has(name) else 0, None)


def test_a_value_that_cannot_be_read_keeps_the_last_good_one_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body() -> None:
        store = MemoryStore()
        await put(store, NAME, network_policy("all"))
        async with followed(store) as source:
            assert titles(source) == ["NetworkPolicy shop/all"]
            await put(store, NAME, b"{")
            await put(store, PREFIX + "elsewhere", network_policy("web"))
            await eventually(lambda: source.content and len(source.content.problems) == 2)
            assert titles(source) == ["NetworkPolicy shop/all"]
            assert source.content is not None
            assert "which belongs at" in source.content.problems[PREFIX + "elsewhere"]
            await put(store, PREFIX + "v1/Namespace/shop", {"apiVersion": "v1", "kind": "Namespace",
                                                             "metadata": {"name": "shop"}})  # fmt: skip
            await eventually(lambda: titles(source) == ["Namespace shop", "NetworkPolicy shop/all"])

    run(body)
    assert len([line for line in caplog.messages if line.startswith(f"policy: {NAME}")]) == 1


def test_a_store_that_was_made_anew_opens_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        store = MemoryStore()
        await put(store, NAME, network_policy("all"))
        async with followed(store) as source:
            store.fail("down")
            await eventually(source.problem)
            assert titles(source) == ["NetworkPolicy shop/all"]
            store.recover(empty=True)
            await put(store, PREFIX + "projectcalico.org/v3/Tier/ops", TIER)
            await eventually(lambda: titles(source) == ["NetworkPolicy shop/all", "Tier ops"])
            assert source.problem() == ""
            key, value = objects.normal(network_policy("all", ingress=[{}]))
            await source.put(key, value)
            await eventually(lambda: source.content and source.content.objects[key].value == value)
            store.recover(empty=True)
            assert await source.remove(key) == "memory"
            assert titles(source) == ["Tier ops"]
            with pytest.raises(PolicySourceError, match="is not in store"):
                await source.remove(key)

    run(body)
    assert "1 policies that it does not have stay in force" in caplog.text


def test_without_the_store_the_last_run_counts_until_it_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_source, "FIRST_SECONDS", 0.2)
    key, value = objects.normal(network_policy("old"))

    async def body() -> None:
        store = MemoryStore()
        store.fail("down")
        source = StorePolicySource(store, PREFIX, "test", "somewhere")
        await source.first(None)
        assert (titles(source), source.problem()) == (None, "down")
        await source.first({key: Given(value)})
        assert titles(source) == ["NetworkPolicy shop/old"]
        store.recover()
        await put(store, NAME, network_policy("all"))
        await source.first(None)
        assert titles(source) == ["NetworkPolicy shop/all"]

    run(body)


def test_somebody_elses_write_in_between_is_no_error() -> None:
    async def body() -> None:
        class Busy(MemoryStore):
            async def list(self, prefix: str) -> Any:
                found = await super().list(prefix)
                if prefix == NAME and not self.has(NAME):
                    await put(self, NAME, network_policy("all", ingress=[]))
                return found

        store = Busy()
        source = StorePolicySource(store, PREFIX, "test", "somewhere")
        key, value = objects.normal(network_policy("all"))
        await source.put(key, value)
        assert json.loads(store.entry(NAME).value) == value

    run(body)
