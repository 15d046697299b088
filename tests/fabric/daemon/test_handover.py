"""Handing over from one process to the next, both sides with fakes around the node: order, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.daemon import handover, pods_file, systemd
from fabric.daemon.handover import Successor
from fabric.daemon.node import Node
from fabric.daemon.run_dir import RunDir
from fabric.errors import FabricError, StartError
from fabric.model import Endpoint
from fabric.store.memory import MemoryStore
from tests.fabric.clock import Clock, eventually
from tests.fabric.daemon.test_pods_start import PODS
from tests.fabric.fakes import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    clock = Clock()
    return Bench(tmp_path, MemoryStore(clock), clock)


class Predecessor:
    """The other end of a successor's socket, which says what it is told to."""

    def __init__(self) -> None:
        self.sock, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(5)

    def give(self, names: list[str], fds: list[int]) -> None:
        socket.send_fds(self.sock, [json.dumps(names).encode()], fds)

    def succeed(self, bench: Bench, lock: int = -1) -> Successor:
        """The node to be made takes over, with this lock of the run directory."""
        if lock >= 0:
            self.give([handover.LOCK], [lock])
        self.give([], [])
        successor = Successor(self.theirs, systemd.FdStore())
        bench.parts = replace(bench.parts, successor=successor)
        assert self.sock.recv(16) == b"hello"
        return successor


@pytest.fixture
def before() -> Iterator[Predecessor]:
    made = Predecessor()
    yield made
    made.sock.close()
    made.theirs.close()


def run(bench: Bench, body: Callable[[Node], Awaitable[None]]) -> None:
    async def whole() -> None:
        node = bench.node()
        try:
            await asyncio.wait_for(body(node), 10)
        finally:
            await node.stop()

    asyncio.run(whole())


def test_the_cut_comes_when_all_but_the_threads_is_ready(bench: Bench, before: Predecessor) -> None:
    held = RunDir(Path(bench.options.run_dir))
    held.acquire()
    before.succeed(bench, held.lock)
    before.sock.send(b"done")
    steps: list[list[str]] = []

    async def body(node: Node) -> None:
        await node.start()
        steps.append(list(bench.journal.steps))
        assert before.sock.recv(16) == b"cut"
        assert (held.path / "fabricd.lock").read_text() == f"{os.getpid()}\n"
        held.leave()
        held.release()
        assert (held.path / "fabricd.sock").exists()

    run(bench, body)
    assert steps[0].index("reconcile") < steps[0].index("start")
    assert not (held.path / "fabricd.lock").exists(), "it is the successor's to take away"


def test_a_successor_that_fails_takes_nothing_away(bench: Bench, before: Predecessor) -> None:
    """What is there is its predecessor's, who goes on."""
    held = RunDir(Path(bench.options.run_dir))
    held.acquire()
    before.succeed(bench, held.lock)
    bench.journal.fail["reconcile"] = StartError("injected")

    async def body(node: Node) -> None:
        with pytest.raises(StartError, match="injected"):
            await node.start()

    run(bench, body)
    assert "withdraw" not in bench.journal.steps
    assert (held.path / "fabricd.lock").exists()
    assert before.sock.recv(16) == b""
    held.release()


@pytest.mark.parametrize("answer", [b"", b"other"])
def test_a_predecessor_that_does_not_let_go(bench: Bench, before: Predecessor, answer: bytes) -> None:
    successor = before.succeed(bench)
    if answer:
        before.sock.send(answer)
    else:
        before.sock.close()
    with pytest.raises(StartError, match="let go"):
        successor.cut()


def test_kept_descriptors_come_by_their_names(before: Predecessor) -> None:
    reader, writer = os.pipe()
    before.give(["one", "two"], [reader, writer])
    before.give([], [])
    store = systemd.FdStore()
    Successor(before.theirs, store)
    (one,), (two,) = store.take("one"), store.take("two")
    os.write(two, b"x")
    assert os.read(one, 1) == b"x"
    for fd in (reader, writer, one, two):
        os.close(fd)


def test_letting_go(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service manager learns of the successor before the workers stop, and nothing is taken away."""
    told: list[str] = []
    monkeypatch.setattr(systemd, "notify", lambda state, fds=(): told.append(state))

    async def body(node: Node) -> None:
        await node.start()
        run_dir = Path(node.options.run_dir)
        bench.journal.steps.clear()
        await node.let_go(4711)
        assert bench.journal.steps == ["halt"]
        assert (run_dir / "fabricd.lock").exists()
        await node.stop()
        assert (run_dir / "fabricd.lock").exists()
        assert "withdraw" not in bench.journal.steps

    run(bench, body)
    assert told == ["READY=1\nWATCHDOG=1", "MAINPID=4711"]


def test_nothing_is_added_while_a_successor_has_the_records(bench: Bench) -> None:
    async def body(node: Node) -> None:
        pods_file.save(bench.state_dir, "none", [])
        await node.start()
        node.pods.frozen = True
        params = pods_file.described(Endpoint("x", "bridge", "/run/netns/x", "eth0"))
        for call in (lambda: node.pods.add_endpoint(params), lambda: node.pods.delete_port(PODS[0].endpoint.name),
                     lambda: node.pods.delete_endpoint("x")):  # fmt: skip
            with pytest.raises(FabricError, match="try again"):
                call()
        node.pods.frozen = False
        node.pods.add_endpoint(params)

    run(bench, body)


def test_a_successor_that_dies_is_no_loss(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program ends at once: the node goes on, and can be asked for ports again."""
    monkeypatch.setattr("sys.orig_argv", ["python", "-c", "pass"])

    async def body(node: Node) -> None:
        await node.start()
        giver = handover.Giver(node, systemd.FdStore())
        giver.begin()
        assert not await giver.finished()
        assert not node.pods.frozen
        assert node.ready
        await eventually(lambda: not node.stop_requested.is_set())

    run(bench, body)
