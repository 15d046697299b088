"""Whether anything forbidden gets through while policies change, pods start and daemons end (R14): by hand, as root.

    python -m tests.scenarios.holes --probes 1000000 --restarts 100 --starts 100

All pods but one of two nodes send it a datagram a millisecond, each of a new flow, which no policy allows. Meanwhile
files are written and renamed, the pod is taken away and added, its node's daemon ends in order and by SIGKILL.

Exit code 0: nothing arrived; 1: something did; 2: the target was out of reach for its own node, which proves nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from fabric.lab import Lab
from tests.scenarios import inside
from tests.scenarios.policy_lab import WEB, PolicyLab, pod_object, policy
from tests.scenarios.waiting import wait_for

PORT = 7100
PODS = 6
SAY_EVERY = 500


def send(address: str) -> None:
    """A datagram a millisecond from ever new sockets until standard input ends; says how many on standard output."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    start, sent = time.monotonic(), 0
    while not ended.is_set():
        if sent > (time.monotonic() - start) * 1000:
            ended.wait(0.001)
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out, suppress(OSError):
            out.sendto(b"forbidden", (address, PORT))
        sent += 1
        if sent % SAY_EVERY == 0:
            print(sent, flush=True)
    print(sent, flush=True)


class Senders:
    """One process in every pod but the target."""

    def __init__(self, policed: PolicyLab) -> None:
        self._counts: dict[int, int] = {}
        self._running = [self._start(policed, pod.name) for pod in policed.lab.pods if pod.name != WEB]

    def _start(self, policed: PolicyLab, name: str) -> tuple[subprocess.Popen[str], threading.Thread]:
        words = [sys.executable, "-m", "tests.scenarios.holes", "--send", policed.ip(WEB)]
        made = policed.lab.popen(name, words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        reader = threading.Thread(target=self._read, args=(made,))
        reader.start()
        return made, reader

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._counts[process.pid] = int(line)

    def sent(self) -> int:
        return sum(self._counts.values())

    def close(self) -> None:
        for process, _ in self._running:
            if process.stdin:
                process.stdin.close()
        for process, reader in self._running:
            process.wait()
            reader.join()


class Trial:
    """What is done to the policy and the daemon meanwhile, and how often it was."""

    def __init__(self, policed: PolicyLab) -> None:
        self.policed = policed
        self.done = {"edits": 0, "starts": 0, "planned restarts": 0, "kills": 0}

    def edit(self) -> None:
        """Another policy beside, and the one that forbids written anew."""
        self.done["edits"] += 1
        self.policed.write("other.yaml", policy(f"other{self.done['edits']}"))
        self.policed.write("web.yaml", policy("web"), policy(f"web{self.done['edits']}"))

    def start_pod(self) -> None:
        self.done["starts"] += 1
        self.policed.lab.unplug(WEB)
        self.policed.lab.plug(WEB)

    def restart(self) -> None:
        kill = self.done["planned restarts"] > self.done["kills"]
        self.done["kills" if kill else "planned restarts"] += 1
        self.policed.lab.restart_daemon("node2", how=signal.SIGKILL if kill else signal.SIGTERM)

    def restarts(self) -> int:
        return self.done["planned restarts"] + self.done["kills"]


def arrived(receiver: socket.socket) -> int:
    """How many datagrams wait."""
    found = 0
    with suppress(BlockingIOError):
        while receiver.recv(100):
            found += 1
    return found


def run(policed: PolicyLab, probes: int, restarts: int, starts: int) -> int:
    """The whole trial; prints its table, gives the exit code."""
    policed.write("web.yaml", policy("web"))
    wait_for(lambda: "default/web" in policed.remembered("node2"), "saved")
    trial, found, begun = Trial(policed), 0, time.monotonic()
    with ExitStack() as stack:
        receiver = stack.enter_context(inside.open_udp(policed.lab.pod(WEB).netns, "0.0.0.0", PORT))
        receiver.settimeout(0.0)
        senders = Senders(policed)
        stack.callback(senders.close)
        for turn in itertools.count():
            if senders.sent() >= probes and trial.restarts() >= restarts and trial.done["starts"] >= starts:
                break
            if trial.done["starts"] < starts:
                trial.start_pod()
            if trial.restarts() < restarts:
                trial.restart()
            trial.edit()
            found += arrived(receiver)
            if turn % 10 == 0:
                print(f"{time.monotonic() - begun:7.1f} s  {senders.sent():>9} probes  {found} arrived", flush=True)
        senders.close()
        found += arrived(receiver)
        total = senders.sent()
    reached = policed.passes("node2", WEB, PORT)
    for name, value in {"probes": total, **trial.done, "arrived": found}.items():
        print(f"{name:<18}{value:>10}")
    print(f"{'seconds':<18}{time.monotonic() - begun:>10.1f}   target reached by its node: {reached}")
    return 1 if found else 0 if reached else 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=1_000_000)
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--send", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        send(options.send)
        return 0
    if os.geteuid():
        parser.error("it makes namespaces: run it as root")
    with tempfile.TemporaryDirectory() as directory:
        policies = Path(directory)
        with Lab(nodes=2, pods=PODS, pod_kind="tun", daemon_args=(f"--policy-dir={policies}",)) as lab:
            policed = PolicyLab(lab, policies)
            policed.write("pods.yaml", *map(pod_object, lab.pods))
            return run(policed, options.probes, options.restarts, options.starts)


if __name__ == "__main__":
    sys.exit(main())
