"""etcd v3 through its JSON gateway: just what the API server needs."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import aiohttp


class CompactedError(Exception):
    """The revision is not to be had any more."""


class FutureRevisionError(Exception):
    """The revision does not exist yet."""


@dataclass(frozen=True)
class Kv:
    key: str
    value: bytes
    revision: int
    created: int


@dataclass(frozen=True)
class Listing:
    items: list[Kv]
    revision: int
    more: bool
    count: int


@dataclass(frozen=True)
class Change:
    """One event; `value` None for a deletion, `previous` None for a creation. `revision` is that of the change."""

    key: str
    value: bytes | None
    previous: bytes | None
    revision: int


def end_of(prefix: str) -> str:
    """The end of the range that holds every key with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


class Etcd:
    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            connector=aiohttp.TCPConnector(limit=0),  # each watch of a client holds one
        )

    async def range(self, start: str, end: str = "", revision: int = 0, limit: int = 0) -> Listing:
        body = {"key": _b64(start), "revision": revision, "limit": limit} | ({"range_end": _b64(end)} if end else {})
        found = await self._call("kv/range", body)
        items = [_kv(item) for item in found.get("kvs", [])]
        return Listing(items, int(found["header"]["revision"]), found.get("more", False), int(found.get("count", 0)))

    async def get(self, key: str) -> Kv | None:
        items = (await self.range(key)).items
        return items[0] if items else None

    async def put(self, key: str, value: bytes, expected: int | None) -> int | None:
        """Write if the key is at revision `expected` (None: whatever it is); the new revision, None when it is not."""
        put = {"request_put": {"key": _b64(key), "value": base64.b64encode(value).decode()}}
        return await self._txn(key, expected, put)

    async def delete(self, key: str, expected: int) -> int | None:
        return await self._txn(key, expected, {"request_delete_range": {"key": _b64(key)}})

    async def watch(self, start: str, end: str, revision: int) -> AsyncGenerator[list[Change], None]:
        """Changes from `revision` on; ends when etcd ends it. Raises CompactedError."""
        request = {"key": _b64(start), "range_end": _b64(end), "start_revision": revision, "prev_kv": True}
        body = json.dumps({"create_request": request}).encode()
        async with self._session.post(f"{self._url}/v3/watch", data=body, read_bufsize=1 << 24) as answer:
            async for line in answer.content:
                result = json.loads(line).get("result", {})
                if "compact_revision" in result:
                    raise CompactedError
                if result.get("canceled"):
                    return
                yield [_change(event) for event in result.get("events", [])]

    async def _txn(self, key: str, expected: int | None, operation: dict[str, Any]) -> int | None:
        compare = [{"key": _b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": expected}]
        found = await self._call("kv/txn", {"compare": compare if expected is not None else [], "success": [operation]})
        return int(found["header"]["revision"]) if found.get("succeeded") else None

    async def _call(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=5)
        async with self._session.post(f"{self._url}/v3/{what}", json=body, timeout=timeout) as answer:
            found: dict[str, Any] = await answer.json(content_type=None)
        error = str(found.get("error", ""))
        if "compacted" in error:
            raise CompactedError
        if "future revision" in error:
            raise FutureRevisionError
        if error:
            raise aiohttp.ClientError(error)
        return found

    async def close(self) -> None:
        await self._session.close()


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(data: str) -> str:
    return base64.b64decode(data).decode()


def _kv(item: dict[str, Any]) -> Kv:
    value = base64.b64decode(item.get("value", ""))
    return Kv(_text(item["key"]), value, int(item["mod_revision"]), int(item["create_revision"]))


def _change(event: dict[str, Any]) -> Change:
    kv, previous = event["kv"], event.get("prev_kv")
    deleted = event.get("type") == "DELETE"
    return Change(
        _text(kv["key"]),
        None if deleted else base64.b64decode(kv.get("value", "")),
        base64.b64decode(previous.get("value", "")) if previous else None,
        int(kv["mod_revision"]),
    )
