"""Whether anything forbidden gets through while policies change, pods start, daemons end and the API's objects are
listed anew (R14): by hand, as root.

    python -m tests.scenarios.holes --probes 1000000 --restarts 100 --starts 100 --relists 100

Two nodes of a Kubernetes cluster, IPv4 and IPv6. On each a pod (TARGETS) is isolated both ways: it may be reached from
ALLOWED, and may reach nobody. All other pods send to both of them, they send to SINKS, each a datagram a millisecond,
always of a new flow; what a datagram says is whether it may arrive. Meanwhile, in turn: a target is taken away and
added, the daemon of a node ends (in order, by SIGKILL), policies are written and deleted in the API and in a directory,
and the API's objects have to be listed anew (`Relists`). The policies that isolate and the pods are always on the
second page of a list.

After each turn what is allowed has to reach every receiver over both families. Exit code 0: nothing forbidden arrived;
1: something did, or the receivers have lost some.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.scenarios.holes_probes import ALLOWED, TARGETS, WAIT_SECONDS, End, Receivers, Senders, overflows
from tests.scenarios.kube_lab import NODES, PODS, POLICIES, KubeLab, kube_lab
from tests.scenarios.policy_lab import policy
from tests.scenarios.waiting import wait_for

PODS_OF_A_NODE = 4
PAGE = 100


def isolating(name: str) -> list[dict[str, Any]]:
    """Policies that isolate the targets both ways but for what comes from ALLOWED."""
    found = []
    for target in TARGETS:
        made = policy(f"{name}-{target}", *ALLOWED, target=target)
        made["spec"] |= {"policyTypes": ["Ingress", "Egress"], "egress": []}
        found.append(made)
    return found


class Relists:
    """Ways in which a node comes to list everything anew; each ends when it may be over."""

    def __init__(self, cluster: KubeLab) -> None:
        self._cluster = cluster
        self._kinds: Iterator[Callable[[], None]] = itertools.cycle(
            [self.half, self.killed, self.compacted, self.hanging]
        )

    def one(self) -> None:
        next(self._kinds)()

    @contextmanager
    def _away(self) -> Iterator[None]:
        """The nodes are cut off; what they know is compacted away."""
        self._cluster.cut()
        for document in isolating("z-while-away"):
            self._cluster.create_policy(document)
            self._cluster.delete_policy(document["metadata"]["name"])
        self._cluster.etcd.compact()
        yield
        self._cluster.restore()

    def compacted(self) -> None:
        """410 Expired."""
        with self._away():
            pass

    def killed(self) -> None:
        """The API server, and started again; a daemon starts while it is away."""
        self._cluster.cut()  # a relay to nobody takes connections and drops them, which a dead server does not
        self._cluster.api.kill()
        self._cluster.policed.lab.restart_daemon("node1")
        self._cluster.api.start()
        self._cluster.restore()

    def half(self) -> None:
        """The first page comes, the second one does not."""
        with self._away():
            self._cluster.api.fault("continue", 500)

    def hanging(self) -> None:
        """The API accepts connections and says nothing; a daemon starts meanwhile and is ready before it speaks."""
        with self._away():
            self._cluster.api.freeze()
        try:
            self._cluster.policed.lab.restart_daemon("node2", how=signal.SIGKILL)
        finally:
            self._cluster.api.thaw()


class Wanted(NamedTuple):
    probes: int
    restarts: int
    starts: int
    relists: int


class Trial:
    """What is done, in turn, and how often it was."""

    def __init__(self, cluster: KubeLab, directory: Path) -> None:
        self._cluster = cluster
        self._lab = cluster.policed.lab
        self._directory = directory
        self._relists = Relists(cluster)
        self._restarts = itertools.cycle(itertools.product((signal.SIGTERM, signal.SIGKILL), NODES))
        self._starts = itertools.cycle(TARGETS)
        self.done: Counter[str] = Counter()

    def edit(self) -> None:
        """The isolating policies anew under another name, then the old ones away; and a file. Both nodes judge by them
        when it returns."""
        self.done["edits"] += 1
        number = self.done["edits"]
        for document in isolating(f"z{number}"):
            self._cluster.create_policy(document)
        self.wait(f"z{number}-{TARGETS[-1]}")
        for document in isolating(f"z{number - 1}"):
            self._cluster.delete_policy(document["metadata"]["name"])
        temporary = self._directory / ".new"
        temporary.write_text(json.dumps(policy(f"file{number}", target=TARGETS[number % 2])))
        temporary.rename(self._directory / "other.json")

    def wait(self, name: str) -> None:
        """Until both nodes judge by this policy, which shows that they have listed or seen all before it."""

        def in_force(node: str) -> bool:
            objects = self._lab.control(node, "policy.list")["objects"]
            return any(item["name"] == name and item["state"] == "in force" for item in objects)

        wait_for(lambda: all(in_force(node) for node in NODES), f"{name} is in force on both nodes", WAIT_SECONDS)

    def start_pod(self) -> None:
        self.done["starts"] += 1
        name = next(self._starts)
        self._lab.unplug(name)
        self._lab.plug(name)

    def restart(self) -> None:
        how, node = next(self._restarts)
        self.done[f"restarts by {how.name}"] += 1
        self._lab.restart_daemon(node, how=how)

    def relist(self) -> None:
        self.done["relists"] += 1
        self._relists.one()

    def turn(self, wanted: Wanted) -> bool:
        """One of each as long as there are to be more; False when anything was."""
        restarts = sum(count for name, count in self.done.items() if name.startswith("restarts"))
        todo = [
            act for act, done, most in (
                (self.start_pod, self.done["starts"], wanted.starts), (self.restart, restarts, wanted.restarts),
                (self.relist, self.done["relists"], wanted.relists),
            ) if done < most
        ]  # fmt: skip
        for act in todo:
            act()
        self.edit()
        return not todo


def fill(cluster: KubeLab) -> None:
    """What comes first in lists: a page of policies that select nobody and of pods elsewhere; then the rest."""
    nobody = [policy(f"a{number:03}", target="nobody") for number in range(PAGE)]
    cluster.admin.create(*nobody, path=POLICIES)
    elsewhere = [
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"a{number:03}"},
            "spec": {"nodeName": "elsewhere"}, "status": {"podIPs": [{"ip": f"10.244.200.{number}"}]},
        } for number in range(PAGE)
    ]  # fmt: skip
    cluster.admin.create(*elsewhere, path=PODS)
    for document in isolating("z0"):
        cluster.create_policy(document)
    for pod in cluster.policed.lab.pods:
        cluster.create_pod(pod.name)


def lists(cluster: KubeLab) -> int:
    """How often the nodes have begun to list policies."""
    asked = cluster.api.requests("GET /apis/networking.k8s.io/v1/networkpolicies?")
    return sum(not any(word in line for word in ("watch=", "continue=", "limit=1 ")) for line in asked)


class Outcome(NamedTuple):
    """`sent` and `found` by what was said and where; `lost` by full queues of receivers, which would show nothing;
    `done` how often each thing was."""

    sent: Counter[str]
    found: Counter[End]
    forbidden: int
    lost: int
    done: Counter[str]
    lists: int
    seconds: float

    def report(self) -> str:
        received: Counter[str] = Counter()
        for (_, family, mark), count in self.found.items():
            received[f"{mark.decode(errors='replace')} IPv{family}"] += count
        rows = {f"sent, {name}": count for name, count in sorted(self.sent.items())}
        rows |= {f"arrived, {name}": count for name, count in sorted(received.items())}
        rows |= {**self.done, "lists of policies": self.lists, "lost at receivers": self.lost,
                 "forbidden that arrived": self.forbidden}  # fmt: skip
        return "\n".join([*(f"{name:<26}{value:>10}" for name, value in rows.items()), f"in {self.seconds:.0f} s"])


def run(cluster: KubeLab, directory: Path, wanted: Wanted) -> Outcome:
    """The whole trial, with a line of progress every ten turns."""
    begun = time.monotonic()
    fill(cluster)
    trial = Trial(cluster, directory)
    trial.wait(f"z0-{TARGETS[-1]}")
    with ExitStack() as stack:
        receivers = Receivers(cluster)
        stack.callback(receivers.close)
        senders = Senders(cluster)
        stack.callback(senders.close)
        receivers.wait_allowed()
        for turn in itertools.count():
            if trial.turn(wanted) and senders.probes() >= wanted.probes:
                break
            receivers.wait_allowed()
            if turn % 10 == 0:
                said = f"{senders.probes():>9} probes  {receivers.forbidden()} arrived  {dict(trial.done)}"
                print(f"{time.monotonic() - begun:7.1f} s  {said}", flush=True)
    seconds = time.monotonic() - begun
    lost = overflows(cluster)
    return Outcome(
        senders.sent(), receivers.found, receivers.forbidden(), lost, trial.done, lists(cluster), seconds
    )  # fmt: skip


@contextmanager
def prepared(directory: Path, pods: int = PODS_OF_A_NODE) -> Iterator[tuple[KubeLab, Path]]:
    """The cluster, and a directory of policies that both nodes follow besides."""
    policies = directory / "policies"
    policies.mkdir()
    with kube_lab(directory, pods=pods, ipv6=True, words=(f"--policy-dir={policies}",)) as cluster:
        yield cluster, policies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=1_000_000, help="that must not arrive")
    for name in ("restarts", "starts", "relists"):
        parser.add_argument(f"--{name}", type=int, default=100)
    options = parser.parse_args()
    if os.geteuid():
        parser.error("it makes namespaces: run it as root")
    wanted = Wanted(options.probes, options.restarts, options.starts, options.relists)
    with tempfile.TemporaryDirectory() as directory, prepared(Path(directory)) as (cluster, policies):
        outcome = run(cluster, policies, wanted)
        print(outcome.report())
    return 1 if outcome.forbidden or outcome.lost else 0


if __name__ == "__main__":
    sys.exit(main())
