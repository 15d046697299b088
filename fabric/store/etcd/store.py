"""`EtcdStore`: the store in etcd, laid out as flannel lays it out. See the package for how it works."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

from fabric.clock import steady
from fabric.errors import ConflictError, StoreUnavailableError
from fabric.store.base import Entry, Snapshot, Store, WatchItem
from fabric.store.etcd import messages
from fabric.store.etcd.client import Client
from fabric.store.etcd.content import encode_key, entry
from fabric.store.etcd.lease_ends import LeaseEnds
from fabric.store.etcd.reasons import RefusedError
from fabric.store.etcd.settings import EtcdSettings, parse_endpoints
from fabric.store.etcd.watch import Follower, Reader

log = logging.getLogger("fabric.store")
REVOKE_SECONDS = 2.0


class EtcdStore:
    """See `fabric.store.base.Store`. `clock` gives Unix time in seconds and never jumps."""

    def __init__(self, settings: EtcdSettings, clock: Callable[[], float] = steady) -> None:
        self._settings = settings
        self._clock = clock
        self._closed = asyncio.Event()
        self._client = Client(settings)
        self._ends = LeaseEnds(self._client, clock)
        self._reader = Reader(self._client, self._ends)

    async def open(self) -> None:
        """Nothing but warnings: an etcd that does not answer yet may do so later."""
        settings = self._settings
        if bool(settings.certfile) != bool(settings.keyfile):
            log.warning("no client certificate is used: --etcd-certfile and --etcd-keyfile only work together")
        elif settings.client_certificate and not all(end.tls for end in parse_endpoints(settings)):
            log.warning("no certificate is used with the http:// endpoints of --etcd-endpoints: they are not encrypted")

    async def list(self, prefix: str) -> Snapshot:
        return (await self._reader.read(prefix)).snapshot()

    async def put(self, key: str, value: bytes, expected: int, ttl: float | None) -> Entry:
        """See `Store.put`. etcd counts a lease's time in whole seconds, so `ttl` is rounded up.

        As in flannel the lease is made first, and given back when the write loses its race. It is not given back when
        the outcome is unknown: revoking it would remove the key. It then ends by itself."""
        lease = 0 if ttl is None else await self._grant(ttl)
        name = encode_key(key)
        write = messages.PutRequest(key=name, value=value, lease=lease, prev_kv=True)
        read = messages.RequestOp(request_range=messages.RangeRequest(key=name))
        try:
            answer = await self._transaction(key, expected, [messages.RequestOp(request_put=write), read])
        except (ConflictError, RefusedError):
            if lease:
                await self._revoke(lease)
            raise
        kvs = answer.responses[1].response_range.kvs
        if len(kvs) != 1:
            raise StoreUnavailableError(f"etcd's answer to the write of {key} is malformed")
        await self._revoke_unused(answer.responses[0].response_put.prev_kv.lease)
        return entry(kvs[0], self._ends.of)

    async def delete(self, key: str, expected: int) -> None:
        if not expected:
            raise ConflictError(f"{key} is not expected to exist")
        remove = messages.DeleteRangeRequest(key=encode_key(key), prev_kv=True)
        answer = await self._transaction(key, expected, [messages.RequestOp(request_delete_range=remove)])
        for old in answer.responses[0].response_delete_range.prev_kvs:
            await self._revoke_unused(old.lease)

    async def watch(self, prefix: str) -> AsyncIterator[WatchItem]:
        async with aclosing(Follower(self._reader, prefix, self._closed).items()) as items:
            async for item in items:
                yield item

    async def close(self) -> None:
        self._closed.set()
        await self._client.close()

    async def _grant(self, ttl: float) -> int:
        now = self._clock()
        answer = await self._client.call(messages.LEASE_GRANT, messages.LeaseGrantRequest(TTL=max(1, math.ceil(ttl))))
        self._ends.granted(answer.ID, now + answer.TTL)
        return int(answer.ID)

    async def _transaction(self, key: str, expected: int, ops: Sequence[Any]) -> Any:
        """Do `ops` if `key` is at revision `expected`, 0 for a missing one. Raises ConflictError."""
        name = encode_key(key)
        fence = messages.Compare(target=messages.MOD, key=name, mod_revision=expected)
        look = messages.RequestOp(request_range=messages.RangeRequest(key=name, keys_only=True))
        request = messages.TxnRequest(compare=[fence], success=ops, failure=[look])
        answer = await self._client.call(messages.TXN, request)
        if not answer.succeeded:
            kvs = [kv for response in answer.responses for kv in response.response_range.kvs]
            raise ConflictError(f"{key} is at revision {kvs[0].mod_revision if kvs else 0}, not {expected}")
        if len(answer.responses) != len(ops):
            raise StoreUnavailableError(f"etcd's answer to the write of {key} is malformed")
        return answer

    async def _revoke(self, lease: int) -> None:
        """End a lease that has no keys; one that stays all the same ends by itself."""
        with suppress(StoreUnavailableError):
            await self._client.call(messages.LEASE_REVOKE, messages.LeaseRevokeRequest(ID=lease), REVOKE_SECONDS)

    async def _revoke_unused(self, lease: int) -> None:
        """End the lease that a key hung on before, unless somebody has hung other keys on it."""
        if not lease:
            return
        request = messages.LeaseTimeToLiveRequest(ID=lease, keys=True)
        with suppress(StoreUnavailableError):
            answer = await self._client.call(messages.LEASE_TIME_TO_LIVE, request, REVOKE_SECONDS)
            if not answer.keys:
                await self._revoke(lease)


async def read_config(store: Store, prefix: str) -> bytes | None:
    """The cluster's configuration, `<prefix>/config` (net-conf JSON as flannel has it), or None when there is none.

    Raises StoreUnavailableError."""
    key = prefix.rstrip("/") + "/config"
    found = (await store.list(key)).entries.get(key)
    return None if found is None else found.value
