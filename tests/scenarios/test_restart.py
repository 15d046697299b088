"""A daemon ends, orderly or not, and comes back: what it leaves, what it keeps, and what its peers notice."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fabric.lab import Lab, daemons, measure, registry
from fabric.store.base import Entry
from fabric.store.sqlite import SqliteStore
from tests.scenarios import fabric_view, flows, inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

DEVICE = "flannel.1"
NODE = "fablab-node1"
WARM_START_SECONDS = 1.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """node1 is restarted, node2 and the kernel node3 are its peers; nobody reserved subnets for them."""
    with Lab(nodes=3, pods=1, pod_kind="bridge", kernel_peer=True, ipv6=True, reserve=False) as made:
        yield made


@pytest.fixture(autouse=True)
def _running(lab: Lab) -> Iterator[None]:
    yield
    if "node1" not in lab.daemon_pids():
        lab.start_daemon("node1")
    assert lab.dead_daemons() == []
    assert [pair for pair in measure.wait_reachable(lab) if not pair.ok] == []
    assert fabric_view.all_checksum_errors(lab) == {}


def identity(lab: Lab) -> dict[str, Any]:
    """How node2 knows node1: its key, subnets, addresses and MACs."""
    found = next(peer for peer in lab.control("node2", "peers") if lab.node("node1").subnet in peer["subnets"])
    return {name: found[name] for name in ("key", "subnets", "public", "macs", "backend")}


def files(lab: Lab) -> daemons.NodeFiles:
    return daemons.NodeFiles(lab.run_dir / "node1")


def our_routes() -> list[str]:
    """Routes of the daemon's protocol or device; that the rest of its subnet is unreachable stays true without it."""
    routes = [*inside.ip_json(NODE, "-4", "route", "show"), *inside.ip_json(NODE, "-6", "route", "show")]
    routes = [route for route in routes if route.get("type") != "unreachable"]
    return [route["dst"] for route in routes if str(route.get("protocol")) == "112" or route.get("dev") == DEVICE]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_an_end_leaves_no_device_and_no_route(lab: Lab, how: signal.Signals) -> None:
    who, env = identity(lab), files(lab).subnet_file.read_text()
    assert our_routes() != []
    lab.stop_daemon("node1", how)
    wait_for(lambda: DEVICE not in inside.links(NODE), "the device to vanish", 2)
    assert our_routes() == []
    assert inside.checksum_errors(NODE) == {}
    assert files(lab).subnet_file.read_text() == env, "subnet.env stays, as flannel leaves it"
    if how is not signal.SIGKILL:
        assert not files(lab).socket.exists()
        assert not files(lab).socket.parent.exists() or list(files(lab).socket.parent.iterdir()) == []
        assert json.loads(files(lab).log.read_text().splitlines()[-1])["message"] == "asked to stop"
    lab.start_daemon("node1")
    assert files(lab).subnet_file.read_text() == env
    assert identity(lab) == who


def test_the_stop_request_ends_the_daemon(lab: Lab) -> None:
    pid = lab.daemon_pids()["node1"]
    assert lab.control("node1", "stop") == {"stopping": True}
    wait_for(lambda: daemons.exit_status(pid) is not None, "the daemon's end")
    assert daemons.exit_status(pid) == 0
    assert DEVICE not in inside.links(NODE)
    lab.stop_daemon("node1")


def test_a_hangup_is_no_end(lab: Lab) -> None:
    pid = lab.daemon_pids()["node1"]
    os.kill(pid, signal.SIGHUP)
    wait_for(lambda: "SIGHUP" in files(lab).log.read_text(), "a line in the log")
    assert lab.control("node1", "status")["pid"] == pid


@pytest.mark.parametrize("lost", ["nothing", "subnet file", "state", "both"])
def test_a_restart_keeps_subnet_and_mac(lab: Lab, lost: str) -> None:
    """The store knows the node by its public IP; a lost file of the host's changes nothing."""
    who = identity(lab)
    lab.stop_daemon("node1")
    if lost in ("subnet file", "both"):
        files(lab).subnet_file.unlink()
    if lost in ("state", "both"):
        shutil.rmtree(lab.run_dir / "node1" / "state")
    lab.start_daemon("node1")
    assert identity(lab) == who


def test_a_lost_store_and_a_remembered_subnet(lab: Lab) -> None:
    """All leases are gone while node1 is down: it takes its old subnet and MACs again."""
    who = identity(lab)
    pid = lab.daemon_pids()["node1"]
    lab.stop_daemon("node1")
    assert not Path(f"/proc/{pid}").exists() or daemons.exit_status(pid) is not None
    kernel = registry.list_leases(registry.store_path(lab.run_dir))
    entries = [entry for key, entry in asyncio.run(kernel).entries.items() if "10.244.3.0" in key]
    for path in lab.run_dir.glob("fabric.db*"):
        path.unlink()
    asyncio.run(put_back(lab, entries))  # nobody else would publish the kernel node's lease again
    lab.start_daemon("node1")
    wait_for(lambda: identity_or_none(lab) == who, "node2 to know node1 as before")


async def put_back(lab: Lab, entries: Sequence[Entry]) -> None:
    """Entries of another store into a new one."""
    assert len(entries) == 1
    store = SqliteStore(registry.store_path(lab.run_dir))
    await store.open()
    try:
        for entry in entries:
            await store.put(entry.key, entry.value, 0, None)
    finally:
        await store.close()


def identity_or_none(lab: Lab) -> dict[str, Any] | None:
    try:
        return identity(lab)
    except StopIteration:
        return None


def test_others_do_not_notice(lab: Lab) -> None:
    one, other = lab.pod("node2-pod1"), lab.pod("node3-pod1")
    with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
        start = time.monotonic()
        for how in (signal.SIGTERM, signal.SIGKILL):
            lab.restart_daemon("node1", how=how)
        assert probes.lost(start) == 0
        assert probes.refused == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
@pytest.mark.parametrize("target", ["node2-pod1", "node3-pod1"])
def test_a_connection_survives_a_restart(lab: Lab, how: signal.Signals, target: str) -> None:
    one, other = lab.pod("node1-pod1"), lab.pod(target)
    sent = flows.data(4 << 20)
    half = len(sent) // 2
    with (
        inside.listen(other.netns, other.ip) as listener,
        inside.connect(one.netns, other.ip, listener.getsockname()[1]) as out,
        listener.accept()[0] as into,
    ):
        out.sendall(sent[:1000])
        assert flows.receive_all(into, 1000) == sent[:1000]
        lab.stop_daemon("node1", how)
        with sending(out, sent[1000:half]):
            lab.start_daemon("node1")
            assert flows.receive_all(into, half - 1000) == sent[1000:half]
        with sending(into, sent[half:]):
            assert flows.receive_all(out, len(sent) - half) == sent[half:]


@contextmanager
def sending(out: socket.socket, content: bytes) -> Iterator[None]:
    """Send in the background for a with-block."""
    sender = threading.Thread(target=out.sendall, args=(content,))
    sender.start()
    try:
        yield
    finally:
        sender.join()


def test_a_warm_start_is_quick(lab: Lab) -> None:
    """From the start of the process to the first packet a peer answers; the best of a few tries."""
    one, other = lab.pod("node1-pod1"), lab.pod("node2-pod1")
    times = []
    for _ in range(3):
        lab.stop_daemon("node1")
        with inside.open_udp(one.netns, one.ip) as out, inside.open_udp(other.netns, other.ip) as sink:
            sink.setblocking(False)
            start = time.monotonic()
            pid = threading.Thread(target=lab.start_daemon, args=("node1",))
            pid.start()

            def arrived(out=out, sink=sink) -> bool:  # type: ignore[no-untyped-def]
                out.sendto(b"warm", sink.getsockname())
                try:
                    return bool(sink.recv(100))
                except BlockingIOError:
                    return False

            wait_for(arrived, "the first packet")
            times.append(time.monotonic() - start)
            pid.join()
    assert min(times) < WARM_START_SECONDS, times


def test_many_restarts_in_a_row(lab: Lab) -> None:
    who = identity(lab)
    for number in range(6):
        lab.restart_daemon("node1", how=signal.SIGKILL if number % 2 else signal.SIGTERM)
    assert identity(lab) == who
