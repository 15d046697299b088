"""One HTTP/1.1 connection to the API: h11 for the protocol, asyncio streams for the bytes.

A connection carries one exchange at a time, and every wait has a limit: a connection whose other side is gone without
a word, or is kept open by a proxy with nothing behind it, looks like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

import h11

from fabric.errors import NotConnectedError, StoreUnavailableError

CONNECT_SECONDS = 5.0
READ_BYTES = 256 << 10
MAX_BODY = 256 << 20
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the API is: `path` precedes every request's own, without a final slash; `server_name` is what the
    certificate has to carry where that is not `host`."""

    host: str
    port: int
    tls: bool
    path: str = ""
    server_name: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer; header names in lower case."""

    status: int
    headers: dict[str, str]


class Connection:
    """Made by `connect`. All methods raise StoreUnavailableError when the connection breaks or times out."""

    def __init__(self, endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._endpoint = endpoint
        self._reader = reader
        self._writer = writer
        self._protocol = h11.Connection(h11.CLIENT)

    @classmethod
    async def connect(cls, endpoint: Endpoint, context: ssl.SSLContext | None) -> Connection:
        """Open a connection; `context` is that of TLS. Raises NotConnectedError where nothing takes it."""
        name = (endpoint.server_name or endpoint.host) if context else None
        with _explained(endpoint, connecting=True):
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    endpoint.host, endpoint.port, ssl=context, server_hostname=name, limit=READ_BYTES
                )
        return cls(endpoint, reader, writer)

    async def ask(
        self, method: str, target: str, headers: Headers, body: bytes, seconds: float, patient: bool = False
    ) -> Head:
        """Send a request and wait up to `seconds` for the head of its answer; `body` is what remains to be read.

        With `patient` a head that does not come is a TimeoutError, as a silent body is."""
        if self._protocol.our_state is h11.DONE:
            self._protocol.start_next_cycle()
        default = 443 if self._endpoint.tls else 80
        host = str(Endpoint(self._endpoint.host, self._endpoint.port, self._endpoint.tls)).partition("//")[2]
        all_headers = [("Host", host.removesuffix(f":{default}")), *headers]
        if body:
            all_headers.append(("Content-Length", str(len(body))))
        request = h11.Request(method=method, target=self._endpoint.path + target, headers=all_headers)
        data = self._protocol.send(request) or b""
        data += (self._protocol.send(h11.Data(body)) or b"") if body else b""
        data += self._protocol.send(h11.EndOfMessage()) or b""
        with _explained(self._endpoint, timeouts=not patient):
            async with asyncio.timeout(seconds):
                self._writer.write(data)
                await self._writer.drain()
                event = await self._next()
        if not isinstance(event, h11.Response):
            raise StoreUnavailableError(f"Kubernetes API {self._endpoint}: the connection was closed without an answer")
        found = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
        return Head(event.status_code, found)

    async def chunks(self, silence: float) -> AsyncGenerator[bytes, None]:
        """The answer's body as it comes; TimeoutError when nothing comes for `silence` seconds."""
        with _explained(self._endpoint, timeouts=False):
            while True:
                async with asyncio.timeout(silence):
                    event = await self._next()
                if not isinstance(event, h11.Data):
                    return
                yield bytes(event.data)

    async def body(self, seconds: float) -> bytearray:
        """The whole body, at most 256 MiB and within `seconds`."""
        found = bytearray()
        with _explained(self._endpoint):
            async with asyncio.timeout(seconds), contextlib.aclosing(self.chunks(seconds)) as chunks:
                async for chunk in chunks:
                    found += chunk
                    if len(found) > MAX_BODY:
                        raise StoreUnavailableError(f"Kubernetes API {self._endpoint}: an answer of more than 256 MiB")
        return found

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE

    def close(self) -> None:
        """Drop the connection at once."""
        self._writer.transport.abort()

    async def _next(self) -> h11.Event | None:
        """The next event of the answer, None when there is no more."""
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                self._protocol.receive_data(await self._reader.read(READ_BYTES))
            elif not isinstance(event, h11.Event):
                return None
            elif not isinstance(event, h11.InformationalResponse):
                return event


@contextlib.contextmanager
def _explained(endpoint: Endpoint, timeouts: bool = True, connecting: bool = False) -> Iterator[None]:
    """Errors of the transport as StoreUnavailableError with one line."""
    where = f"Kubernetes API {endpoint}"
    try:
        yield
    except TimeoutError as error:
        if not timeouts and error.errno is None:  # with a number it is the kernel's
            raise
        raise StoreUnavailableError(f"{where} does not answer") from None
    except h11.RemoteProtocolError as error:
        raise StoreUnavailableError(f"{where}: the answer is cut off or is not HTTP: {_line(error)}") from None
    except ssl.SSLCertVerificationError as error:
        raise StoreUnavailableError(f"{where}: its certificate is not accepted: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise StoreUnavailableError(f"{where}: TLS fails: {error.reason or _line(error)}") from None
    except OSError as error:
        # A name that is not found is another server's answer, and not ours to ask for every second.
        nobody = connecting and not isinstance(error, socket.gaierror)
        kind = NotConnectedError if nobody else StoreUnavailableError
        raise kind(f"{where}: {error.strerror or _line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
