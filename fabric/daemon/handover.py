"""A planned restart without a pause: the successor gets ready beside its predecessor, and then takes over.

SIGHUP (`systemctl reload`) has fabricd start its own command line anew, with one end of a socket pair. The successor
loads everything, gets the descriptors that are kept for it (`fabric.forward.kept`) and the run directory's lock, and
starts as after any restart, but for the worker threads. Then it says `cut`: the predecessor ends its tasks, tells the
service manager who is the main process from now on, lets its workers finish what they have read, says `done`, and ends.
Only between the last two steps nobody forwards, and what arrives then waits in the queues that both have open.

Whatever goes wrong before `cut` ends the successor only. Messages are datagrams (SOCK_SEQPACKET): `hello`, then JSON
lists of names with as many descriptors, an empty list as the last one, then `cut` and `done`.

Limits: only under a service manager that follows MAINPID=; options are those of the predecessor. Ports cannot be added
or deleted from `hello` on until the successor is ready: whoever asks is told to try again.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fabric.daemon import systemd
from fabric.daemon.systemd import HANDOVER as VARIABLE
from fabric.errors import StartError

if TYPE_CHECKING:
    from fabric.daemon.node import Node

log = logging.getLogger("fabric")
LOCK = "lock"
SECONDS = 30.0
"""For the successor to get ready."""
CUT_SECONDS = 10.0
AT_ONCE = 100
_SIZE = 64 << 10


class Successor:
    """The new process's side."""

    def __init__(self, sock: socket.socket, store: systemd.FdStore) -> None:
        self._sock = sock
        sock.settimeout(SECONDS)
        self.lock = -1
        """The run directory's lock file, locked."""
        try:
            sock.send(b"hello")
            while names := self._receive(store):
                log.debug("handed over: %s", ", ".join(names))
        except (OSError, ValueError) as error:
            sock.close()
            raise StartError(f"nothing was handed over: {error}") from None

    @classmethod
    def from_environment(cls, store: systemd.FdStore) -> Successor | None:
        """When this process was started to take over. Raises StartError."""
        number = os.environ.pop(VARIABLE, "")
        return cls(socket.socket(fileno=int(number)), store) if number.isdecimal() else None

    def cut(self) -> None:
        """Have the predecessor stop; it forwards nothing more when this returns. Raises StartError."""
        try:
            self._sock.settimeout(CUT_SECONDS)
            self._sock.send(b"cut")
            answer = self._sock.recv(16)
        except OSError as error:
            raise StartError(f"the predecessor does not let go: {error}") from None
        finally:
            self.close()
        if answer != b"done":
            raise StartError("the predecessor ended before it let go")

    def close(self) -> None:
        """Give up, if that is not over; the predecessor goes on. Idempotent."""
        self._sock.close()

    def _receive(self, store: systemd.FdStore) -> list[str]:
        data, ancillary, _, _ = self._sock.recvmsg(
            _SIZE, socket.CMSG_SPACE(AT_ONCE * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for _, _, part in ancillary:
            fds.frombytes(part)
        names: list[str] = json.loads(data)
        for name, fd in zip(names, fds, strict=True):
            if name == LOCK:
                self.lock = fd
            else:
                store.put(name, fd)
        return names


class Giver:
    """The old process's side, one handover at a time: `begin` at a signal, `finished` when the daemon is about to end.
    """

    def __init__(self, node: Node, store: systemd.FdStore) -> None:
        self._node = node
        self._store = store
        self._task: asyncio.Task[bool] | None = None

    def begin(self) -> None:
        """Hand over, unless that is under way."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._give(), name="handover")

    async def finished(self) -> bool:
        """Until the handover that has begun is over; whether a successor took over."""
        return self._task is not None and await self._task

    async def _give(self) -> bool:
        given = await give(self._node, self._store)
        if given:
            self._node.stop_requested.set()
        return given


async def give(node: Node, store: systemd.FdStore) -> bool:
    """Start a successor and hand over to it; whether it took over. Never raises."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = None
    with ours:
        try:
            with theirs:
                process = _start(theirs)
            log.info("handing over to process %d", process.pid)
            ours.setblocking(False)
            if await _heard(ours, SECONDS) != b"hello":
                raise StartError("it did not get ready")
            node.pods.frozen = True
            async with asyncio.timeout(CUT_SECONDS):
                await node.pods.idle()
            await _send_all(ours, node.run_dir_lock, store)
            if await _heard(ours, SECONDS) != b"cut":
                raise StartError("it did not start: its log says why")
        except (OSError, StartError, TimeoutError) as error:
            node.pods.frozen = False
            log.error("the successor does not take over, going on: %s", error or "it took too long")
            if process is not None:
                process.kill()
                process.wait()
            return False
        await node.let_go(process.pid)
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(ours, b"done")
        return True


def _start(theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Our own command line again."""
    environment = {**os.environ, VARIABLE: str(theirs.fileno())}
    command = [sys.executable, *sys.orig_argv[1:]]
    return subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)


async def _heard(sock: socket.socket, seconds: float) -> bytes:
    """The next message; empty when the other side is gone. Raises TimeoutError, OSError."""
    async with asyncio.timeout(seconds):
        return await asyncio.get_running_loop().sock_recv(sock, 16)


async def _send_all(sock: socket.socket, lock: int, store: systemd.FdStore) -> None:
    loop = asyncio.get_running_loop()
    for names, fds in _portions([(LOCK, lock), *store.kept()]):
        # A pair's buffer holds a portion, and the other side is waiting for it.
        socket.send_fds(sock, [json.dumps(names).encode()], fds)
        await asyncio.sleep(0)
    await loop.sock_sendall(sock, b"[]")


def _portions(named: list[tuple[str, int]]) -> Iterator[tuple[list[str], list[int]]]:
    for start in range(0, len(named), AT_ONCE):
        part = named[start : start + AT_ONCE]
        yield [name for name, _ in part], [fd for _, fd in part]
