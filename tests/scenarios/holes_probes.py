"""The datagrams of `holes`: who sends them, a process in each pod, and who receives them.

    python -m tests.scenarios.holes_probes --forbidden ADDRESS... | --allowed ADDRESS...
"""

from __future__ import annotations

import argparse
import itertools
import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fabric.lab import measure
from tests.scenarios import inside
from tests.scenarios.kube_lab import KubeLab
from tests.scenarios.waiting import wait_for

PORT = 7100
FORBIDDEN, ALLOWED_MARK = b"forbidden", b"allowed"
TARGETS = ("node1-pod1", "node2-pod1")
ALLOWED = ("node1-pod2", "node2-pod2")
SINKS = ("node1-pod3", "node2-pod3")
SAY_EVERY = 0.2
WAIT_SECONDS = 120.0
"""More than nodes wait before they ask an API again that has failed several times."""
FAMILIES = (4, 6)
End = tuple[str, int, bytes]
"""A pod, a family, what is said."""


# --- in a pod ---


def send(forbidden: Sequence[str], allowed: Sequence[str]) -> None:
    """A datagram a millisecond from ever new sockets, to the addresses in turn, until standard input ends; says on
    standard output how many the kernel took, by what they say and by family."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    plan = itertools.cycle([*((FORBIDDEN, to) for to in forbidden), *((ALLOWED_MARK, to) for to in allowed)])
    taken: Counter[str] = Counter()
    start = said = time.monotonic()
    tried = 0
    while not ended.is_set():
        now = time.monotonic()
        if now > said + SAY_EVERY:
            said = now
            print(json.dumps(taken), flush=True)
        if tried > (now - start) * 1000:
            ended.wait(0.001)
            continue
        tried += 1
        mark, to = next(plan)
        with socket.socket(inside.family_of(to), socket.SOCK_DGRAM) as out, suppress(OSError):
            out.sendto(mark, (to, PORT))
            taken[f"{mark.decode()} IPv{6 if ':' in to else 4}"] += 1
    print(json.dumps(taken), flush=True)


# --- around them ---


class Senders:
    """One process in every pod but the sinks."""

    def __init__(self, cluster: KubeLab) -> None:
        self._lab = cluster.policed.lab
        self._counts: dict[int, Counter[str]] = {}
        self._running = [self._start(pod.name) for pod in self._lab.pods if pod.name not in SINKS]

    def _start(self, name: str) -> tuple[subprocess.Popen[str], threading.Thread]:
        ends = SINKS if name in TARGETS else (*TARGETS, *SINKS) if name in ALLOWED else TARGETS
        to = [measure.address(self._lab.pod(end), family) for end in ends for family in FAMILIES]
        option = "--allowed" if name in ALLOWED else "--forbidden"
        words = [sys.executable, "-m", "tests.scenarios.holes_probes", option, *to]
        made = self._lab.popen(name, words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        reader = threading.Thread(target=self._read, args=(made,))
        reader.start()
        return made, reader

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._counts[process.pid] = Counter(json.loads(line))

    def sent(self) -> Counter[str]:
        return sum(list(self._counts.values()), Counter())

    def probes(self) -> int:
        """How many that must not arrive."""
        return sum(count for name, count in self.sent().items() if name.startswith(FORBIDDEN.decode()))

    def close(self) -> None:
        for process, _ in self._running:
            if process.stdin:
                process.stdin.close()
        for process, reader in self._running:
            process.wait()
            reader.join()
            if process.stdout:
                process.stdout.close()


class Receivers:
    """What has arrived, by pod, family and what it says. A thread reads, so that no queue overflows between turns."""

    def __init__(self, cluster: KubeLab) -> None:
        self.found: Counter[End] = Counter()
        self._sockets: dict[int, tuple[str, int, socket.socket]] = {}
        self._poll = select.poll()
        self._ended = threading.Event()
        for name in (*TARGETS, *SINKS):
            pod = cluster.policed.lab.pod(name)
            for family in FAMILIES:
                made = inside.open_udp(pod.netns, measure.address(pod, family), PORT)
                self._sockets[made.fileno()] = (name, family, made)
                self._poll.register(made, select.POLLIN)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._read(50)

    def _read(self, milliseconds: int) -> None:
        for fd, _ in self._poll.poll(milliseconds):
            name, family, sock = self._sockets[fd]
            self.found.update((name, family, mark) for mark in arrived(sock).elements())

    def wait_allowed(self) -> None:
        """Until what is allowed has reached every receiver once more."""
        before = self.found.copy()
        ends = [(name, family, ALLOWED_MARK) for name, family, _ in self._sockets.values()]
        wait_for(lambda: all(self.found[end] > before[end] for end in ends), "what is allowed arrives", WAIT_SECONDS)

    def forbidden(self) -> int:
        return sum(count for (*_, mark), count in self.found.copy().items() if mark != ALLOWED_MARK)

    def close(self) -> None:
        """What waits is read before."""
        self._ended.set()
        self._thread.join()
        self._read(0)
        for *_, sock in self._sockets.values():
            sock.close()


def overflows(cluster: KubeLab) -> int:
    """Datagrams that a receiver has lost because its queue was full."""

    def read() -> int:
        names, values = (line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
                         if line.startswith("Udp:"))  # fmt: skip
        six = dict(line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
        return int(dict(zip(names, values, strict=True))["RcvbufErrors"]) + int(six["Udp6RcvbufErrors"])

    return sum(inside.call(cluster.policed.lab.pod(name).netns, read) for name in (*TARGETS, *SINKS))


def arrived(receiver: socket.socket) -> Counter[bytes]:
    """The datagrams that wait."""
    receiver.setblocking(False)
    found: Counter[bytes] = Counter()
    with suppress(BlockingIOError):
        while True:
            found[receiver.recv(100)] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("forbidden", "allowed"):
        parser.add_argument(f"--{name}", nargs="*", default=(), metavar="ADDRESS")
    options = parser.parse_args()
    send(options.forbidden, options.allowed)


if __name__ == "__main__":
    main()
