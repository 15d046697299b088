"""Many probes at once between pods: every pod answers on its ports, every pod asks every one, from one process.

A cell is (family, source, destination, protocol, port). TCP is a connection that is made, UDP a datagram that arrives
and its answer, SCTP a raw INIT that arrives (RFC 9260 section 3.3.2; no host here speaks SCTP, so nobody answers).
Each round asks from new ports, so each probe is a new flow.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial

from scapy.layers.sctp import SCTP, SCTPChunkInit

from tests.scenarios import inside

Cell = tuple[int, str, str, str, int]
IPPROTO_SCTP = 132
AGAIN_SECONDS = 0.3
DEADLINE_SECONDS = 8.0
FIRST_PORT, PORTS = 20_000, 12_000  # of UDP probes, below the ephemeral ones
INIT_TAG_AT = 16  # common header (12), chunk header (4)
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST


@lru_cache(16)
def init(number: int, port: int) -> bytes:
    """An INIT whose source port is the round's, or the flow of an earlier round would be asked about."""
    return bytes(SCTP(sport=10_000 + number % 50_000, dport=port, tag=0) / SCTPChunkInit(init_tag=number))


class Loop:
    """Sockets of any namespace and what to do when they are ready."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}

    def watch(self, sock: socket.socket, events: int, ready: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._ready[sock.fileno()] = ready
        self._poll.register(sock.fileno(), events)

    def forget(self, sock: socket.socket) -> None:
        """No more of this one, and close it."""
        if self._ready.pop(sock.fileno(), None):
            self._poll.unregister(sock.fileno())
        sock.close()

    def serve(self, seconds: float) -> None:
        """What is ready within `seconds`, and whatever is ready then."""
        events = self._poll.poll(seconds)
        while events:
            for fd, _ in events:
                if fd in self._ready:
                    self._ready[fd]()
            events = self._poll.poll(0)

    def close(self) -> None:
        self._poll.close()


@dataclass
class Round:
    """Probes under way: `arrived` what came to its destination, `answered` what came back."""

    number: int
    asking: set[tuple[str, int]] = field(default_factory=set)  # ends of the connections that were asked for
    arrived: set[Cell] = field(default_factory=set)
    answered: set[Cell] = field(default_factory=set)

    def done(self, cell: Cell) -> bool:
        return cell in (self.arrived if cell[3] == "SCTP" else self.answered)


class Pods:
    """The answering side: sockets in every pod that was added, on these ports."""

    def __init__(self, tcp: Sequence[int], udp: Sequence[int]) -> None:
        self.tcp, self.udp = tcp, udp
        self.loop = Loop()
        self.netns: dict[str, str] = {}
        self.addresses: dict[str, dict[int, str]] = {}
        self.names: dict[str, str] = {}
        self.round = Round(0)
        self._servers: dict[str, list[socket.socket]] = {}
        self._accepted: list[socket.socket] = []

    def close(self) -> None:
        for name in list(self.netns):
            self.remove(name)
        self.loop.close()

    def add(self, name: str, netns: str, addresses: Mapping[int, str]) -> None:
        """Answer in this pod, which has these addresses by family, from now on."""
        self.netns[name], self.addresses[name] = netns, dict(addresses)
        self.names |= dict.fromkeys(addresses.values(), name)
        self._servers[name] = inside.call(netns, partial(self._open, name, addresses))

    def remove(self, name: str) -> None:
        for sock in self._servers.pop(name):
            self.loop.forget(sock)
        del self.netns[name]
        for address in self.addresses.pop(name).values():
            del self.names[address]

    def _open(self, name: str, addresses: Mapping[int, str]) -> list[socket.socket]:
        made = []
        for family, address in addresses.items():
            domain = inside.family_of(address)
            for port in self.tcp:
                listener = socket.socket(domain, socket.SOCK_STREAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, port))
                listener.listen(256)
                self.loop.watch(listener, select.EPOLLIN, partial(self._accept, listener, (family, name, port)))
                made.append(listener)
            for port in self.udp:
                datagrams = socket.socket(domain, socket.SOCK_DGRAM)
                datagrams.bind((address, port))
                self.loop.watch(datagrams, select.EPOLLIN, partial(self._receive, datagrams, (family, name, port)))
                made.append(datagrams)
            raw = socket.socket(domain, socket.SOCK_RAW, IPPROTO_SCTP)
            raw.bind((address, 0))
            self.loop.watch(raw, select.EPOLLIN, partial(self._chunk, raw, family, name))
            made.append(raw)
        return made

    def _came(self, sender: str, protocol: str, at: tuple[int, str, int]) -> None:
        family, name, port = at
        if sender in self.names:
            self.round.arrived.add((family, self.names[sender], name, protocol, port))

    def _accept(self, listener: socket.socket, at: tuple[int, str, int]) -> None:
        with suppress(BlockingIOError):
            while True:
                made, sender = listener.accept()
                # One of an earlier round, whose last segment was late, is not this one's.
                if sender[:2] in self.round.asking:
                    self._came(sender[0], "TCP", at)
                self._accepted.append(made)

    def _receive(self, sock: socket.socket, at: tuple[int, str, int]) -> None:
        with suppress(BlockingIOError):
            while True:
                data, sender = sock.recvfrom(64)
                if int(data) == self.round.number:
                    self._came(sender[0], "UDP", at)
                    sock.sendto(data, sender)

    def _chunk(self, raw: socket.socket, family: int, name: str) -> None:
        with suppress(BlockingIOError):
            while True:
                data, sender = raw.recvfrom(256)
                head = data[(data[0] & 15) * 4 :] if family == 4 else data
                (port,) = struct.unpack_from("!H", head, 2)
                (tag,) = struct.unpack_from("!I", head, INIT_TAG_AT)
                if tag == self.round.number:
                    self._came(sender[0], "SCTP", (family, name, port))

    def probe(self, expected: Mapping[Cell, bool], denied: Callable[[], int]) -> list[str]:
        """Ask all cells; what is not as expected, in lines. `denied()` is how many packets policy has dropped so far:
        that has to grow by the cells that must not pass, and when it has nothing can be under way any more.
        """
        self.round = Round(self.round.number + 1)
        enough = denied() + sum(not passes for passes in expected.values())
        with closing(Asking(self, expected)) as asking:
            asking.send(expected)
            begun = again = time.monotonic()
            while time.monotonic() < begun + DEADLINE_SECONDS:
                self.loop.serve(0.01)
                waiting = [cell for cell, passes in expected.items() if passes and not self.round.done(cell)]
                if not waiting and denied() >= enough:
                    break
                if waiting and time.monotonic() > again + AGAIN_SECONDS:
                    again = time.monotonic()
                    asking.send(cell for cell in waiting if cell[3] != "TCP")
            self.loop.serve(0)
            self._hang_up()
        missing = enough - denied()
        uncounted = [f"{missing} that must not pass were not dropped by policy"] if missing > 0 else []
        return self._wrong(expected) + uncounted

    def _hang_up(self) -> None:
        """Not at once: the other end has to see that it was connected."""
        while self._accepted:
            made = self._accepted.pop()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            made.close()

    def _wrong(self, expected: Mapping[Cell, bool]) -> list[str]:
        wrong = []
        for cell, passes in expected.items():
            family, source, destination, protocol, port = cell
            if passes != (self.round.done(cell) if passes else cell in self.round.arrived | self.round.answered):
                said = "did not pass" if passes else "passed"
                wrong.append(f"IPv{family} {source} > {destination} {protocol}/{port} {said}")
        return wrong


class Asking:
    """The asking sockets of one round, made in the namespaces of their pods."""

    def __init__(self, pods: Pods, cells: Iterable[Cell]) -> None:
        self.pods = pods
        self._streams: dict[Cell, socket.socket] = {}
        self._others: dict[tuple[int, str, str], socket.socket] = {}
        by_source: dict[str, list[Cell]] = {}
        for cell in cells:
            by_source.setdefault(cell[1], []).append(cell)
        for source, given in by_source.items():
            inside.call(pods.netns[source], partial(self._open, source, given))

    def close(self) -> None:
        for sock in (*self._streams.values(), *self._others.values()):
            self.pods.loop.forget(sock)

    def _open(self, source: str, cells: list[Cell]) -> None:
        for cell in cells:
            family, protocol = cell[0], cell[3]
            domain = socket.AF_INET if family == 4 else socket.AF_INET6
            if protocol == "TCP":
                self._streams[cell] = made = socket.socket(domain, socket.SOCK_STREAM)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                made.setblocking(False)
            elif (family, source, protocol) not in self._others:
                raw = protocol == "SCTP"
                made = socket.socket(domain, socket.SOCK_RAW if raw else socket.SOCK_DGRAM, IPPROTO_SCTP if raw else 0)
                port = 0 if raw else FIRST_PORT + self.pods.round.number % PORTS
                made.bind((self.pods.addresses[source][family], port))
                self._others[family, source, protocol] = made
                if not raw:
                    self.pods.loop.watch(made, select.EPOLLIN, partial(self._answer, made, family, source))

    def send(self, cells: Iterable[Cell]) -> None:
        number = self.pods.round.number
        for cell in cells:
            family, source, destination, protocol, port = cell
            address = self.pods.addresses[destination][family]
            if protocol == "TCP":
                self._connect(cell, address)
                continue
            sock = self._others[family, source, protocol]
            if protocol == "UDP":
                sock.sendto(str(number).encode(), (address, port))
            else:
                sock.sendto(init(number, port), (address, 0))

    def _connect(self, cell: Cell, address: str) -> None:
        sock = self._streams[cell]
        found = sock.connect_ex((address, cell[4]))
        if found not in (0, errno.EINPROGRESS):
            raise AssertionError(f"{cell}: {errno.errorcode[found]} at once")
        self.pods.round.asking.add(sock.getsockname()[:2])
        self.pods.loop.watch(sock, select.EPOLLOUT, partial(self._connected, cell, sock))

    def _connected(self, cell: Cell, sock: socket.socket) -> None:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            self.pods.round.answered.add(cell)
        self.pods.loop.forget(sock)

    def _answer(self, sock: socket.socket, family: int, source: str) -> None:
        with suppress(BlockingIOError):
            while True:
                data, sender = sock.recvfrom(64)
                if int(data) == self.pods.round.number and sender[0] in self.pods.names:
                    self.pods.round.answered.add((family, source, self.pods.names[sender[0]], "UDP", sender[1]))
