"""One pod floods the flow table with a million flows, and what the other pods notice of it (R20): by hand, as root.

    python -m tests.scenarios.flood --flows 1000000

Two nodes. Every pod is isolated both ways: clients may open connections to servers, and that is all, so an answer
passes only if its flow is in the table. FLOODER sends raw packets, each of a new flow, all of them allowed, to VICTIM
on the other node, until its own node has met the number that was asked for. Meanwhile CLIENTS open connections to
servers of both nodes, the victim among them, one after the other; a success is a byte there and back. Connections that
were open before have to be open after.

What is flooded is the flow table, not the wire: the next GRANT packets go out when the other node has received nearly
all before. What one pod may take of what two nodes can carry is another matter (`test_overload.py`).

Kinds of floods: half-open TCP, datagrams that nobody answers, datagrams that VICTIM answers.

Exit code 0: all held, 1: not.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from fabric.forward.flows import DEFAULT_FLOWS, FlowTable
from fabric.lab import Lab
from tests.scenarios import fabric_view, inside
from tests.scenarios.flooder import GRANT, KINDS, PORT, Kind
from tests.scenarios.policy_lab import PolicyLab, pod_object

NODES = ("node1", "node2")
FLOODER, VICTIM = "node1-pod1", "node2-pod1"
CLIENTS = ("node1-pod2", "node2-pod2")
SERVERS = ("node1-pod3", "node2-pod3", VICTIM)
PODS = 3
STANDING = 10
"""Connections between each client and each server that are open all the time."""
CONNECT_SECONDS = 5.0
SAMPLE_SECONDS = 0.01
SUCCESS = 0.999
OVER = 1.05


# --- the other pods ---


class Pair(NamedTuple):
    """Connections from one pod to another: seconds that each took, and how many were not made."""

    client: str
    server: str
    took: list[float]
    failed: list[str]


def ask(address: str) -> socket.socket:
    """A connection that a byte has gone over, there and back. Raises OSError."""
    out = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        out.settimeout(CONNECT_SECONDS)
        out.connect((address, PORT))
        check(out)
    except OSError:
        out.close()
        raise
    return out


def check(out: socket.socket) -> None:
    out.sendall(b"?")
    if out.recv(1) != b"?":
        raise ConnectionError("closed")


class Others:
    """Servers that answer, clients that ask them while `asking`, and connections that stand."""

    def __init__(self, policed: PolicyLab) -> None:
        self.policed = policed
        self.pairs = [Pair(one, other, [], []) for one in CLIENTS for other in SERVERS]
        self._standing: list[tuple[Pair, socket.socket]] = []
        self._poll = select.epoll()
        self._made: dict[int, socket.socket] = {}
        self._listeners: set[int] = set()
        self._ended = threading.Event()
        for name in SERVERS:
            listener = inside.call(policed.lab.pod(name).netns, partial(socket.create_server, (policed.ip(name), PORT)))
            self._listeners.add(listener.fileno())
            self._watch(listener)
        self._server = threading.Thread(target=self._serve)
        self._server.start()

    def _watch(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._made[sock.fileno()] = sock
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def _serve(self) -> None:
        while not self._ended.is_set():
            for fd, _ in self._poll.poll(0.05):
                if fd in self._listeners:
                    with suppress(OSError):
                        self._watch(self._made[fd].accept()[0])
                    continue
                data = b""
                with suppress(OSError):
                    data = self._made[fd].recv(64)
                    self._made[fd].send(data)
                if not data:
                    self._poll.unregister(fd)  # a process that is being started may hold it open for a moment
                    self._made.pop(fd).close()

    def stand(self) -> None:
        """Open those that stay open."""
        for pair in self.pairs:
            to = self.policed.ip(pair.server)
            for _ in range(STANDING):
                made = inside.call(self.policed.lab.pod(pair.client).netns, partial(ask, to))
                self._standing.append((pair, made))

    def broken(self) -> list[str]:
        """Those of them that carry nothing any more."""
        found = []
        for pair, sock in self._standing:
            try:
                check(sock)
            except OSError as error:
                found.append(f"{pair.client} to {pair.server}: {error}")
        return found

    @contextmanager
    def asking(self) -> Iterator[None]:
        """One connection after the other of each pair while the block runs."""
        ended = threading.Event()

        def run(pair: Pair) -> None:
            to = self.policed.ip(pair.server)
            while not ended.is_set():
                begun = time.monotonic()
                try:
                    ask(to).close()
                    pair.took.append(time.monotonic() - begun)
                except OSError as error:
                    pair.failed.append(f"{pair.client} to {pair.server}: {error}")

        threads = [
            threading.Thread(target=inside.call, args=(self.policed.lab.pod(pair.client).netns, partial(run, pair)))
            for pair in self.pairs
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def close(self) -> None:
        for _, sock in self._standing:
            sock.close()
        self._ended.set()
        self._server.join()
        for sock in self._made.values():
            sock.close()
        self._poll.close()


# --- what the daemons say ---


class Memory:
    """The most that a daemon has used from now on, and what it may use: what it has now and the whole flow table, of
    which it has used nothing yet."""

    def __init__(self, lab: Lab, node: str, flows: int) -> None:
        self._proc = Path("/proc") / str(lab.daemon_pids()[node])
        (self._proc / "clear_refs").write_text("5")  # proc(5): begin anew with VmHWM
        self.before = self._status("VmRSS")
        self.cap = self.before + FlowTable.room_for(flows)

    def _status(self, name: str) -> int:
        lines = (self._proc / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

    @property
    def most(self) -> int:
        return self._status("VmHWM")


def met(counters: dict[str, int]) -> int:
    """New flows that a daemon has seen, tracked or not."""
    return sum(counters[name] for name in ("flow_inserted", "flow_refused_quota", "flow_refused_full"))


class Outcome(NamedTuple):
    """Of one flood. `counts` is by how much the counters of each node grew."""

    kind: Kind
    seconds: float
    pairs: Sequence[Pair]
    broken: list[str]
    memory: dict[str, Memory]
    counts: dict[str, dict[str, int]]

    def wrong(self) -> list[str]:
        """What does not hold."""
        made, failed = (sum(len(getattr(pair, name)) for pair in self.pairs) for name in ("took", "failed"))
        found = [*self.broken]
        if made < SUCCESS * (made + failed):
            found.append(f"{failed} of {made + failed} connections were not made")
        for node, memory in self.memory.items():
            counts = self.counts[node]
            if memory.most > OVER * memory.cap:
                found.append(f"{node} used {memory.most} bytes, not {memory.cap}")
            if counts.get("flow_refused_full"):
                found.append(f"{node} had no room for {counts['flow_refused_full']} flows of pods below their quota")
        return found

    def report(self) -> str:
        lines = [f"{self.kind}: {met_on(self, 'node1')} flows met by node1, {met_on(self, 'node2')} by node2"
                 f" in {self.seconds:.1f} s"]  # fmt: skip
        for pair in self.pairs:
            took = sorted(pair.took) or [0.0]
            lines.append(
                f"  {pair.client} to {pair.server}: {len(pair.took)} made, {len(pair.failed)} not; median"
                f" {took[len(took) // 2] * 1e3:.1f} ms, 99 of 100 {took[len(took) * 99 // 100] * 1e3:.1f} ms,"
                f" slowest {took[-1] * 1e3:.0f} ms"
            )
        for node, memory in self.memory.items():
            lines.append(
                f"  {node}: {memory.before / 1e6:.1f} MB before, {memory.most / 1e6:.1f} at most,"
                f" cap {memory.cap / 1e6:.1f}; " + ", ".join(f"{k} {v}" for k, v in self.counts[node].items())
            )
        return "\n".join([*lines, *(f"  WRONG: {line}" for line in self.wrong())])


def met_on(outcome: Outcome, node: str) -> int:
    return met({"flow_refused_quota": 0, "flow_refused_full": 0, **outcome.counts[node]})


# --- the trial ---


def isolated() -> list[dict[str, Any]]:
    """Clients and the flooder may go out to servers, servers may be reached by them; nothing else."""
    labels = {name: {"matchExpressions": [{"key": "pod", "operator": "In", "values": list(pods)}]}
              for name, pods in (("asking", (FLOODER, *CLIENTS)), ("asked", SERVERS))}  # fmt: skip
    way = {"asking": ("egress", "to", "asked"), "asked": ("ingress", "from", "asking")}
    return [
        {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
            "spec": {"podSelector": labels[name], "policyTypes": ["Ingress", "Egress"],
                     rules: [{side: [{"podSelector": labels[other]}]}]},
        } for name, (rules, side, other) in way.items()
    ]  # fmt: skip


@contextmanager
def in_pod(policed: PolicyLab, name: str, *words: str) -> Iterator[TextIO]:
    """`flooder` in a pod, while the block runs; its standard input."""
    argv = [sys.executable, "-m", "tests.scenarios.flooder", *words]
    process = policed.lab.popen(name, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == "ready\n"
        yield process.stdin
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def counters(lab: Lab) -> dict[str, dict[str, int]]:
    """What matters here."""
    found = {node: fabric_view.counters(lab, node).items() for node in NODES}
    return {node: {k: v for k, v in items if k.startswith(("flow_", "drop_", "receive_o"))}
            for node, items in found.items()}  # fmt: skip


class Ground(NamedTuple):
    """The lab, and what its daemons may use of memory."""

    policed: PolicyLab
    memory: dict[str, Memory]


def let_flood(lab: Lab, grants: TextIO, until: int) -> None:
    """Grant packets until the first node has met so many flows."""
    pause = threading.Event()
    base = under_way(lab)
    while met(fabric_view.counters(lab, "node1")) < until and lab.dead_daemons() == []:
        if under_way(lab) - base < GRANT // 10:
            grants.write("\n")
            grants.flush()
        pause.wait(SAMPLE_SECONDS)


def under_way(lab: Lab) -> int:
    """Datagrams that the first node has sent and the other one has not received, and others since they began."""
    sent, received = (fabric_view.counters(lab, node)[name] for node, name in zip(
        NODES, ("send_datagrams", "receive_datagrams"), strict=True))  # fmt: skip
    return sent - received


def flood(ground: Ground, kind: Kind, flows: int) -> Outcome:
    """So many flows."""
    policed, lab = ground.policed, ground.policed.lab
    others = Others(policed)
    with ExitStack() as stack:
        stack.callback(others.close)
        others.stand()
        stack.enter_context(in_pod(policed, VICTIM, "--answer", policed.ip(VICTIM)))
        before, begun = counters(lab), time.monotonic()
        words = ("--send", kind, policed.ip(FLOODER), policed.ip(VICTIM))
        with others.asking(), in_pod(policed, FLOODER, *words) as grants:
            let_flood(lab, grants, met(before["node1"]) + flows)
        seconds = time.monotonic() - begun
        grown = {node: fabric_view.more(before[node], after) for node, after in counters(lab).items()}
        return Outcome(kind, seconds, others.pairs, others.broken() + lab.dead_daemons(), ground.memory, grown)


@contextmanager
def prepared(policies: Path, places: int) -> Iterator[Ground]:
    """Nodes whose table has so many places, all policies in force."""
    arguments = (f"--policy-dir={policies}", f"--flow-table={places}")
    with Lab(nodes=2, pods=PODS, pod_kind="tun", daemon_args=arguments) as lab:
        policed = PolicyLab(lab, policies)
        policed.write("pods.yaml", *map(pod_object, lab.pods))
        policed.write("isolated.yaml", *isolated())
        yield Ground(policed, {node: Memory(lab, node, places) for node in NODES})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=1_000_000, help="of each kind")
    parser.add_argument("--places", type=int, default=DEFAULT_FLOWS, help="of the flow table")
    parser.add_argument("--kind", choices=KINDS, help="of these alone")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("it makes namespaces: run it as root")
    bad = 0
    with tempfile.TemporaryDirectory() as directory, prepared(Path(directory), options.places) as ground:
        for kind in [options.kind] if options.kind else KINDS:
            outcome = flood(ground, kind, options.flows)
            print(outcome.report(), flush=True)
            bad += bool(outcome.wrong())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
