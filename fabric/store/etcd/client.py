"""Calls to a cluster of etcd: one connection to one of its endpoints, the next one when that fails, the user's token.

A connection that fails is replaced when the next call needs one; callers that wait meanwhile share the attempt. The
first endpoint is drawn by lot, so that the nodes of a fabric spread over the members of the cluster.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from hpack import HeaderTuple, NeverIndexedHeaderTuple

from fabric.errors import NotConnectedError, StoreUnavailableError
from fabric.store.etcd import messages, reasons
from fabric.store.etcd.http2 import (
    PING_AFTER,
    Call,
    Connection,
    ConnectionLostError,
    Headers,
    StatusError,
    TooManyPingsError,
)
from fabric.store.etcd.messages import DecodeError, Message, Method
from fabric.store.etcd.settings import Endpoint, EtcdSettings, parse_endpoints, tls_context

CONNECT_SECONDS = 3.0
CALL_SECONDS = 5.0
MAX_PING_AFTER = 300.0
_MEMBER_TROUBLE = {4, 14, 15}  # deadline exceeded, unavailable, data loss: another member may do better


class Link:
    """A connection that is ready for calls."""

    def __init__(self, endpoint: Endpoint, connection: Connection) -> None:
        self.endpoint = endpoint
        self.connection = connection
        self.token = ""

    def lost(self, error: ConnectionLostError) -> StoreUnavailableError:
        """The store's error for the loss of this connection."""
        return StoreUnavailableError(f"etcd {self.endpoint.url} {error}")


class Client:
    """`call` and `stream` connect as needed and raise StoreUnavailableError (also StoreCorruptError)."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._endpoints = parse_endpoints(settings)
        self._next = random.randrange(len(self._endpoints))
        self._link: Link | None = None
        self._attempt: asyncio.Task[Link] | None = None
        self._ping_after = PING_AFTER
        self._closed = False

    async def call(self, method: Method, request: Message, seconds: float = CALL_SECONDS) -> Any:
        """The answer to one request. Raises RefusedError when etcd refuses it."""
        link = await self._connected()
        try:
            try:
                return await _unary(link, method, request, seconds)
            except StatusError as error:
                if not self._settings.username or not reasons.stale_token(error):
                    raise
                await self._authenticate(link)
                return await _unary(link, method, request, seconds)
        except StatusError as error:
            raise self.refused(link, error) from None
        except ConnectionLostError as error:
            raise link.lost(error) from None
        except (TimeoutError, DecodeError) as error:
            raise self.unanswered(link, error, seconds) from None

    async def stream(self, method: Method, request: Message) -> tuple[Link, Call]:
        """Start a call with many answers. The caller cancels it."""
        link = await self._connected()
        try:
            call = link.connection.call(_headers(link, method))
            await call.send(request.SerializeToString(), end=False)
        except ConnectionLostError as error:
            raise link.lost(error) from None
        return link, call

    async def close(self) -> None:
        """End the connection; nothing connects any more. Idempotent."""
        self._closed = True
        attempt, self._attempt = self._attempt, None
        if attempt is not None and not attempt.done():
            attempt.cancel()
            await asyncio.wait([attempt])
        link, self._link = self._link, None
        if link is not None:
            await link.connection.close()

    def refused(self, link: Link, error: StatusError) -> StoreUnavailableError:
        """The store's error for a status; the next call goes to another member when this one is in trouble."""
        if error.code in _MEMBER_TROUBLE:
            link.connection.fail(f"is in trouble ({error.text})")
        return reasons.of_status(link.endpoint, self._settings, error)

    def unanswered(
        self, link: Link, error: TimeoutError | DecodeError, seconds: float = CALL_SECONDS
    ) -> StoreUnavailableError:
        """The store's error for an answer that cannot be read, or did not come within `seconds`."""
        words = "sent a malformed answer" if isinstance(error, DecodeError) else "did not answer in time"
        silent = link.connection.loop.time() - link.connection.heard >= CALL_SECONDS
        if isinstance(error, DecodeError) or silent or (seconds >= CALL_SECONDS and len(self._endpoints) > 1):
            link.connection.fail(words)
        return StoreUnavailableError(f"etcd {link.endpoint.url} {words}")

    async def _connected(self) -> Link:
        if self._closed:
            raise StoreUnavailableError("the etcd store is closed")
        link = self._link
        if link is not None and link.connection.lost is None:
            return link
        if self._attempt is None or self._attempt.done():
            self._leave(link)
            self._attempt = asyncio.get_running_loop().create_task(self._connect())
            self._attempt.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.shield(self._attempt)
        except asyncio.CancelledError:
            if self._closed:  # the attempt was cancelled, not its caller
                raise StoreUnavailableError("the etcd store is closed") from None
            raise

    def _leave(self, link: Link | None) -> None:
        """The connection is lost: go on with the next endpoint."""
        self._link = None
        if link is not None:
            self._next = (self._next + 1) % len(self._endpoints)
            if isinstance(link.connection.lost, TooManyPingsError):
                self._ping_after = min(self._ping_after * 2, MAX_PING_AFTER)

    async def _connect(self) -> Link:
        """Try each endpoint once."""
        failures: list[StoreUnavailableError] = []
        for _ in self._endpoints:
            endpoint = self._endpoints[self._next]
            try:
                self._link = await self._reach(endpoint)
                return self._link
            except StoreUnavailableError as error:
                failures.append(error)
            self._next = (self._next + 1) % len(self._endpoints)
        all_down = all(isinstance(failure, NotConnectedError) for failure in failures)
        kind = NotConnectedError if all_down else StoreUnavailableError
        raise kind("; ".join(dict.fromkeys(map(str, failures))))

    async def _reach(self, endpoint: Endpoint) -> Link:
        context = tls_context(self._settings) if endpoint.tls else None
        connection = Connection(self._ping_after)
        link = Link(endpoint, connection)
        try:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    loop = connection.loop
                    await loop.create_connection(lambda: connection, endpoint.host, endpoint.port, ssl=context)
                    await connection.ready()
            except (OSError, ConnectionLostError) as error:  # TimeoutError and ssl.SSLError are OSErrors
                raise reasons.of_connecting(endpoint, self._settings, error) from None
            if self._settings.username:
                await self._authenticate(link)
        except BaseException:
            await connection.close()
            raise
        return link

    async def _authenticate(self, link: Link) -> None:
        settings = self._settings
        request = messages.AuthenticateRequest(name=settings.username, password=settings.password)
        link.token = ""
        try:
            answer = await _unary(link, messages.AUTHENTICATE, request, CALL_SECONDS)
            link.token = answer.token
        except StatusError as error:
            if error.code != reasons.FAILED_PRECONDITION:  # authentication is off: then no token is needed
                raise self.refused(link, error) from None
        except ConnectionLostError as error:
            raise link.lost(error) from None
        except (TimeoutError, DecodeError) as error:
            raise self.unanswered(link, error) from None


async def _unary(link: Link, method: Method, request: Message, seconds: float) -> Any:
    """One request, one answer. Raises StatusError, ConnectionLostError, TimeoutError, DecodeError."""
    async with asyncio.timeout(seconds):
        call = link.connection.call(_headers(link, method))
        try:
            await call.send(request.SerializeToString(), end=True)
            answer = await call.receive()
            if answer is None or await call.receive() is not None:
                raise DecodeError("not one answer")
        finally:
            call.cancel()
    return method.response.FromString(answer)


def _headers(link: Link, method: Method) -> Headers:
    headers: list[tuple[str, str] | HeaderTuple] = [
        (":method", "POST"),
        (":scheme", "https" if link.endpoint.tls else "http"),
        (":path", method.path),
        (":authority", link.endpoint.url.partition("://")[2]),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "podfabric"),
        ("hasleader", "true"),  # refuse at once, and end a watch, when there is no leader
    ]
    return [*headers, NeverIndexedHeaderTuple("token", link.token)] if link.token else headers
