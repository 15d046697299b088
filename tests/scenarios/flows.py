"""Traffic whose every byte is compared: TCP transfers, datagrams, and a probe flow that dates every loss."""

from __future__ import annotations

import bisect
import functools
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.scenarios import inside
from tests.scenarios.waiting import wait_for

WINDOW = 32


@functools.cache
def data(size: int) -> bytes:
    """The same pseudo-random bytes for the same size."""
    return random.Random(size).randbytes(size)


@dataclass(frozen=True, slots=True)
class Transfer:
    """What arrived: whether it is what was sent, and how fast it was."""

    intact: bool
    received: int
    seconds: float

    @property
    def gbps(self) -> float:
        return self.received * 8 / self.seconds / 1e9


def send_tcp(source: str, target: str, ip: str, size: int = 16 << 20) -> Transfer:
    """`size` bytes over one connection from one namespace to an address in another."""
    with inside.listen(target, ip) as listener:
        return transfer(source, ip, listener, data(size))


def transfer(source: str, ip: str, listener: socket.socket, sent: bytes) -> Transfer:
    """`sent` over one connection to `listener`."""
    with inside.connect(source, ip, listener.getsockname()[1]) as out, listener.accept()[0] as into:
        into.settimeout(20)
        sender = threading.Thread(target=_send_all, args=(out, sent))
        start = time.monotonic()
        sender.start()
        received = receive_all(into, len(sent))
        seconds = time.monotonic() - start
        sender.join()
        return Transfer(received == sent, len(received), seconds)


def _send_all(out: socket.socket, sent: bytes) -> None:
    try:
        out.sendall(sent)
        out.shutdown(socket.SHUT_WR)
    except OSError:
        out.close()


def receive_all(into: socket.socket, size: int) -> bytearray:
    """Up to `size` bytes; fewer when the peer closes or nothing comes any more."""
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    try:
        while filled < size and (count := into.recv_into(view[filled:])):
            filled += count
    except TimeoutError:
        pass
    view.release()
    return buffer[:filled]


def send_datagrams(out: socket.socket, into: socket.socket, sizes: Sequence[int]) -> list[str]:
    """Datagrams of these sizes from one bound socket to another, a few in flight; what went wrong, in words."""
    problems: list[str] = []
    for start in range(0, len(sizes), WINDOW):
        window = sizes[start : start + WINDOW]
        for size in window:
            out.sendto(data(size), into.getsockname())
        for size in window:
            try:
                got, sender = into.recvfrom(70_000)
            except TimeoutError:
                return [*problems, f"{size} B from {out.getsockname()[0]} did not arrive"]
            if got != data(size):
                problems.append(f"{size} B became {len(got)} B or other bytes")
            if sender[:2] != out.getsockname()[:2]:
                problems.append(f"{size} B came from {sender}")
    return problems


def exchange_datagrams(
    source: str, source_ip: str, target: str, target_ip: str, sizes: Sequence[int], *, fragment: bool | None = None
) -> list[str]:
    """Both ways."""
    with (
        inside.open_udp(source, source_ip, fragment=fragment) as one,
        inside.open_udp(target, target_ip, fragment=fragment) as other,
    ):
        return send_datagrams(one, other, sizes) + send_datagrams(other, one, sizes)


class Probes:
    """A request every `interval` seconds and its answer, in order of sequence numbers, from two threads of the test.

    `sent[i]` and `answered[i]` are times on the monotonic clock, `answered[i]` 0 while there is no answer.
    """

    def __init__(self, source: str, source_ip: str, target: str, target_ip: str, interval: float = 0.002) -> None:
        self.sent: list[float] = []
        self.answered: list[float] = []
        self.refused = 0
        self._interval = interval
        self._out = inside.open_udp(source, source_ip)
        self._echo = inside.open_udp(target, target_ip)
        self._to = self._echo.getsockname()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._ask, self._reply)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._echo.close()

    def _ask(self) -> None:
        poller = select.poll()
        poller.register(self._out, select.POLLIN)
        following = time.monotonic()
        while not self._ended.is_set():
            now = time.monotonic()
            if now >= following:
                following = max(following + self._interval, now)
                self.answered.append(0.0)
                self.sent.append(now)
                try:
                    self._out.sendto(struct.pack("!I", len(self.sent) - 1), self._to)
                except OSError:  # no route for the moment: as lost as on the wire
                    self.refused += 1
            if poller.poll(max(0.0, following - time.monotonic()) * 1000):
                self._take()

    def _take(self) -> None:
        try:
            number = struct.unpack("!I", self._out.recv(64))[0]
        except OSError:
            return
        self.answered[number] = time.monotonic()

    def _reply(self) -> None:
        poller = select.poll()
        poller.register(self._echo, select.POLLIN)
        while not self._ended.is_set():
            if poller.poll(50):
                request, sender = self._echo.recvfrom(64)
                try:
                    self._echo.sendto(request, sender)
                except OSError:
                    self.refused += 1

    def lost(self, since: float = 0.0, settle: float = 1.0) -> int:
        """Requests sent from `since` on without an answer. Those of the last moment get `settle` seconds."""
        last = len(self.sent)
        missing = [i for i in range(last) if self.sent[i] >= since]

        def none_missing() -> bool:
            missing[:] = [i for i in missing if not self.answered[i]]
            return not missing or time.monotonic() > self.sent[last - 1] + settle

        wait_for(none_missing, "answers", settle + 5)
        return len(missing)

    def wait_answer(self, since: float, what: str, seconds: float = 10.0) -> float:
        """Wait until five requests in a row, sent at or after `since`, were answered; how long after it that began."""

        def run_of_answers() -> float:
            first = bisect.bisect_left(self.sent, since)
            answers = self.answered[first:]
            for i in range(len(answers) - 4):
                if all(answers[i : i + 5]):
                    return self.sent[first + i]
            return 0.0

        return wait_for(run_of_answers, what, seconds) - since

    def gap(self, since: float, seconds: float = 10.0) -> float:
        """Seconds from the first to the last lost request since `since`. Call it when the fault should be over."""
        return self._span(since, seconds)[1]

    def outage(self, since: float, seconds: float = 10.0) -> float:
        """Seconds from `since` to the last request that was lost. Call it when the fault should be over."""
        return self._span(since, seconds)[0]

    def _span(self, since: float, seconds: float) -> tuple[float, float]:
        """Seconds from `since`, and from the first lost request, to the last lost one."""
        now = time.monotonic()
        until = now + self.wait_answer(now, "an answer after the fault", seconds)
        lost = [
            sent for sent, answer in zip(self.sent, self.answered, strict=False) if since <= sent < until and not answer
        ]
        last = max(lost, default=since)
        return last - since, last - min(lost, default=since)


@contextmanager
def probing(source: str, source_ip: str, target: str, target_ip: str) -> Iterator[Probes]:
    """Probes for a with-block; it begins when the first one was answered."""
    probes = Probes(source, source_ip, target, target_ip)
    probes.start()
    try:
        probes.wait_answer(0.0, "the first answer")
        yield probes
    finally:
        probes.close()


SOL_UDP, UDP_SEGMENT = 17, 103


def send_segmented(source: str, source_ip: str, target: str, target_ip: str, size: int, total: int) -> list[str]:
    """`total` bytes in one send with UDP_SEGMENT, as datagrams of `size` bytes; what went wrong, in words."""
    content = data(total)
    with inside.open_udp(source, source_ip) as out, inside.open_udp(target, target_ip) as into:
        out.setsockopt(SOL_UDP, UDP_SEGMENT, size)
        out.sendto(content, into.getsockname())
        for start in range(0, total, size):
            try:
                got = into.recv(70_000)
            except TimeoutError:
                return [f"datagram {start // size} of {size} B did not arrive"]
            if got != content[start : start + size]:
                return [f"datagram {start // size} of {size} B arrived as {len(got)} B or other bytes"]
    return []


def send_tcp_streams(source: str, target: str, ip: str, streams: int, size: int) -> list[str]:
    """Several connections at once with different bytes in each; what went wrong, in words."""
    problems: list[str] = []

    def one(number: int) -> None:
        content = bytes([number]) + data(size)
        with inside.listen(target, ip) as listener:
            done = transfer(source, ip, listener, content)
        if not done.intact:
            problems.append(f"stream {number}: {done.received} of {len(content)} bytes, or others")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems


def blast(source: str, source_ip: str, target: tuple[str, int], size: int, count: int) -> int:
    """`count` datagrams as fast as one socket takes them; how many it took."""
    content = data(size)
    with inside.open_udp(source, source_ip) as out:
        for _ in range(count):
            out.sendto(content, target)
    return count


def drain(sink: socket.socket) -> int:
    """Read until nothing comes for the socket's timeout; how many datagrams there were."""
    count = 0
    try:
        while True:
            sink.recv(70_000)
            count += 1
    except TimeoutError:
        return count
