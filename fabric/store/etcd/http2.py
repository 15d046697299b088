"""One HTTP/2 connection to a gRPC server, on asyncio: the wire side of `fabric.store.etcd`.

h2 does the protocol; this adds the transport, gRPC's framing (a flag byte and a length before each message) and the
bounds. A message is limited to `MAX_MESSAGE` bytes, what is buffered for a call beyond that by the flow-control window,
which is given back only for what was consumed: a server cannot make us hold more. Anything that h2 does not accept, or
a server that does not read what it makes us send, ends the connection, never the program.

Liveness: while a call is open and nothing was heard for `ping_after` seconds a PING goes out, and the connection is
given up when nothing at all comes within PING_TIMEOUT: a black hole, without FIN or RST, is noticed in less than ten
seconds. etcd refuses more than one PING in five seconds (`--grpc-keepalive-min-time`) and any without an open call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Sequence
from typing import cast
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error, TooManyStreamsError
from h2.settings import SettingCodes, Settings
from hpack import HeaderTuple

MAX_MESSAGE = 64 << 20
STREAM_WINDOW = 1 << 20
CONNECTION_WINDOW = 16 << 20
MAX_UNSENT = 1 << 20
PING_AFTER = 6.0
PING_TIMEOUT = 3.5
CLOSE_SECONDS = 1.0
_PREFIX = struct.Struct(">BI")
logging.getLogger("hpack").setLevel(logging.WARNING)  # it would write every header, the user's token too

Headers = Sequence[tuple[str, str] | HeaderTuple]


class ConnectionLostError(Exception):
    """The connection ended; what became of the call is not known. The text goes after "etcd URL"."""


class TooManyPingsError(ConnectionLostError):
    """The server ended the connection because it was pinged too often (GOAWAY, ENHANCE_YOUR_CALM)."""


class StatusError(Exception):
    """A call ended with a status that is not OK; `code` as in gRPC's statuscodes.md, `text` as the server sent it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = "".join(letter if letter.isprintable() else " " for letter in text[:500])


class Connection(asyncio.Protocol):
    """A protocol for `loop.create_connection`; after `ready`, `call` starts a remote procedure.

    Everything raises ConnectionLostError once it is `lost`."""

    def __init__(self, ping_after: float = PING_AFTER) -> None:
        self.loop = asyncio.get_running_loop()
        # What we send ourselves needs no validation; what comes in gets it.
        config = H2Configuration(client_side=True, header_encoding=None, validate_outbound_headers=False)
        config.normalize_outbound_headers = False
        self.h2 = H2Connection(config)
        self.heard = self.loop.time()  # when the last byte came
        self.lost: ConnectionLostError | None = None
        self._ping_after = ping_after
        self._pinged: float | None = None
        self._first = b""
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, Call] = {}
        self._ready: asyncio.Future[None] = self.loop.create_future()
        self._gone: asyncio.Future[None] = self.loop.create_future()

    async def ready(self) -> None:
        """Wait until the server has shown that it speaks HTTP/2. Raises ConnectionLostError, OSError."""
        await asyncio.shield(self._ready)

    async def close(self) -> None:
        """Close and wait until the transport is gone, at most a second. Idempotent."""
        if self.lost is None:
            with contextlib.suppress(H2Error):
                self.h2.close_connection()
            self._write()
            self._give_up(ConnectionLostError("connection closed"), abort=False)
        if self._transport is None:  # it never came to a connection
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.shield(self._gone)
        self._transport.abort()

    def fail(self, reason: str) -> None:
        """Give the connection up at once."""
        self._give_up(ConnectionLostError(reason))

    def call(self, headers: Headers) -> Call:
        """Start a call with these request headers."""
        if self.lost is not None:
            raise self.lost
        try:
            number = self.h2.get_next_available_stream_id()
            self.h2.send_headers(number, list(headers))
        except TooManyStreamsError:
            raise ConnectionLostError("takes no more calls at once") from None
        except H2Error:  # the numbers of streams are used up
            self.fail("takes no further call")
            raise ConnectionLostError("takes no further call") from None
        call = self._calls[number] = Call(self, number)
        self.flush()
        self._arm()
        return call

    def forget(self, number: int) -> None:
        """The call is over as far as we are concerned: reset its stream if it is still open."""
        call = self._calls.pop(number, None)
        if call is not None and self.lost is None:
            with contextlib.suppress(H2Error):
                call.give_back()
                if not call.closed:
                    self.h2.reset_stream(number, ErrorCodes.CANCEL)
            self.flush()

    def flush(self) -> None:
        """Write what h2 wants to send, together with what else comes in this round of the loop."""
        if not self._writing:
            self._writing = True
            self.loop.call_soon(self._write)

    def _write(self) -> None:
        self._writing = False
        if self._transport is None or self.lost is not None:
            return
        data = self.h2.data_to_send()
        if data:
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > MAX_UNSENT:
                self.fail("does not read what it is sent")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Not by item assignment, which h2 only sends with a later change of settings.
        initial = {SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW, SettingCodes.ENABLE_PUSH: 0}
        self.h2.local_settings = Settings(client=True, initial_values=initial)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        self._pinged = None
        if not self._ready.done() and not self._begins_well(data):
            self.fail("does not speak HTTP/2 with gRPC: wrong port, or https:// is missing")
            return
        try:
            for event in self.h2.receive_data(data):
                self._handle(event)
        except Exception:  # h2 says ProtocolError; whatever else a hostile peer finds in it is the same to us
            self.fail("sent what is no HTTP/2")
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        reason = getattr(exc, "strerror", None) or type(exc).__name__
        lost = ConnectionLostError("closed the connection" if exc is None else f"broke the connection ({reason})")
        lost.__cause__ = exc
        self._give_up(lost)

    def _begins_well(self, data: bytes) -> bool:
        """Whether the first frame can be SETTINGS (RFC 9113 section 3.4); h2 would wait for the whole frame."""
        self._first = (self._first + data)[:4]
        return len(self._first) < 4 or (self._first[0] == 0 and self._first[3] == 4)

    def _handle(self, event: Event) -> None:
        if isinstance(event, RemoteSettingsChanged):
            if not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(event, ConnectionTerminated):
            calm = event.error_code == ErrorCodes.ENHANCE_YOUR_CALM
            kind = TooManyPingsError if calm else ConnectionLostError
            self._give_up(kind("ended the connection (GOAWAY)"))
        elif isinstance(event, WindowUpdated) and not event.stream_id:
            for call in self._calls.values():
                call.window.set()
        call_id = getattr(event, "stream_id", None)
        found = self._calls.get(call_id) if call_id else None
        if found is not None:
            found.handle(event)

    def _give_up(self, lost: ConnectionLostError, abort: bool = True) -> None:
        if self.lost is None:
            self.lost = lost
            if not self._ready.done():
                self._ready.set_exception(lost)
                self._ready.exception()  # seen, also when nobody waits
            for call in self._calls.values():
                call.wake()
            if self._timer is not None:
                self._timer.cancel()
            if self._transport is not None and not abort:
                self._transport.close()
        if abort and self._transport is not None:
            self._transport.abort()

    def _arm(self) -> None:
        """Look again when a PING or its answer is due; the timer runs while calls are open only."""
        if self._timer is None and self._calls and self.lost is None:
            due = self.heard + self._ping_after if self._pinged is None else self._pinged + PING_TIMEOUT
            self._timer = self.loop.call_at(max(due, self.loop.time() + 0.01), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self.loop.time()
        if self._pinged is not None and now - self._pinged >= PING_TIMEOUT:
            self.fail("does not answer any more")
        elif self._calls and self._pinged is None and now - self.heard >= self._ping_after:
            with contextlib.suppress(H2Error):
                self.h2.ping(b"podfabri")
            self.flush()
            self._pinged = now
        self._arm()


class Call:
    """One remote procedure on a connection: `send` messages, `receive` messages, `cancel` at the end in any case."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._buffer = bytearray()
        self._unconsumed = 0
        self._headers: dict[str, str] = {}
        self._changed = asyncio.Event()
        self.window = asyncio.Event()
        self.closed = False  # the server has ended its side of the stream
        self.ended = False  # nothing comes any more that counts

    async def send(self, message: bytes, end: bool) -> None:
        """Send one message; `end` says that it is the last one."""
        data = memoryview(_PREFIX.pack(0, len(message)) + message)
        h2 = self._connection.h2
        while True:
            if self._connection.lost is not None:
                raise self._connection.lost
            try:
                self.window.clear()
                room = min(h2.local_flow_control_window(self._number), h2.max_outbound_frame_size)
                if room > 0 or not data:
                    chunk, data = data[:room], data[room:]
                    h2.send_data(self._number, bytes(chunk), end_stream=end and not data)
            except H2Error:  # the server ended the call before it had everything: `receive` says why
                return
            self._connection.flush()
            if not data:
                return
            if room <= 0:
                await self.window.wait()

    async def receive(self) -> bytes | None:
        """The next message, None when the call ended with status OK. Raises StatusError, ConnectionLostError."""
        while True:
            message = self.take()
            self.give_back()
            self._connection.flush()
            if message is not None:
                return message
            if self.ended:
                self._check_status()
                return None
            if self._connection.lost is not None:
                raise self._connection.lost
            self._changed.clear()
            await self._changed.wait()

    def take(self) -> bytes | None:
        """A message that is there already, if any. Raises ConnectionLostError for one that nobody would send."""
        if len(self._buffer) < _PREFIX.size:
            return None
        compressed, length = _PREFIX.unpack_from(self._buffer)
        if compressed or length > MAX_MESSAGE:
            what = "compressed" if compressed else f"of {length} bytes, more than {MAX_MESSAGE}"
            self._connection.fail(f"sent an answer that is {what}")
            self._buffer.clear()
            raise ConnectionLostError(f"sent an answer that is {what}")
        end = _PREFIX.size + length
        if len(self._buffer) < end:
            return None
        message = bytes(memoryview(self._buffer)[_PREFIX.size : end])
        del self._buffer[:end]
        return message

    def cancel(self) -> None:
        """End the call. Idempotent."""
        self._connection.forget(self._number)

    def give_back(self) -> None:
        """Open the flow-control window again by what was consumed."""
        if self._unconsumed and self._connection.lost is None:
            with contextlib.suppress(H2Error):
                self._connection.h2.acknowledge_received_data(self._unconsumed, self._number)
        self._unconsumed = 0

    def wake(self) -> None:
        """Something happened to the connection."""
        self._changed.set()
        self.window.set()

    def handle(self, event: Event) -> None:
        """Take an event of this call's stream over."""
        if isinstance(event, DataReceived):
            self._unconsumed += event.flow_controlled_length or 0
            if not self.ended:
                self._buffer += event.data or b""
        elif isinstance(event, ResponseReceived | TrailersReceived):
            for name, value in event.headers or ():
                self._headers[_text(name)] = _text(value)
            kind = self._headers.get("content-type", "")
            if self._headers.get(":status") != "200" or not kind.startswith("application/grpc"):
                self.ended = True  # some other web server: what it sends is no message
        elif isinstance(event, StreamEnded):
            self.closed = self.ended = True
        elif isinstance(event, StreamReset):
            self.closed = self.ended = True
            self._headers.setdefault("grpc-status", "14")
            self._headers.setdefault("grpc-message", f"the call was reset ({event.error_code})")
        self.wake()

    def _check_status(self) -> None:
        status = self._headers.get("grpc-status", "")
        if status == "0":
            return
        if status.isascii() and status.isdigit() and len(status) <= 3:
            raise StatusError(int(status), unquote(self._headers.get("grpc-message", ""), errors="replace"))
        raise StatusError(2, f"HTTP status {self._headers.get(':status', '')[:3]} instead of a gRPC answer")


def _text(data: bytes | str) -> str:
    return data if isinstance(data, str) else data.decode("utf-8", "replace")
