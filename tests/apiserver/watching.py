"""Watch streams: etcd's changes as events, bookmarks, and disorder on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import aiohttp

from tests.apiserver import objects
from tests.apiserver.etcd import Change, CompactedError, Etcd, Kv, end_of
from tests.apiserver.objects import Object, Resource, expired

MARKED = "/registry/nodes/"


@dataclass
class Watching:
    """`bookmarks`: seconds between two (0: none). `late`: an expired version is told in the stream, not before it.
    `twice` sends each event twice; `swapped` sends each two neighbouring events of one batch in the wrong order."""

    etcd: Etcd
    bookmarks: float = 0.0
    late: bool = False
    twice: bool = False
    swapped: bool = False

    async def keep_marking(self) -> None:
        """Write the marker whose revision becomes a bookmark: etcd delivers it behind everything older."""
        while self.bookmarks:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await self.etcd.put(MARKED, b"", None)
            await asyncio.sleep(self.bookmarks)

    async def stream(
        self, resource: Resource, prefix: str, seed: list[Kv], revision: int, bookmarks: bool, name: str
    ) -> AsyncGenerator[bytes, None]:
        """Lines of a watch from `revision` on; `seed` is what existed then, where the client asked for that."""
        for item in seed:
            yield _line("ADDED", objects.shown(resource, json.loads(item.value), item.revision))
        try:
            async with contextlib.aclosing(self.etcd.watch(prefix, end_of(prefix), revision + 1)) as found:
                async for changes in found:
                    wanted = [item for item in changes if not name or item.key in (prefix + name, prefix)]
                    for change in self._disordered(wanted):
                        line = _event(resource, prefix, change, bookmarks)
                        if line:
                            yield line
        except CompactedError:
            yield _line("ERROR", expired(revision).status())

    def _disordered(self, changes: list[Change]) -> list[Change]:
        if self.swapped:
            pairs = [changes[index : index + 2] for index in range(0, len(changes), 2)]
            changes = [change for pair in pairs for change in reversed(pair)]
        return [change for change in changes for _ in range(2)] if self.twice else changes


def _event(resource: Resource, prefix: str, change: Change, bookmarks: bool) -> bytes:
    if change.key == prefix:
        mark: Object = {"kind": resource.kind, "apiVersion": "v1"}
        meta = {"resourceVersion": str(change.revision), "creationTimestamp": None}
        return _line("BOOKMARK", mark | {"metadata": meta, "spec": {}, "status": {}}) if bookmarks else b""
    if change.value is None:
        assert change.previous is not None
        return _line("DELETED", objects.shown(resource, json.loads(change.previous), change.revision))
    kind = "ADDED" if change.previous is None else "MODIFIED"
    return _line(kind, objects.shown(resource, json.loads(change.value), change.revision))


def _line(kind: str, item: Object) -> bytes:
    return json.dumps({"type": kind, "object": item}, separators=(",", ":")).encode() + b"\n"
