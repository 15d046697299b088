"""The control socket: newline-delimited JSON, one request and one answer per line.

Request `{"method": "status", "params": {…}}`, answer `{"result": …}` or `{"error": "one line"}`. Only root and the
daemon's own user may ask (SO_PEERCRED, besides the socket's mode 0600). Descriptors may come along (SCM_RIGHTS): they
belong to the request whose bytes they came with, and what its method does not take is closed. asyncio's streams know no
ancillary data, so a task per client waits until its socket is readable and calls recvmsg(2).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import inspect
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fabric import jsonsafe
from fabric.errors import FabricError

log = logging.getLogger("fabric.control")
MAX_LINE = 64 << 10
MAX_FDS = 4
"""Descriptors with one request; the kernel drops what is beyond."""
_ROOM = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_CREDENTIALS = struct.Struct("3i")


class Descriptors:
    """The descriptors that came with a request: a method takes them, or they are closed."""

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def take(self) -> list[int]:
        """All of them; they are the caller's to close then."""
        fds, self._fds = self._fds, []
        return fds

    def add(self, fds: Iterable[int]) -> None:
        """More that came with the same request."""
        self._fds += fds

    def close(self) -> None:
        """Close those that nobody has taken."""
        for fd in self.take():
            os.close(fd)


Method = Callable[[dict[str, Any], Descriptors], Any | Awaitable[Any]]


class ControlServer:
    """Answers `methods`; one that raises a FabricError answers with its text."""

    def __init__(self, path: Path, methods: Mapping[str, Method]) -> None:
        self._path = path
        self._methods = methods
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # ours: the run directory is locked
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            listener.bind(os.fspath(self._path))
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
        listener.listen(128)
        self._listener = listener
        self._start(self._accept(listener))

    async def close(self) -> None:
        """Stop listening, drop the clients and remove the socket. Idempotent."""
        if self._listener is not None:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left: those who wait are taken when there are some
                log.warning("control socket: %s", error.strerror)
                await asyncio.sleep(1)
                continue
            client.setblocking(False)
            self._start(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(ConnectionError):  # they may go at any time
            if not _allowed(client):
                await _send(client, {"error": "permission denied: only root and the daemon's user may ask"})
                return
            async with contextlib.aclosing(_requests(client)) as requests:
                async for line, passed in requests:
                    try:
                        await _send(client, await self._answer(line, passed))
                    finally:
                        passed.close()

    async def _answer(self, line: bytes, passed: Descriptors) -> dict[str, Any]:
        try:
            request = jsonsafe.loads(line, max_bytes=MAX_LINE)
        except jsonsafe.JsonError as error:
            return {"error": f"the request is not valid JSON: {error}"}
        method = request.get("method") if isinstance(request, dict) else None
        params = request.get("params") or {} if isinstance(request, dict) else None
        if not isinstance(method, str) or not isinstance(params, dict):
            return {"error": 'a request is {"method": "NAME", "params": {…}}'}
        handler = self._methods.get(method)
        if handler is None:
            return {"error": f"unknown method {method[:40]!r}: one of {', '.join(sorted(self._methods))}"}
        try:
            result = handler(params, passed)
            return {"result": await result if inspect.isawaitable(result) else result}
        except FabricError as error:
            return {"error": str(error)}
        except Exception:
            log.exception("control method %s failed", method)
            return {"error": f"{method} failed inside the daemon: see its log"}


async def _requests(client: socket.socket) -> AsyncGenerator[tuple[bytes, Descriptors], None]:
    """Line after line with the descriptors that came along, until the client goes or a line is beyond MAX_LINE."""
    received, passed = b"", Descriptors()
    try:
        while True:
            await _readable(client)
            try:
                data, ancillary, _, _ = client.recvmsg(MAX_LINE, _ROOM, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                continue
            passed.add(_descriptors(ancillary))
            received += data
            while b"\n" in received:
                line, _, received = received.partition(b"\n")
                yield line, passed
                passed = Descriptors()
            if not data or len(received) > MAX_LINE or len(passed) > MAX_FDS:
                return
    finally:
        passed.close()


async def _readable(client: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(client, wake)
    try:
        await ready
    finally:
        loop.remove_reader(client)


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


async def _send(client: socket.socket, answer: Mapping[str, Any]) -> None:
    data = json.dumps(answer, default=str).encode() + b"\n"
    await asyncio.get_running_loop().sock_sendall(client, data)


def _allowed(client: socket.socket) -> bool:
    data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(data)[1] in (0, os.geteuid())
