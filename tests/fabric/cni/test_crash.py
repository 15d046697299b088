"""SIGKILL before every call that changes anything, in ADD and in DEL: nothing is left after DEL, GC or the next ADD.

A profile function sees every call of a C function, in all threads; those that write, send, make or remove count, and
the process kills itself before the n-th. Between two of them nothing changes, so these are all states that a crash can
leave. (Audit hooks do not see `send`, by which every request goes to the kernel and to the daemon.)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.fabric.cni.acceptor import acceptor
from tests.fabric.cni.host import GC_KEY, Answer, DaemonHost, Host, PodNamespace, forked
from tests.fabric.cni.test_hostside import elements
from tests.fabric.daemon.nodes import ip

pytestmark = [pytest.mark.root, pytest.mark.slow]

CHANGING = {
    "send", "sendall", "connect", "write", "open", "link", "rename", "unlink", "mkdir", "fsync", "fchmod", "fcntl",
    "flock", "flush", "close", "sendmsg", "ioctl",
}  # fmt: skip

MAPPINGS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5300, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}]  # fmt: skip

EXTENSIONS = ("mapped", "queue")
"""Cases whose first part of ADD, and last part of DEL, is that of another."""


def dying_at(number: int, counter: Path) -> Callable[[], None]:
    """For a child: die at event `number` (from 1), count the events into the file when it is 0."""
    seen = 0

    def profile(frame: FrameType, event: str, function: Any) -> None:
        nonlocal seen
        if event != "c_call" or function.__name__ not in CHANGING:
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if not number:
            events = seen
            sys.setprofile(None)
            counter.write_text(str(events))
            sys.setprofile(profile)

    def install() -> None:
        threading.setprofile(profile)
        sys.setprofile(profile)

    return install


class Case:
    """One kind on one host; `left` is everything of an attachment that can be left."""

    def __init__(self, host: Host, kind: str, directory: Path) -> None:
        self.host, self.kind, self.pod = host, kind, host.pod()
        self.counter = directory / "events"
        self.result: Any = None

    @property
    def conf(self) -> dict[str, Any]:
        if self.kind == "flannel":
            return self.host.flannel_conf()
        if self.kind == "mapped":
            return self.host.conf("veth", ipMasq=True, runtimeConfig={"portMappings": MAPPINGS})
        return self.host.conf("tun" if self.kind == "queue" else self.kind)

    def call(self, command: str, die_at: int = -1, **changes: Any) -> Answer:
        conf = self.conf | {"cniVersion": "1.1.0"} | changes
        before = dying_at(die_at, self.counter) if die_at >= 0 else (lambda: None)
        environ = self.host.environment(command, None if command == "GC" else self.pod)
        return forked(f"/run/netns/{self.host.netns}", environ, conf, before)

    def events(self, command: str) -> int:
        """How many points there are at which the call can die."""
        self.call(command, 0).must()
        return int(self.counter.read_text())

    def left(self) -> list[str]:
        host = self.host
        found = [f"pod has {name}" for name in self.pod.links() if name != "lo"]
        found += [f"host has {name}" for name in host.links() if name.startswith("veth")]
        found += [f"route {route}" for family in (4, 6) for route in host.routes(family)]
        found += [f"reserved {address}" for network in ("podnet", "cbr0") for address in host.reserved(network)]
        found += [f"record {name}" for name in host.records()]
        saved = host.directory / "flannel"
        found += [f"file {name}" for name in (os.listdir(saved) if saved.exists() else []) if name != ".lock"]
        found += [f"element {element}" for element in elements(host)] if self.kind == "mapped" else []
        return found + ([f"port {name}" for name in host.ports()] if isinstance(host, DaemonHost) else [])


@pytest.fixture(params=["veth", "bridge", "flannel", "tun", "mapped", "queue"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """`mapped` has port mappings and is masqueraded; the daemon of `queue` takes the device that the plugin made."""
    host = request.getfixturevalue("daemon_host" if request.param == "tun" else "host")
    if request.param != "queue":
        yield Case(host, request.param, tmp_path)
        return
    ip("-n", host.netns, "link", "add", "node0", "type", "bridge")
    ip("-n", host.netns, "link", "set", "node0", "up")
    with acceptor(host):
        yield Case(host, request.param, tmp_path)
    ip("-n", host.netns, "link", "del", "node0")


def test_a_killed_add_leaves_nothing_after_del_gc_or_the_next_add(case: Case) -> None:
    total = case.events("ADD")
    case.call("DEL").must()
    assert case.left() == []
    assert total > 40
    for number in range(total // 2 if case.kind in EXTENSIONS else 1, total + 1):
        killed = case.call("ADD", number)
        if number % 3 == 0:
            case.call("DEL").must()
        elif number % 3 == 1:
            case.call("GC", **{GC_KEY: []}).must()
        else:
            repeated = case.call("ADD")
            assert repeated.status == 0 or "already exists" in repeated.text, repeated
            case.call("DEL").must()
        if case.kind == "flannel" and number % 3 == 1:
            case.call("DEL").must()  # its files do not say which interface: a namespace that lives on is DEL's
        assert case.left() == [], f"killed at event {number} of {total}: {killed}"


def test_a_killed_del_is_finished_by_the_next_one(case: Case) -> None:
    case.call("ADD").must()
    total = case.events("DEL")
    for number in range(1, 2 * total // 3 if case.kind in EXTENSIONS else total + 1):
        case.call("ADD").must()
        case.call("DEL", number)
        case.call(*(("GC",) if number % 2 and case.kind != "flannel" else ("DEL",)), **{GC_KEY: []}).must()
        assert case.left() == [], f"killed at event {number} of {total}"


def test_pods_do_not_share_an_address_after_crashes(host: Host, tmp_path: Path) -> None:
    """Every tenth point, the killed attachments left as they are: what others get is free."""
    case = Case(host, "veth", tmp_path)
    total = case.events("ADD")
    case.call("DEL").must()
    pods: list[PodNamespace] = []
    for number in range(1, total + 1, 10):
        case.pod = host.pod()
        case.call("ADD", number)
        pods.append(case.pod)
        case.pod = host.pod()
        case.call("ADD").must()
        pods.append(case.pod)
    addresses = [address for pod in pods if "eth0" in pod.links() for address in pod.addresses()]
    assert len(addresses) == len(set(addresses))
    case.call("GC", **{GC_KEY: []}).must()
    assert (host.records(), host.reserved()) == (set(), set())
