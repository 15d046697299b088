"""The API's verbs that we need, over `Connection`: list and watch any kind, get a Node, patch a Node's status, get a
Pod, create an object.

Errors by what a caller does about them: StoreUnavailableError (try again later; with the server's own wish as
`ApiUnavailableError.retry_after`), ExpiredError (410: list anew), NotFoundError, ConflictError, and StoreError for
what trying again does not change. Source: Kubernetes API concepts (resource versions, 410, 429, pagination).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from fabric.errors import ConflictError, StoreError, StoreUnavailableError
from fabric.store.kube import nodes
from fabric.store.kube.access import Access
from fabric.store.kube.annotate import Names
from fabric.store.kube.http import Connection, Head
from fabric.store.kube.nodes import DecodeError, Event, Failure, Node, Page

PAGE = 100  # nodes: about 1.2 MB of JSON at a time
ANSWER_SECONDS = 10.0
LIST_SECONDS = 30.0
MAX_LINE = 32 << 20
NODES = "/api/v1/nodes"
ENDING = "because it is being terminated"
"""What a namespace that is being deleted answers to a new object: a 403 that is not about our role."""
BODIES = {"PATCH": "application/strategic-merge-patch+json", "POST": "application/json"}


class ApiUnavailableError(StoreUnavailableError):
    """The API says that it cannot answer now; `retry_after` is its own wish in seconds, 0 when it has none."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ExpiredError(StoreError):
    """410: the resource version, or the rest of a list, is not to be had any more."""


class ForbiddenError(ApiUnavailableError):
    """403: our role does not have this right, now."""


class NotFoundError(StoreError):
    """404: there is no such object."""


class Kind(Protocol):
    """What is listed and watched: where, and what is made of it. Both methods raise DecodeError."""

    @property
    def path(self) -> str:
        """Below the API's address."""

    def decode_list(self, data: bytes | bytearray) -> Page[Any]:
        """A page of the list."""

    def decode_event(self, line: bytes | bytearray) -> Event[Any] | Failure:
        """A line of the watch."""


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes with flannel's annotations under `names`: a `Kind`."""

    names: Names
    path: str = NODES

    def decode_list(self, data: bytes | bytearray) -> Page[Node]:
        return nodes.decode_list(data, self.names)

    def decode_event(self, line: bytes | bytearray) -> Event[Node] | Failure:
        return nodes.decode_event(line, self.names)


class Session:
    """Requests one after the other over one connection, made by `Api.session`."""

    def __init__(self, api: Api, connection: Connection, kind: Kind) -> None:
        self._api = api
        self._connection = connection
        self._kind = kind

    async def page(self, more: str, limit: int) -> Page[Any]:
        """The first objects (`limit` 0: all of them), or those behind the token `more`."""
        query = ({"limit": str(limit)} if limit else {}) | ({"continue": more} if more else {})
        seconds = ANSWER_SECONDS if limit == 1 else LIST_SECONDS
        body = await self.exchange("GET", _target(self._kind.path, query), seconds)
        return self._kind.decode_list(body)

    async def watch(self, version: str, seconds: int, silence: float) -> AsyncGenerator[Event[Any], None]:
        """Start to watch: events after `version` until the server ends it, at the latest after `seconds`.

        This and the iteration raise ExpiredError, StoreUnavailableError, and TimeoutError after `silence` seconds
        without a byte (some gateways keep even the head back until there is an event)."""
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        head = await self._ask("GET", _target(self._kind.path, query), b"", silence, patient=True)
        if head.status != 200:
            raise await self._failed(head, f"watch {self._kind.path}")
        return self._events(silence)

    async def _events(self, silence: float) -> AsyncGenerator[Event[Any], None]:
        async with contextlib.aclosing(self._connection.chunks(silence)) as chunks:
            async for line in _lines(chunks):
                found = self._kind.decode_event(line)
                if isinstance(found, Failure):
                    raise self._api.error(found.code or 500, found, f"watch {self._kind.path}")
                yield found

    async def exchange(self, method: str, target: str, seconds: float, body: bytes = b"") -> bytearray:
        """One request, answered with a body of success. Raises the errors of this module."""
        head = await self._ask(method, target, body, seconds)
        if head.status not in (200, 201):
            raise await self._failed(head, f"{method} {target.partition('?')[0]}")
        return await self._connection.body(seconds)

    async def _ask(self, method: str, target: str, body: bytes, seconds: float, patient: bool = False) -> Head:
        headers = [("Accept", "application/json"), ("User-Agent", "podfabric"), *self._api.access.headers()]
        if body:
            headers.append(("Content-Type", BODIES[method]))
        return await self._connection.ask(method, target, headers, body, seconds, patient)

    async def _failed(self, head: Head, what: str) -> StoreError:
        found = nodes.decode_status(await self._connection.body(ANSWER_SECONDS))
        with contextlib.suppress(ValueError):  # a date is allowed, too, and not worth the trouble
            seconds = float(head.headers.get("retry-after", ""))
            found = Failure(found.code, found.reason, found.message, max(found.retry_after, seconds))
        return self._api.error(head.status, found, what)


class Api:
    """The API behind `access`, for flannel's annotations under `names`."""

    def __init__(self, access: Access, names: Names) -> None:
        self.access = access
        self.names = names

    @asynccontextmanager
    async def session(self, kind: Kind | None = None) -> AsyncIterator[Session]:
        """A connection for several requests about `kind` (default: Nodes); anything undecodable in it is a
        StoreUnavailableError."""
        connection = await Connection.connect(self.access.endpoint, self.access.context())
        try:
            yield Session(self, connection, kind or NodeKind(self.names))
        except DecodeError as error:
            raise StoreUnavailableError(f"Kubernetes API {self.access.endpoint}: unexpected answer: {error}") from None
        finally:
            connection.close()

    async def node(self, name: str, seconds: float = ANSWER_SECONDS) -> Node:
        """The Node as it is now, waiting for the answer up to `seconds`."""
        async with self.session() as session:
            body = await session.exchange("GET", f"{NODES}/{quote(name, safe='')}", seconds)
            return nodes.decode_node(body, self.names)

    async def patch_status(self, name: str, patch: Mapping[str, Any]) -> Node:
        """Strategic merge patch of the Node's `status` subresource; the Node after it."""
        text = json.dumps(patch, separators=(",", ":")).encode()
        async with self.session() as session:
            target = f"{NODES}/{quote(name, safe='')}/status"
            return nodes.decode_node(await session.exchange("PATCH", target, ANSWER_SECONDS, text), self.names)

    async def create(self, path: str, document: Mapping[str, Any]) -> None:
        """A new object among those at `path`. Raises ConflictError where there is one of that name."""
        text = json.dumps(document, separators=(",", ":")).encode()
        async with self.session() as session:
            await session.exchange("POST", path, ANSWER_SECONDS, text)

    async def node_of_pod(self, namespace: str, name: str) -> str:
        """The name of the node on which a Pod runs, empty when it is not scheduled."""
        async with self.session() as session:
            target = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"
            return nodes.decode_pod_node(await session.exchange("GET", target, ANSWER_SECONDS))

    def error(self, status: int, found: Failure, what: str) -> StoreError:
        """What an answer other than success means."""
        where = f"Kubernetes API {self.access.endpoint}: {what}"
        said = f" ({found.message})" if found.message else ""
        if status == 410 or found.reason in ("Expired", "Gone"):
            return ExpiredError(f"{where}: expired")
        if status == 404:
            return NotFoundError(f"{where}: not found{said}")
        if status == 409:
            return ConflictError(f"{where}: conflict{said}")
        if status == 401:
            return ApiUnavailableError(f"{where}: our credentials are refused (401): renew the token or certificate")
        if status == 403 and ENDING not in found.message:
            return ForbiddenError(f"{where}: not allowed{said}: apply docs/kubernetes/rbac.yaml")
        if status == 429 or status >= 500:
            return ApiUnavailableError(f"{where}: answers {status} {found.reason}{said}".rstrip(), found.retry_after)
        return StoreError(f"{where}: answers {status} {found.reason}{said}")


def _target(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a stream that comes in any pieces; a last one without its end is dropped."""
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            parts.append(line)
            text = b"".join(parts)
            parts, size = [], 0
            if text.strip():
                yield text
        parts.append(rest)
        size += len(rest)
        if size > MAX_LINE:
            raise DecodeError(f"a watch event of more than {MAX_LINE >> 20} MiB")
