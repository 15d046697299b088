"""A store whose watch is read in the background, as the daemon does, and waiting for what it shows."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fabric.store.base import Snapshot, Unavailable, WatchItem
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.store import EtcdStore
from tests.fabric.clock import eventually

P = "/coreos.com/network/subnets/"


class Watched:
    """`items` is all that the watch has yielded."""

    def __init__(self, store: EtcdStore) -> None:
        self.store = store
        self.items: list[WatchItem] = []

    async def read(self) -> None:
        async for item in self.store.watch(P):
            self.items.append(item)

    @property
    def outages(self) -> list[Unavailable]:
        return [item for item in self.items if isinstance(item, Unavailable)]

    @property
    def snapshots(self) -> list[Snapshot]:
        return [item for item in self.items if isinstance(item, Snapshot)]

    def shows(self, expected: dict[str, bytes]) -> bool:
        """Whether the last item is a snapshot with just this content."""
        last = self.items[-1] if self.items else None
        return isinstance(last, Snapshot) and values(last) == expected

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> float:
        """Wait; the seconds that it took."""
        start = asyncio.get_running_loop().time()
        await eventually(condition, seconds)
        return asyncio.get_running_loop().time() - start

    async def until_shows(self, expected: dict[str, bytes], seconds: float = 20.0) -> float:
        return await self.until(lambda: self.shows(expected), seconds)


def values(snapshot: Snapshot) -> dict[str, bytes]:
    """Values by the last component of their keys."""
    return {key.removeprefix(P): entry.value for key, entry in snapshot.entries.items()}


@asynccontextmanager
async def watched(*urls: str, settings: EtcdSettings | None = None) -> AsyncIterator[Watched]:
    """An open store with a running watch; both end with the block."""
    store = EtcdStore(settings or EtcdSettings(tuple(urls)))
    await store.open()
    found = Watched(store)
    task = asyncio.create_task(found.read())
    try:
        yield found
    finally:
        await store.close()
        await asyncio.wait_for(task, 5)


def range_calls(url: str) -> dict[str, int]:
    """How many Range requests an etcd has answered, by gRPC status, as it counts them itself."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^grpc_server_handled_total\{grpc_code="(\w+)",grpc_method="Range".*\} (\S+)$', text, re.M)
    return {code: int(float(count)) for code, count in found if float(count)}
