"""The traffic tools against each other over loopback."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fabric.lab import blast

TOOL = [sys.executable, "-m", "fabric.lab.traffic"]


@contextmanager
def server(*argv: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen([*TOOL, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield process, str(json.loads(process.stdout.readline())["ready"])
    finally:
        process.stdin.close()
        process.wait(5)
        process.stdout.close()


def client(*argv: str) -> dict[str, Any]:
    done = subprocess.run([*TOOL, *argv], capture_output=True, text=True, timeout=20, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def last(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    result: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("address", "listen"), [("127.0.0.1", "0.0.0.0"), ("::1", "::")])
@pytest.mark.parametrize("streams", ["1", "3"])
def test_tcp_counts_every_byte(address: str, listen: str, streams: str) -> None:
    with server("tcp-sink", "--address", listen, "--streams", streams) as (sink, port):
        sent = client("tcp-send", "--address", address, "--port", port, "--streams", streams, "--seconds", "0.2")
        got = last(sink)
    assert got["bytes"] == sent["bytes"] > 0


@pytest.mark.slow
def test_rr_answers_what_was_asked() -> None:
    with server("rr-server") as (responder, port):
        where = ("--address", "127.0.0.1", "--port", port)
        sparse = client("rr-client", *where, "--seconds", "0.2", "--interval", "0.01")
        assert responder.stdin is not None
        responder.stdin.close()
        assert last(responder)["answered"] == sparse["count"]
    assert 10 <= sparse["count"] <= 21
    assert 0 < sparse["p50"] <= sparse["p99"] <= sparse["max"]


@pytest.mark.root
def test_ping_loopback() -> None:
    found = client("ping", "127.0.0.1", "::1", "--count", "2")["answers"]
    assert [(a["target"], a["sent"], len(a["times"])) for a in found] == [("127.0.0.1", 2, 2), ("::1", 2, 2)]


def test_an_error_is_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        done = subprocess.run(
            [*TOOL, "tcp-send", "--address", "127.0.0.1", "--port", port], capture_output=True, text=True, timeout=20
        )
    assert done.returncode == 1
    assert done.stderr.startswith("traffic: ")
    assert done.stderr.count("\n") == 1


@contextmanager
def udp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sink.bind(("127.0.0.1", 0))
        sink.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        sender.connect(sink.getsockname())
        yield sink, sender


@pytest.mark.parametrize("burst", [1, 32])
def test_blaster_keeps_the_order_of_sizes(burst: int) -> None:
    with udp_pair() as (sink, sender):
        sent = blast.udp_blast([sender.fileno()], [64, 200, 700], burst, 0.005)
        sizes = [len(sink.recv(2048)) for _ in range(min(sent, 96))]
    assert sizes == ([64, 200, 700] * 32)[: len(sizes)]
    assert sizes


def test_drain_counts_what_was_sent() -> None:
    with udp_pair() as (sink, sender):
        for _ in range(100):
            sender.send(b"x" * 64)
        assert blast.udp_drain(sink.fileno(), 0.05) == 100


def test_loops_end_at_their_deadline_when_nothing_arrives() -> None:
    with udp_pair() as (sink, sender):
        assert blast.udp_drain(sink.fileno(), 0.02) == 0
        sender.setblocking(True)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, array.array("l", [0, 10_000]).tobytes())
        assert blast.rr_exchange(sender.fileno(), array.array("q", bytes(80)), 64, 0.0, 0.02) == 0
    near, far = socket.socketpair()
    with near, far:
        assert blast.Streams([near.fileno()]).drain(0.02) == 0


def test_streams_end_with_their_peer() -> None:
    near, far = socket.socketpair()
    with near:
        far.send(b"x" * 1000)
        far.close()
        streams = blast.Streams([near.fileno()])
        assert streams.drain(1.0) == 1000
        assert streams.open_count() == 0


def test_transmit_gives_up_on_a_closed_peer() -> None:
    near, far = socket.socketpair()
    far.close()
    with near:
        before = os.times().elapsed
        assert blast.Streams([near.fileno()]).transmit(5.0) == 0
        assert os.times().elapsed - before < 2
