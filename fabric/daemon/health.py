"""The health endpoint: `/healthz` (the process runs) and `/readyz` (the node forwards), as flanneld answers them.

Source: flannel `main.go` mustRunHealthz. Own HTTP of the least kind: the head of one request is read (at most
`MAX_HEAD` bytes within `SECONDS`), answered and the connection closed. Limits: no keep-alive, no bodies, GET and HEAD
only, `MAX_CLIENTS` at a time; more are closed unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from http import HTTPStatus

from fabric.errors import StartError

log = logging.getLogger("fabric.health")
MAX_HEAD = 8 << 10
MAX_CLIENTS = 64
SECONDS = 5.0


class HealthServer:
    """Listens on `ip` (empty: every address) and `port` from `open` to `close`; `ready` is asked at each request."""

    def __init__(self, ip: str, port: int, ready: Callable[[], bool]) -> None:
        self._ip = ip
        self._port = port
        self._ready = ready
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listen. Raises StartError."""
        try:
            self._server = await asyncio.start_server(self._serve, self._ip or None, self._port, limit=MAX_HEAD)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise StartError(
                f"--healthz-port {self._port} cannot be listened on at {self._ip or 'any address'}: {reason}"
            ) from None

    async def close(self) -> None:
        """Stop listening and drop the clients. Idempotent."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._clients):
                writer.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(writer)
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(SECONDS):
                    writer.write(await self._reply(reader))
                    await writer.drain()
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "request too large")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST, "not an HTTP/1 request")
        method, path = words[0], words[1].partition(b"?")[0]
        if path == b"/healthz":
            status, text = HTTPStatus.OK, "flanneld is running"
        elif path == b"/readyz" and self._ready():
            status, text = HTTPStatus.OK, "flanneld is ready"
        elif path == b"/readyz":
            status, text = HTTPStatus.SERVICE_UNAVAILABLE, "flanneld is not ready yet"
        else:
            status, text = HTTPStatus.NOT_FOUND, "404 page not found\n"
        if method not in (b"GET", b"HEAD"):
            status, text = HTTPStatus.METHOD_NOT_ALLOWED, "GET or HEAD"
        return _response(status, text, head_only=method == b"HEAD")


def _response(status: HTTPStatus, text: str, *, head_only: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return (head if head_only else head + text).encode()
