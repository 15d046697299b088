"""The health endpoint over real sockets: flanneld's answers, and clients that do not behave."""

import asyncio
import select
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import pytest

from fabric.daemon import http
from fabric.daemon.health import HealthServer
from fabric.daemon.http import HttpServer, Reply
from fabric.errors import StartError


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def with_server(body: Callable[[int], Awaitable[None]], ready: Callable[[], bool] = lambda: True) -> None:
    async def whole() -> None:
        port = free_port()
        server = HealthServer("127.0.0.1", port, ready)
        await server.open()
        try:
            await asyncio.wait_for(body(port), 20)
        finally:
            await server.close()
            await server.close()

    asyncio.run(whole())


async def ask(port: int, request: bytes) -> bytes:
    """Everything that is answered to `request` until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_line", "ready", "status", "text"),
    [
        ("GET /healthz HTTP/1.1", True, b"200 OK", b"flanneld is running"),
        ("GET /healthz HTTP/1.1", False, b"200 OK", b"flanneld is running"),
        ("GET /readyz HTTP/1.1", True, b"200 OK", b"flanneld is ready"),
        ("GET /readyz?x=1 HTTP/1.0", True, b"200 OK", b"flanneld is ready"),
        ("GET /readyz HTTP/1.1", False, b"503 Service Unavailable", b"flanneld is not ready yet"),
        ("HEAD /readyz HTTP/1.1", False, b"503 Service Unavailable", b""),
        ("HEAD /healthz HTTP/1.1", True, b"200 OK", b""),
        ("GET /metrics HTTP/1.1", True, b"404 Not Found", b"404 page not found\n"),
        ("GET / HTTP/1.1", True, b"404 Not Found", b"404 page not found\n"),
        ("POST /healthz HTTP/1.1", True, b"405 Method Not Allowed", b"GET or HEAD"),
        ("GET /healthz", True, b"400 Bad Request", b"not an HTTP/1 request"),
        ("\x16\x03\x01", True, b"400 Bad Request", b"not an HTTP/1 request"),
    ],
)
def test_answers(request_line: str, ready: bool, status: bytes, text: bytes) -> None:
    async def body(port: int) -> None:
        answer = await ask(port, f"{request_line}\r\nHost: x\r\nUser-Agent: kube-probe/1.30\r\n\r\n".encode())
        head, _, found = answer.partition(b"\r\n\r\n")
        assert (head.split(b"\r\n")[0], found) == (b"HTTP/1.1 " + status, text)
        assert b"Connection: close" in head

    with_server(body, lambda: ready)


def test_readiness_is_asked_anew_each_time() -> None:
    answers = [True, False]

    async def body(port: int) -> None:
        assert b" 503 " in await ask(port, b"GET /readyz HTTP/1.1\r\n\r\n")
        assert b" 200 " in await ask(port, b"GET /readyz HTTP/1.1\r\n\r\n")

    with_server(body, answers.pop)


def test_a_head_without_end_is_cut_off_and_others_are_served() -> None:
    async def body(port: int) -> None:
        assert b" 431 " in await ask(port, b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 4000)
        assert b" 200 " in await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n")

    with_server(body)


def test_silent_clients_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SECONDS", 0.05)

    async def body(port: int) -> None:
        assert await ask(port, b"GET /healthz") == b""

    with_server(body)


def test_more_clients_than_allowed_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CLIENTS", 2)

    async def body(port: int) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        idle[0][1].write(b"G")  # both are accepted once one of them is being read
        await idle[0][1].drain()
        assert await ask(port, b"") == b""
        for _, writer in idle:
            writer.close()

    with_server(body)


def test_a_client_that_does_not_take_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SECONDS", 0.1)
    body = bytes(32 << 20)  # more than the kernel takes

    async def whole() -> None:
        server = HttpServer("--x", "127.0.0.1", port := free_port(), lambda path: Reply(HTTPStatus.OK, body))
        await server.open()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            ended = select.poll()
            ended.register(client, 0)  # POLLHUP and POLLERR come unasked
            assert await asyncio.to_thread(ended.poll, 10_000)
        await server.close()

    asyncio.run(whole())


def test_a_port_that_is_held_refuses_the_start() -> None:
    async def body(port: int) -> None:
        with pytest.raises(StartError) as error:
            await HealthServer("127.0.0.1", port, lambda: True).open()
        assert str(error.value) == (
            f"--healthz-port {port} cannot be listened on at 127.0.0.1: Address already in use"
        )

    with_server(body)
