"""A TCP proxy that breaks connections in the ways networks do.

    with proxying(server.port) as proxy:
        proxy.reset()        # RST on every connection
        proxy.finish()       # FIN towards the client on every connection, wherever in a frame it is
        proxy.finish_after(n) # the same after n more bytes towards the client
        proxy.swallow()      # black hole: connections stay, nothing goes through them any more; new ones work
        proxy.mute()         # new connections, too, are accepted and never answered, until `speak`
        proxy.split()        # from now on towards the client one byte at a time

It runs in a thread of the test process, on an event loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.fabric.store.etcd_server import free_port

READ = 64 << 10


@dataclass(eq=False)
class _Pair:
    """Both sides of one connection."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    flowing: asyncio.Event = field(default_factory=asyncio.Event)


class Proxy:
    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.connections = 0  # accepted so far
        self._target = target
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._muted = False
        self._split = False
        self._allowed: int | None = None  # bytes towards the client until the connection is closed
        self._loop = asyncio.new_event_loop()
        self._listener: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._call(self._listen)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        self._each(self._reset)

    def finish(self) -> None:
        self._each(lambda pair: pair.client.close())

    def finish_after(self, count: int) -> None:
        self._allowed = count

    def swallow(self) -> None:
        self._each(lambda pair: pair.flowing.clear())

    def mute(self) -> None:
        self._muted = True
        self.swallow()

    def speak(self) -> None:
        self._muted = False

    def split(self) -> None:
        self._split = True

    def refuse(self) -> None:
        """No listener any more, and every connection reset."""
        self._call(self._stop_listening)
        self.reset()

    def listen(self) -> None:
        """Again, after `refuse`."""
        self._call(self._listen)

    def close(self) -> None:
        self._call(self._shut)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _each(self, action: Callable[[_Pair], object]) -> None:
        async def run() -> None:
            for pair in list(self._pairs):
                action(pair)

        self._call(run)

    def _call(self, function: Callable[[], object]) -> None:
        """Run a coroutine function in the loop's thread and wait for it."""
        done: Future[object] = asyncio.run_coroutine_threadsafe(function(), self._loop)  # type: ignore[arg-type]
        done.result(10)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _stop_listening(self) -> None:
        assert self._listener is not None
        self._listener.close()

    async def _shut(self) -> None:
        await self._stop_listening()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pair in list(self._pairs):
            self._reset(pair)

    @staticmethod
    def _reset(pair: _Pair) -> None:
        pair.client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.client.transport.abort()
        pair.server.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, far_writer)
        if not self._muted:
            pair.flowing.set()
        self._pairs.add(pair)
        pumps = [
            asyncio.create_task(self._pump(pair, reader, far_writer, False)),
            asyncio.create_task(self._pump(pair, far_reader, writer, True)),
        ]
        self._tasks.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for task in pumps:
            task.cancel()
            self._tasks.discard(task)
        await asyncio.gather(*pumps, return_exceptions=True)
        self._pairs.discard(pair)
        writer.close()
        far_writer.close()

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_client: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ):
                await pair.flowing.wait()
                if to_client and self._allowed is not None and len(data) >= self._allowed:
                    writer.write(data[: self._allowed])
                    self._allowed = None
                    writer.close()
                    return
                if to_client and self._allowed is not None:
                    self._allowed -= len(data)
                step = 1 if self._split and to_client else len(data)
                for start in range(0, len(data), step):
                    writer.write(data[start : start + step])
                    await writer.drain()
                    if step == 1:
                        await asyncio.sleep(0)


@contextmanager
def proxying(target: int) -> Iterator[Proxy]:
    """A proxy in front of a port of this machine."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
