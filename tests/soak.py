"""Half an hour of everything at once, and whether anything grows.

    python -m tests.soak [--minutes 30] [--seconds-per-sample 5] [--rest 0]

Three nodes with policy. While numbered requests go between pods of the first two, pods come and go, policies change,
the third node's daemon is restarted, and the first node is attacked: malformed datagrams and forged pods at full rate
from the underlay and from a pod, and nonsense on the control socket. Both are, by a node that writes leases which are
nonsense or take what is others', and by who writes policies that mean nothing. The first two daemons' memory,
descriptors, threads and logs are read all the time. Needs root; run it in namespaces of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import yaml

from fabric.lab import Lab
from fabric.lab.daemons import NodeFiles
from fabric.lab.registry import PREFIX, store_path
from fabric.store.sqlite import SqliteStore
from tests.scenarios import fabric_view, flows, inside
from tests.scenarios.outsider import datagram, forge, outsider
from tests.scenarios.policy_lab import PolicyLab, policy
from tests.scenarios.waiting import wait_for

WATCHED = ("node1", "node2")
WARM_UP = 0.3
"""Part of the time after which memory has to be flat."""
EXPLAINED = ("drop_unknown_vtep", "drop_inner_", "drop_vxlan_", "drop_source_", "drop_policy_",
             "drop_destination_not_local", "drop_not_unicast", "drop_outer_", "drop_node_address", "drop_no_route",
             "drop_malformed", "drop_tunnel_port", "drop_port_")  # fmt: skip
"""Beginnings of the names of drops that the attacks are there to cause."""


class Sample(NamedTuple):
    """Of one daemon. `rss` and `log` in bytes."""

    time: float
    rss: int
    fds: int
    threads: int
    log: int


class Found(NamedTuple):
    """Of one daemon over all the time. Bytes; `slope` in bytes an hour after warm-up, `log` the most in a minute."""

    node: str
    slope: float
    grown: int
    fds: tuple[int, int]
    threads: tuple[int, int]
    log: float
    unexplained: dict[str, int]

    def report(self) -> str:
        return (
            f"{self.node}: RSS {self.slope / 1e6:+.2f} MB/h after warm-up ({self.grown / 1e3:+.0f} kB),"
            f" descriptors {self.fds[0]} to {self.fds[1]}, threads {self.threads[0]} to {self.threads[1]},"
            f" log {self.log:.0f} B in the worst minute, unexplained drops {self.unexplained or 'none'}"
        )


class Outcome(NamedTuple):
    """`sent` and `lost` are the probes between the first two nodes; `done` how often each kind of churn was done."""

    found: list[Found]
    sent: int
    lost: int
    done: dict[str, int]


def sample(lab: Lab, node: str) -> Sample:
    pid = lab.daemon_pids()[node]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return Sample(
        time.monotonic(), int(status["VmRSS"].split()[0]) * 1024, len(os.listdir(f"/proc/{pid}/fd")),
        int(status["Threads"]), lab.log(node).stat().st_size,
    )  # fmt: skip


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the points that fits best, in units an hour."""
    middle = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
    below = sum((x - middle[0]) ** 2 for x, _ in points)
    return 3600 * sum((x - middle[0]) * (y - middle[1]) for x, y in points) / below if below else 0.0


def log_per_minute(samples: Sequence[Sample]) -> float:
    """The most that was written in a minute, or in all the time when that is shorter."""
    worst = 0.0
    for first in samples:
        within = [later for later in samples if first.time <= later.time <= first.time + 60]
        worst = max(worst, within[-1].log - first.log)
    return worst


def judge(node: str, samples: Sequence[Sample], drops: dict[str, int]) -> Found:
    """`samples` of one node in order, `drops` by name since the beginning."""
    begin = samples[0].time + WARM_UP * (samples[-1].time - samples[0].time)
    warm = [one for one in samples if one.time >= begin]
    half = len(warm) // 2
    early = sum(one.rss for one in warm[:half]) // max(half, 1)
    late = sum(one.rss for one in warm[half:]) // max(len(warm) - half, 1)
    return Found(
        node, slope([(one.time, one.rss) for one in warm]), late - early,
        (min(one.fds for one in warm), max(one.fds for one in warm)),
        (min(one.threads for one in warm), max(one.threads for one in warm)),
        log_per_minute(samples),
        {name: count for name, count in drops.items() if not name.startswith(EXPLAINED)},
    )  # fmt: skip


# --- what goes on ---


class Churn:
    """The kinds of things that happen, each a method that does it once."""

    def __init__(self, made: PolicyLab, stranger: socket.socket) -> None:
        self.made = made
        self.lab = made.lab
        self.stranger = stranger
        self.random = random.Random(1)
        good = forge(self.lab, "node2", "node1", datagram(made.ip("node2-pod1"), made.ip("node1-pod1")))
        noise = [self.random.randbytes(self.random.randrange(120)) for _ in range(200)]
        self.frames = [good.but(raw=data).frame() for data in noise]
        self.frames += [good.but(inner=data or b"\0").frame() for data in noise]
        forged = [datagram(f"10.244.{third}.9", made.ip("node1-pod1")) for third in range(3, 50)]
        self.frames += [good.but(inner=inner).frame() for inner in forged]

    def pods(self) -> None:
        """A pod of the first node comes and goes."""
        pod = self.lab.add_pod("node1", "tun")
        self.lab.remove_pod(pod.name)

    def policies(self) -> None:
        """Another policy for a pod that carries no probes, and away again."""
        self.made.write("churn.yaml", policy("churn", "node1-pod1", ports=(self.random.randrange(1, 60_000),)))
        self.made.remove("churn.yaml")

    def restart(self) -> None:
        """The third node goes and comes back; the others notice its lease."""
        self.lab.restart_daemon("node3")

    def underlay_attack(self, seconds: float = 1.0) -> None:
        """Malformed datagrams and forged pods from the underlay, as fast as one socket sends them."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for frame in self.frames:
                with suppress(OSError):
                    self.stranger.send(frame)

    def pod_attack(self, seconds: float = 0.5) -> None:
        """A pod sends with addresses that are not its own."""
        pod = self.lab.pod("node1-pod1")
        target = self.made.ip("node2-pod1")
        with inside.open_socket(pod.netns, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            packets = [datagram(f"10.244.{third}.7", target) for third in range(2, 60)]
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for packet in packets:
                    with suppress(OSError):
                        raw.sendto(packet, (target, 0))

    def control_attack(self, seconds: float = 0.5) -> None:
        """Nonsense on the control socket, one connection after the other."""
        path = str(NodeFiles(self.lab.run_dir / "node1").socket)
        lines = (
            b"\xff\xfe\n", b"{}\n", b"[" * 2000 + b"\n", b'{"method": 7}\n', b'{"method": "port.add", "params": []}\n',
            b'{"method": "endpoint.add", "params": {"name": "\\n", "kind": "x"}}\n',
        )  # fmt: skip
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in lines:
                with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(1)
                    sock.connect(path)
                    sock.sendall(line)
                    sock.recv(4096)

    def lease_attack(self, seconds: float = 0.5) -> None:
        """A node writes its lease again and again, as fast as the store takes it, and never as it should be."""
        asyncio.run(self._write_leases(time.monotonic() + seconds))

    async def _write_leases(self, end: float) -> None:
        key, revision = PREFIX + "10.244.250.0-24", 0
        store = SqliteStore(store_path(self.lab.run_dir))
        await store.open()
        try:
            while time.monotonic() < end:
                for value in self.lease_values():
                    revision = (await store.put(key, value, revision, None)).revision
            await store.delete(key, revision)
        finally:
            await store.close()

    def lease_values(self) -> list[bytes]:
        """What cannot be read, is somebody else's, or another one each time."""
        mine = self.lab.node("node1").underlay_ip
        mac = f"02:00:00:00:00:{self.random.randrange(256):02x}"
        odd = [
            {"PublicIP": mine}, {"PublicIP": "127.0.0.1"}, {"PublicIP": "192.0.2.250", "BackendType": "x" * 60_000},
            {"PublicIP": f"192.0.2.{self.random.randrange(200, 250)}", "BackendType": "vxlan",
             "BackendData": {"VNI": 1, "VtepMAC": mac}},
            {"PublicIP": "192.0.2.250", "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "\n" * 30_000}},
        ]  # fmt: skip
        return [b"\xff", b"{", b"[" * 50_000, *(json.dumps(value).encode() for value in odd)]

    def policy_attack(self, seconds: float = 0.5) -> None:
        """Policies that cannot be used, another reason each time."""
        end = time.monotonic() + seconds
        place = self.made.policies / "nonsense.yaml"
        while time.monotonic() < end:
            value = policy("nonsense", "node1-pod1", ports=(self.random.randrange(70_000, 90_000),))
            value["spec"][f"x{self.random.randrange(1000)}" * 5000] = None
            place.write_text(yaml.safe_dump(value))
        place.unlink()

    def kinds(self) -> list[Callable[[], None]]:
        """In the order in which they are done, one after the other, again and again."""
        return [
            self.pods, self.policies, self.underlay_attack, self.pods, self.pod_attack, self.policies,
            self.control_attack, self.lease_attack, self.pods, self.policy_attack, self.restart,
        ]  # fmt: skip


@contextmanager
def sampling(lab: Lab, pause: float) -> Iterator[dict[str, list[Sample]]]:
    """Samples of the watched nodes while the block runs."""
    found: dict[str, list[Sample]] = {node: [sample(lab, node)] for node in WATCHED}
    ended = Event()

    def run() -> None:
        while not ended.wait(pause):
            for node in WATCHED:
                found[node].append(sample(lab, node))

    thread = Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def drops(lab: Lab, node: str) -> dict[str, int]:
    return {name: value for name, value in fabric_view.counters(lab, node).items() if name.startswith("drop_")}


def soak(minutes: float, pause: float, rest: float = 0.0) -> Outcome:
    """Make the lab, let everything happen for so long with `rest` seconds after each act, and say what grew."""
    with ExitStack() as stack:
        policies = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fabsoak-")))
        policies.chmod(0o755)
        lab = stack.enter_context(Lab(nodes=3, pods=2, pod_kind="tun", daemon_args=(f"--policy-dir={policies}",)))
        made = PolicyLab(lab, policies)
        made.write("base.yaml", policy("base", "node1-pod1", "node1-pod2", target="node2-pod1"))
        churn = Churn(made, stack.enter_context(outsider()))
        one, other = lab.pod("node1-pod2"), lab.pod("node2-pod2")
        before = {node: drops(lab, node) for node in WATCHED}
        done: dict[str, int] = {}
        probes = stack.enter_context(flows.probing(one.netns, one.ip, other.netns, other.ip))
        with sampling(lab, pause) as samples:
            end = time.monotonic() + minutes * 60
            while time.monotonic() < end:
                for act in churn.kinds():
                    act()
                    done[act.__name__] = done.get(act.__name__, 0) + 1
                    time.sleep(rest)  # the load itself: so much of it
            wait_for(lambda: lab.dead_daemons() == [], "all daemons to be alive")
        lost = probes.lost()
        found = [judge(node, samples[node], fabric_view.more(before[node], drops(lab, node))) for node in WATCHED]
        return Outcome(found, len(probes.sent), lost, done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seconds-per-sample", type=float, default=5)
    parser.add_argument("--rest", type=float, default=0.0, help="seconds after each act, for less load")
    asked = parser.parse_args()
    outcome = soak(asked.minutes, asked.seconds_per_sample, asked.rest)
    for found in outcome.found:
        print(found.report())
    print(f"probes: lost {outcome.lost} of {outcome.sent}; " + ", ".join(f"{n} {k}" for k, n in outcome.done.items()))


if __name__ == "__main__":
    main()
