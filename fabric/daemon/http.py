"""HTTP of the least kind, for the health and metrics endpoints: what a probe needs, and nothing that can be held up.

The head of one request is read (at most `MAX_HEAD` bytes), answered and the connection closed, all within `SECONDS`; a
client that does not take its answer by then is cut off, with what it has not read. Limits: no keep-alive, no bodies,
GET and HEAD only, a fixed number of clients at a time; more are closed unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import NamedTuple

from fabric.errors import StartError

MAX_HEAD = 8 << 10
MAX_CLIENTS = 64
SECONDS = 5.0
TEXT = "text/plain; charset=utf-8"
_NO_LINGER = struct.pack("ii", 1, 0)


class Reply(NamedTuple):
    """What is answered to a GET."""

    status: HTTPStatus
    body: bytes
    kind: str = TEXT


NOT_FOUND = Reply(HTTPStatus.NOT_FOUND, b"404 page not found\n")


class HttpServer:
    """Listens on `ip` (empty: every address) and `port` from `open` to `close`; `answer` is asked for each path.

    `name` is the flag without its `-port`, for the refusal.
    """

    def __init__(self, name: str, ip: str, port: int, answer: Callable[[str], Reply | Awaitable[Reply]]) -> None:
        self._name = name
        self._ip = ip
        self._port = port
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listen. Raises StartError."""
        try:
            self._server = await asyncio.start_server(self._serve, self._ip or None, self._port, limit=MAX_HEAD)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise StartError(
                f"{self._name}-port {self._port} cannot be listened on at {self._ip or 'any address'}: {reason}"
            ) from None

    async def close(self) -> None:
        """Stop listening and drop the clients. Idempotent."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._clients):
                _cut_off(writer)
            await self._server.wait_closed()
            await asyncio.sleep(0)  # what was cut off closes its socket in the loop's next turn
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(writer)
        writer.transport.set_write_buffer_limits(high=0)  # `drain` ends when the kernel has everything
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(SECONDS):
                    writer.write(await self._reply(reader))
                    await writer.drain()
                    writer.close()
        finally:
            self._clients.discard(writer)
            _cut_off(writer)

    async def _reply(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(Reply(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b"request too large"))
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(Reply(HTTPStatus.BAD_REQUEST, b"not an HTTP/1 request"))
        method, path = words[0], words[1].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response(Reply(HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD"))
        reply = self._answer(path.decode("latin-1"))
        return _response(await reply if not isinstance(reply, Reply) else reply, head_only=method == b"HEAD")


def _cut_off(writer: asyncio.StreamWriter) -> None:
    """End it now, in the kernel too where a close would wait for a client that does not read."""
    if not writer.transport.get_write_buffer_size():
        writer.close()
        return
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


def _response(reply: Reply, *, head_only: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {reply.status.value} {reply.status.phrase}\r\nContent-Type: {reply.kind}\r\n"
        f"Content-Length: {len(reply.body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    return head if head_only else head + reply.body
