"""Numbered datagrams from one pod to another, and what became of them: lost, doubled, late, in the wrong order.

    python tests/systemd/sequence.py send IP PORT RATE       until SIGTERM; then says how many were sent
    python tests/systemd/sequence.py receive IP PORT FILE    until SIGTERM; then number, sent, received are in FILE

Each runs as a process of its own in its pod, so that they disturb each other less than threads would.
"""

from __future__ import annotations

import array
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

SIZE = 200 - 28
HEAD = struct.Struct("=Qd")
MOST_AT_ONCE = 64


class Summary(NamedTuple):
    """Of one direction over a span of time. Seconds; `gap` is the longest time without an arrival."""

    sent: int
    lost: int
    doubled: int
    reordered: int
    gap: float
    latency: float


class Flow:
    """Numbered datagrams between the namespaces of two pods, while it is open."""

    def __init__(self, source: str, target: str, address: str, port: int, rate: int, directory: Path) -> None:
        self._file = directory / f"{source}-{target}"
        me = [sys.executable, __file__]
        receive = ["receive", address, str(port), str(self._file)]
        send = ["send", address, str(port), str(rate)]
        self._processes = [
            subprocess.Popen(["ip", "netns", "exec", netns, *me, *words], stdout=subprocess.PIPE, text=True)
            for netns, words in ((target, receive), (source, send))
        ]

    def close(self, settle: float = 1.0) -> None:
        """End the sender, then the receiver when nothing more can come."""
        receiver, sender = self._processes
        for process, pause in ((sender, 0.0), (receiver, settle)):
            time.sleep(pause)  # what is under way gets this long
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=30)
            if process is sender:
                self._sent = int(out)
        self._records = _read(self._file)

    def summary(self, start: float = 0.0, end: float = float("inf")) -> Summary:
        """Of what was sent between two moments of the monotonic clock."""
        return summarize(self._records, self._sent, start, end)


def summarize(records: list[tuple[int, float, float]], count: int, start: float, end: float) -> Summary:
    """`records` are (number, sent, received) in the order of arrival, of `count` that were sent in all."""
    chosen = [record for record in records if start <= record[1] < end]
    numbers = [number for number, _, _ in chosen]
    if not numbers:
        return Summary(0, 0, 0, 0, float("inf"), float("inf"))
    whole = start == 0.0 and end == float("inf")
    first, last = (0, count - 1) if whole else (min(numbers), max(numbers))
    arrived = set(numbers)
    top, reordered = -1, 0
    for number in numbers:
        reordered += number < top
        top = max(top, number)
    times = [received for _, _, received in chosen]
    gap = max((later - earlier for earlier, later in pairwise(times)), default=0.0)
    return Summary(
        last - first + 1, last - first + 1 - len(arrived), len(numbers) - len(arrived), reordered, gap,
        max(received - sent for _, sent, received in chosen),
    )  # fmt: skip


@contextmanager
def flowing(*flows: Flow) -> Iterator[None]:
    try:
        yield
    finally:
        for flow in flows:
            flow.close()


def _read(path: Path) -> list[tuple[int, float, float]]:
    data = array.array("d")
    data.frombytes(path.read_bytes())
    return [(int(data[at]), data[at + 1], data[at + 2]) for at in range(0, len(data), 3)]


def send(address: str, port: int, rate: int) -> None:
    running = [True]
    signal.signal(signal.SIGTERM, lambda number, frame: running.clear())
    body = bytes(SIZE - HEAD.size)
    number = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)  # SO_SNDBUFFORCE
        out.connect((address, port))
        start = time.monotonic()
        while running:
            now = time.monotonic()
            due = int((now - start) * rate)
            for _ in range(min(due - number, MOST_AT_ONCE)):
                try:
                    out.send(HEAD.pack(number, time.monotonic()) + body)
                except ConnectionRefusedError:
                    continue  # nobody listens yet
                number += 1
            if due - number > MOST_AT_ONCE:  # we lost the processor: no burst that nobody asked for
                start = time.monotonic() - number / rate
            time.sleep(0.001)
    print(number)


def receive(address: str, port: int, path: str) -> None:
    running = [True]
    found = array.array("d")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as into:
        signal.signal(signal.SIGTERM, lambda number, frame: running.clear())
        into.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        into.settimeout(0.1)
        into.bind((address, port))
        while running:
            try:
                data = into.recv(2048)
            except TimeoutError:
                continue
            number, sent = HEAD.unpack_from(data)
            found.extend((number, sent, time.monotonic()))
    Path(path).write_bytes(found.tobytes())


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        receive(sys.argv[2], int(sys.argv[3]), sys.argv[4])
