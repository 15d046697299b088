"""A server on the host's loopback made reachable on the same port of other namespaces' loopbacks.

    with relaying(etcd.port, ["fablab-node1", "fablab-node2"]) as relay:
        relay.cut("fablab-node1")      # its connections break and new ones are refused, until `restore`

The namespaces may come into being later: daemons that a lab starts find their store as soon as they exist.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from tests.scenarios import inside
from tun.errors import DeviceError

POLL_SECONDS = 0.02
READ = 1 << 16


class Relay:
    """One thread for everything. Data goes on as it comes, whole buffers at a time."""

    def __init__(self, port: int, names: Sequence[str]) -> None:
        self._port = port
        self._waiting = set(names)  # namespaces without a listener, which shall have one
        self._listeners: dict[str, socket.socket] = {}
        self._pairs: dict[socket.socket, tuple[socket.socket, str]] = {}  # to the other side, with the namespace
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self, name: str) -> None:
        """Nothing from this namespace gets through any more."""
        with self._lock:
            self._waiting.discard(name)
            if (listener := self._listeners.pop(name, None)) is not None:
                self._forget(listener)
            for sock in [sock for sock, (_, owner) in self._pairs.items() if owner == name]:
                self._drop(sock)

    def restore(self, name: str) -> None:
        """As before."""
        with self._lock:
            self._waiting.add(name)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for sock in [*self._listeners.values(), *self._pairs]:
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                self._listen()
            for key, _ in self._selector.select(POLL_SECONDS):
                with self._lock:
                    if key.data is not None:
                        self._accept(key.fileobj, key.data)  # type: ignore[arg-type]
                    else:
                        self._pass_on(key.fileobj)  # type: ignore[arg-type]

    def _listen(self) -> None:
        for name in list(self._waiting):
            with suppress(OSError, DeviceError):  # not there yet, or not complete
                sock = inside.open_socket(name, socket.AF_INET, socket.SOCK_STREAM)
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("127.0.0.1", self._port))
                    sock.listen()
                except OSError:
                    sock.close()
                    raise
                self._listeners[name] = sock
                self._selector.register(sock, selectors.EVENT_READ, name)
                self._waiting.discard(name)

    def _accept(self, listener: socket.socket, name: str) -> None:
        if self._listeners.get(name) is not listener:
            return
        client, _ = listener.accept()
        server = socket.socket()
        try:
            server.connect(("127.0.0.1", self._port))
        except OSError:
            client.close()
            server.close()
            return
        for one, other in ((client, server), (server, client)):
            self._pairs[one] = (other, name)
            self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, sock: socket.socket) -> None:
        if sock not in self._pairs:
            return
        try:
            data = sock.recv(READ)
            if data:
                self._pairs[sock][0].sendall(data)
                return
        except OSError:
            pass
        self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        if sock in self._pairs:
            other, _ = self._pairs[sock]
            for each in (sock, other):
                del self._pairs[each]
                self._forget(each)

    def _forget(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        sock.close()


@contextmanager
def relaying(port: int, names: Sequence[str]) -> Iterator[Relay]:
    """A relay for a with-block."""
    relay = Relay(port, names)
    try:
        yield relay
    finally:
        relay.close()
