"""A `KubeStore` against the tests' API server, on the loop that the daemon uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import uvloop

from fabric import leases
from fabric.leases import LeaseFormatError
from fabric.store.base import Snapshot, Unavailable, WatchItem
from fabric.store.kube import access, annotate
from fabric.store.kube.reflector import Timing
from fabric.store.kube.store import KubeStore

P = "/coreos.com/network/subnets/"
MAC = "12:c6:65:89:b4:e3"
QUICK = Timing(silence=1.0, settle=0.2, pause=(0.05, 0.4), steady=0.5)
PATIENT = Timing(silence=60.0, settle=0.2, pause=(0.05, 0.4), steady=0.5)
Items = AsyncGenerator[WatchItem, None]


def make_store(url: str, timing: Timing | None = QUICK, own: str = "node1", prefix: str = "") -> KubeStore:
    names = annotate.names(prefix) if prefix else annotate.names()
    return KubeStore(access.load(url, "", {}), names, own, timing)


@asynccontextmanager
async def opened(store: KubeStore) -> AsyncIterator[KubeStore]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def watching(store: KubeStore) -> AsyncIterator[Items]:
    """An open store and one watch of it."""
    async with opened(store):
        items = store.watch(P)
        try:
            yield items  # type: ignore[misc]
        finally:
            await items.aclose()  # type: ignore[attr-defined]


def run(body: Callable[[], Awaitable[None]], seconds: float = 60.0) -> None:
    async def limited() -> None:
        await asyncio.wait_for(body(), seconds)

    uvloop.run(limited())


def view(snapshot: Snapshot) -> dict[str, str]:
    """Public address by node name; `?` for what cannot be read."""
    found = {}
    for key, entry in snapshot.entries.items():
        name = key.partition("@")[2]
        try:
            found[name] = str(leases.parse(key.removeprefix(P), entry.value).public_ip)
        except LeaseFormatError:
            found[name] = "?"
    return found


async def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until `condition()` is true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.02)


async def content(items: Items, expected: Mapping[str, str], seconds: float = 20.0) -> Snapshot:
    """Read the watch until it shows `expected`."""
    last: WatchItem | None = None
    try:
        async with asyncio.timeout(seconds):
            async for item in items:
                last = item
                if isinstance(item, Snapshot) and view(item) == expected:
                    return item
    except TimeoutError:
        shown = view(last) if isinstance(last, Snapshot) else last
        raise AssertionError(f"the watch shows {shown}, not {expected}") from None
    raise AssertionError("the watch ended")


async def away(items: Items, seconds: float = 20.0) -> str:
    """Read the watch until the API is away; the reason."""
    async with asyncio.timeout(seconds):
        async for item in items:
            if isinstance(item, Unavailable):
                return item.reason
    raise AssertionError("the watch ended")
