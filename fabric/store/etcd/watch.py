"""Following one prefix: list once, then watch, resume after a loss where that is possible, list again where it is not.

Before a watch is resumed one cheap question makes sure that etcd still is the store that we know: the number of keys
under the prefix as of our revision, and which of them changed last. etcd refuses it when the revision was compacted
away meanwhile, or lies in the future of a backup that was restored; a watch from a revision of the future would stay
silent until the store's history has grown that far again. The revision to resume from is that of the last event, or of
the last progress notification (etcd sends one every ten minutes to watches that have seen everything).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from time import monotonic
from typing import Any

from fabric.errors import NotConnectedError, StoreUnavailableError
from fabric.store.base import Snapshot, Unavailable, WatchItem
from fabric.store.etcd import messages
from fabric.store.etcd.client import CALL_SECONDS, Client, Link
from fabric.store.etcd.content import Content, Identity, TooMuchError, encode_key, prefix_range
from fabric.store.etcd.http2 import Call, ConnectionLostError, StatusError
from fabric.store.etcd.lease_ends import LeaseEnds
from fabric.store.etcd.messages import DecodeError
from fabric.store.etcd.reasons import OUT_OF_RANGE, RefusedError

log = logging.getLogger("fabric.store")
PAGE = 5000
BATCH = 1000
UNKNOWN = 2  # gRPC status
BACKOFF = (0.1, 5.0)
LONG = 600.0
SPREAD = 10.0
"""After an outage of more than `LONG` seconds a new list waits up to `SPREAD`: all nodes find etcd back at once."""
BACKOFF_NOT_CONNECTED = 1.0  # a refused connection costs nobody anything, and the store's return is noticed soon


class Reader:
    """Reads whole prefixes: what `list` and a watch's beginning have in common."""

    def __init__(self, client: Client, ends: LeaseEnds) -> None:
        self.client = client
        self.ends = ends
        self.identity = Identity()

    async def read(self, prefix: str) -> Content:
        """The content now. Raises StoreUnavailableError."""
        key, range_end = prefix_range(prefix)
        content: Content | None = None
        more = True
        while more:
            request = messages.RangeRequest(key=key, range_end=range_end, limit=PAGE)
            request.revision = content.revision if content else 0
            mark = self.identity.mark()
            page = await self.client.call(messages.RANGE, request)
            if not self.identity.observe(page.header, mark):
                log.warning("etcd's history was replaced (revision %d): taking its content anew", page.header.revision)
            await self.ends.learn(kv.lease for kv in page.kvs)
            content = content or Content(prefix, self.identity.store_id, page.header.revision)
            if content.store_id != self.identity.store_id:
                raise StoreUnavailableError("etcd's history was replaced while it was listed")
            try:
                content.put(page.kvs, self.ends.of)
            except TooMuchError as error:
                raise too_much(error, prefix) from None
            more = page.more and len(page.kvs) > 0
            if more:
                last, key = key, page.kvs[-1].key + b"\0"
                if key <= last or not key.startswith(encode_key(prefix)):
                    raise StoreUnavailableError(f"etcd's list of {prefix} is malformed: its pages do not go on")
        assert content is not None
        return content

    async def current(self, prefix: str, content: Content) -> bool:
        """Whether `content` is a state of the present store from which a watch can go on."""
        key, range_end = prefix_range(prefix)
        request = messages.RangeRequest(key=key, range_end=range_end, limit=1, keys_only=True)
        request.revision = content.revision
        request.sort_target, request.sort_order = messages.SORT_BY_MOD, messages.DESCENDING
        mark = self.identity.mark()
        try:
            answer = await self.client.call(messages.RANGE, request)
        except RefusedError as error:
            if error.status.code != OUT_OF_RANGE:
                raise
            if "compacted" not in error.status.text:  # then it is a revision of the future
                self._replaced(content)
            return False
        same = self.identity.observe(answer.header, mark)
        if not same or not content.matches(answer.count, answer.kvs[0] if answer.kvs else None):
            self._replaced(content)
        return content.store_id == self.identity.store_id

    def _replaced(self, content: Content) -> None:
        self.identity.replaced(content.store_id)
        log.warning("etcd's history was replaced after revision %d: taking its content anew", content.revision)


class Follower:
    """One watch. `items` never raises for what etcd does: it says Unavailable once, and tries again with back-off."""

    def __init__(self, reader: Reader, prefix: str, closed: asyncio.Event) -> None:
        self._reader = reader
        self._client = reader.client
        self._prefix = prefix
        self._closed = closed
        self._content: Content | None = None
        self._delay = BACKOFF[0]
        self._lost_at: float | None = None  # when etcd went away
        self._known = False  # there was a list before

    async def items(self) -> AsyncGenerator[WatchItem, None]:
        """The content now and after every change, until the store is closed."""
        down = False
        while not self._closed.is_set():
            try:
                async with aclosing(self._snapshots()) as snapshots:
                    async for snapshot in snapshots:
                        down, self._lost_at, self._known = False, None, True
                        yield snapshot
            except StoreUnavailableError as error:
                if self._closed.is_set():
                    return
                self._lost_at = self._lost_at or monotonic()
                if not down:
                    down = True
                    yield Unavailable(str(error))
                await self._pause(BACKOFF_NOT_CONNECTED if isinstance(error, NotConnectedError) else BACKOFF[1])

    async def _pause(self, limit: float) -> None:
        wait = min(self._delay, limit) * random.uniform(0.5, 1.0)
        self._delay = min(self._delay * 2, limit)
        await self._wait(wait)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    async def _snapshots(self) -> AsyncGenerator[Snapshot, None]:
        """The content for as long as nothing fails. Raises StoreUnavailableError."""
        while True:
            content = await self._synchronise()
            link, call = await self._start(content)
            try:
                changed = await self._confirmed(link, call, content)
                if changed is not None:
                    self._delay = BACKOFF[0]
                    yield content.snapshot()
                while changed is not None:
                    changed = await self._advance(link, call, content)
                    if changed:
                        yield content.snapshot()
            finally:
                call.cancel()
            self._content = None
            log.info("etcd compacted what the watch of %s had not seen yet: listing again", self._prefix)
            await self._pause(BACKOFF[1])

    async def _synchronise(self) -> Content:
        """Content from which a watch can go on: what we have, or else a new list."""
        content = self._content
        if content is not None and await self._reader.current(self._prefix, content):
            ends = self._reader.ends
            content.retime(await ends.learn(content.leases()), ends.of)
        else:
            if self._known and self._lost_at is not None and monotonic() > self._lost_at + LONG:
                await self._wait(random.uniform(0.0, SPREAD))
            content = self._content = await self._reader.read(self._prefix)
        return content

    async def _start(self, content: Content) -> tuple[Link, Call]:
        """Start the watch behind `content`."""
        key, range_end = prefix_range(self._prefix)
        create = messages.WatchCreateRequest(key=key, range_end=range_end, start_revision=content.revision + 1)
        create.progress_notify = True
        return await self._client.stream(messages.WATCH, messages.WatchRequest(create_request=create))

    async def _confirmed(self, link: Link, call: Call, content: Content) -> bool | None:
        """As `_advance`, for etcd's first word, which has to come soon."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await self._advance(link, call, content)
        except TimeoutError as error:
            raise self._client.unanswered(link, error) from None

    async def _advance(self, link: Link, call: Call, content: Content) -> bool | None:
        """Take over what etcd sent next; whether the content changed, None when etcd has compacted what came next."""
        changed = False
        for response in await self._receive(link, call):
            if response.compact_revision:
                return None
            if response.canceled:
                raise self._client.refused(link, StatusError(UNKNOWN, response.cancel_reason))
            await self._reader.ends.learn(event.kv.lease for event in response.events)
            changed |= self._apply(response, content)
        return changed

    def _apply(self, response: Any, content: Content) -> bool:
        try:
            changed = content.apply(response.events, messages.DELETE, self._reader.ends.of)
        except TooMuchError as error:
            self._content = None
            raise too_much(error, self._prefix) from None
        if response.events:
            content.reached(response.events[-1].kv.mod_revision)
        elif not response.created:  # a progress notification: everything up to here was sent
            content.reached(response.header.revision)
        self._reader.identity.reached(content.store_id, content.revision)
        return changed

    async def _receive(self, link: Link, call: Call) -> list[Any]:
        """At least one response, and all that have come with it."""
        try:
            data = await call.receive()
            if data is None:
                raise StatusError(UNKNOWN, "the watch was ended")
            found = [data]
            while len(found) < BATCH and (data := call.take()) is not None:
                found.append(data)
            return [messages.WATCH.response.FromString(data) for data in found]
        except StatusError as error:
            raise self._client.refused(link, error) from None
        except ConnectionLostError as error:
            raise link.lost(error) from None
        except DecodeError as error:
            raise self._client.unanswered(link, error) from None


def too_much(error: TooMuchError, prefix: str) -> StoreUnavailableError:
    """The store's error for a prefix under which others have put far too much."""
    return StoreUnavailableError(f"etcd holds {error} under {prefix}: remove what does not belong there")
