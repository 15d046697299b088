"""A gRPC server that says whatever it is told to: for answers that no etcd gives."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, PingReceived, RequestReceived
from h2.exceptions import H2Error

from fabric.store.etcd import messages

OK = (("grpc-status", "0"), ("grpc-message", ""))
PLAIN = ((":status", "200"), ("content-type", "application/grpc"))
HEADER = messages.RANGE.response(header={"cluster_id": 7, "revision": 3}).SerializeToString()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call gets: response headers, DATA as it is, trailers (None: the call stays open), bytes under it all."""

    data: bytes = b""
    trailers: tuple[tuple[str, str], ...] | None = OK
    headers: tuple[tuple[str, str], ...] = PLAIN
    raw: bytes = b""


Script = Callable[[str, int], Answer]  # method's name and how many calls came before -> answer


def framed(message: bytes) -> bytes:
    """As gRPC puts it on the wire."""
    return struct.pack(">BI", 0, len(message)) + message


class _Peer(asyncio.Protocol):
    def __init__(
        self, script: Script, greeting: bytes, pings: list[float] | None, open_: set[asyncio.Transport]
    ) -> None:
        self._script = script
        self._greeting = greeting
        self._pings = pings
        self._open = open_
        self._h2 = H2Connection(H2Configuration(client_side=False, validate_outbound_headers=False))
        self._paths: dict[int, str] = {}
        self._unsent: dict[int, tuple[int, Answer]] = {}
        self.calls = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(transport)
        if self._greeting:
            transport.write(self._greeting)
            return
        self._h2.initiate_connection()
        transport.write(self._h2.data_to_send())

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._greeting:
            return
        for event in self._h2.receive_data(data):
            if isinstance(event, RequestReceived):
                names = dict(event.headers or ())
                self._paths[event.stream_id or 0] = names[b":path"].decode().rpartition("/")[2]
            elif isinstance(event, PingReceived) and self._pings is not None:
                self._pings.append(asyncio.get_running_loop().time())
                self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            elif isinstance(event, DataReceived) and event.stream_id in self._paths:
                self._answer(event.stream_id, self._script(self._paths.pop(event.stream_id), self.calls))
                self.calls += 1
        for number in list(self._unsent):
            self._send(number)
        self._transport.write(self._h2.data_to_send())

    def _answer(self, number: int, answer: Answer) -> None:
        self._h2.send_headers(number, answer.headers, end_stream=False)
        self._unsent[number] = (0, answer)
        self._transport.write(self._h2.data_to_send() + answer.raw)

    def _send(self, number: int) -> None:
        """As much as flow control allows."""
        sent, answer = self._unsent[number]
        try:
            while sent < len(answer.data) and (room := min(self._h2.local_flow_control_window(number), 16384)) > 0:
                self._h2.send_data(number, answer.data[sent : sent + room])
                sent += room
            self._unsent[number] = (sent, answer)
            if sent >= len(answer.data):
                del self._unsent[number]
                if answer.trailers is not None:
                    self._h2.send_headers(number, answer.trailers, end_stream=True)
        except H2Error:  # the client gave the call up
            self._unsent.pop(number, None)


@asynccontextmanager
async def hostile(script: Script, greeting: bytes = b"", pings: list[float] | None = None) -> AsyncIterator[str]:
    """A server that answers by `script`, or that sends `greeting` and nothing else; its URL.

    With `pings` it ends the connection for the first PING that comes, and notes the time."""
    transports: set[asyncio.Transport] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Peer(script, greeting, pings, transports), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for transport in list(transports):
            transport.abort()
        await server.wait_closed()
