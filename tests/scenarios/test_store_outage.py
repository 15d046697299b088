"""The store is locked, gone, garbage or without room: traffic goes on, the status says so, and all ends well."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fabric import leases
from fabric.lab import Lab, Pod, daemons, registry
from fabric.store.sqlite import SqliteStore
from tests.scenarios import flows, inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

NOTICED_SECONDS = 5.0
RECOVERED_SECONDS = 8.0
NEWCOMER = "node3"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three fabric nodes; the third leaves before an outage and joins after it."""
    with Lab(nodes=3, pods=1, pod_kind="bridge", mode="veth", reserve=False) as made:
        yield made


@pytest.fixture(autouse=True)
def _alive(lab: Lab) -> Iterator[None]:
    yield
    assert lab.dead_daemons() == []


def database(lab: Lab) -> Path:
    return registry.store_path(lab.run_dir)


def store_status(lab: Lab, node: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.control(node, "status")["store"]
    return found


def peers(lab: Lab, node: str) -> set[str]:
    """Subnets of the peers in use."""
    return {subnet for peer in lab.control(node, "peers") if peer["state"] != "malformed" for subnet in peer["subnets"]}


def remove_newcomer(lab: Lab) -> None:
    """node3 stops, and its lease is revoked: the others forget it."""
    if NEWCOMER in lab.daemon_pids():
        lab.stop_daemon(NEWCOMER)
    node = lab.node(NEWCOMER)
    shutil.rmtree(lab.run_dir / NEWCOMER / "state", ignore_errors=True)

    async def revoke() -> None:
        store = SqliteStore(database(lab))
        await store.open()
        try:
            for key, entry in (await store.list(leases.subnets_prefix())).entries.items():
                if leases.parse(key.removeprefix(leases.subnets_prefix()), entry.value).public_ip is not None and (
                    node.underlay_ip in entry.value.decode()
                ):
                    await store.delete(key, entry.revision)
        finally:
            await store.close()

    asyncio.run(revoke())
    wait_for(lambda: all(len(peers(lab, name)) == 1 for name in ("node1", "node2")), "node3 to be forgotten")


def join_newcomer(lab: Lab) -> None:
    """node3 starts as a new node, gets a subnet, and pods of the others reach it."""
    lab.start_daemon(NEWCOMER)
    env = daemons.parse_subnet_env(daemons.NodeFiles(lab.run_dir / NEWCOMER).subnet_file.read_text())
    address = env["FLANNEL_SUBNET"].partition("/")[0].rpartition(".")[0] + ".0"
    wait_for(lambda: all(f"{address}/24" in peers(lab, name) for name in ("node1", "node2")), "node3 to be learned", 3)
    for pod in lab.pods[:2]:

        def answers(pod: Pod = pod) -> bool:
            return flows.exchange_datagrams(pod.netns, pod.ip, lab.netns(NEWCOMER), address, [10]) == []

        wait_for(answers, "node3 to answer")


# Each fault is a context: bad inside, mended at the end.


@contextmanager
def locked(lab: Lab) -> Iterator[None]:
    """Another program holds the file for itself."""
    holder = sqlite3.connect(database(lab), isolation_level=None, timeout=5)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        yield
        holder.execute("ROLLBACK")
    finally:
        holder.close()


@contextmanager
def deleted(lab: Lab) -> Iterator[None]:
    """The file is gone with its companions; the daemons make a new one and put themselves into it."""
    for path in list(lab.run_dir.glob("fabric.db*")):
        path.unlink()
    yield


@contextmanager
def garbage(lab: Lab) -> Iterator[None]:
    """The file is overwritten in place, and removed later."""
    with database(lab).open("r+b") as file:
        file.write(b"garbage!" * 8192)
    yield
    for path in list(lab.run_dir.glob("fabric.db*")):
        path.unlink()


@contextmanager
def truncated(lab: Lab) -> Iterator[None]:
    """The file is cut to nothing (`> fabric.db`), and removed later."""
    os.truncate(database(lab), 0)
    yield
    for path in list(lab.run_dir.glob("fabric.db*")):
        path.unlink()


@contextmanager
def replaced(lab: Lab) -> Iterator[None]:
    """Another file is moved over it, a text; removed later."""
    other = lab.run_dir / "other"
    other.write_text("this is no database\n" * 500)
    other.rename(database(lab))
    yield
    database(lab).unlink(missing_ok=True)


@contextmanager
def unreadable(lab: Lab) -> Iterator[None]:
    """A directory stands where the file was."""
    aside = lab.run_dir / "aside"
    aside.mkdir()
    for path in list(lab.run_dir.glob("fabric.db*")):
        path.rename(aside / path.name)
    database(lab).mkdir()
    yield
    database(lab).rmdir()
    for path in list(aside.iterdir()):
        path.rename(lab.run_dir / path.name)
    aside.rmdir()


FAULTS: dict[str, Callable[[Lab], AbstractContextManager[None]]] = {
    "locked": locked,
    "deleted": deleted,
    "garbage": garbage,
    "truncated": truncated,
    "replaced": replaced,
    "unreadable": unreadable,
}
# A deleted file is made anew within half a second: the status may say so only for that long.
LASTING = ("locked", "garbage", "replaced", "unreadable")


@pytest.mark.parametrize("fault", FAULTS)
def test_traffic_goes_on_while_the_store_is(lab: Lab, fault: str) -> None:
    one, other = lab.pods[:2]
    remove_newcomer(lab)
    pids = lab.daemon_pids()
    before = {name: peers(lab, name) for name in ("node1", "node2")}
    with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
        start = time.monotonic()
        with FAULTS[fault](lab):
            if fault in LASTING:
                for name in before:
                    wait_for(
                        lambda name=name: not store_status(lab, name)["available"],  # type: ignore[misc]
                        f"{name} to say that the store is {fault}",
                        NOTICED_SECONDS,
                    )
                    reason = store_status(lab, name)["reason"]
                    assert str(database(lab)) in reason
                    assert "\n" not in reason
            probes.wait_answer(time.monotonic() + 1.0, "answers during the outage")
            assert flows.send_tcp(one.netns, other.netns, other.ip, 4 << 20).intact
            assert {name: peers(lab, name) for name in before} == before, "nobody is forgotten"
        for name in before:
            wait_for(
                lambda name=name: store_status(lab, name)["available"],  # type: ignore[misc]
                f"{name} to have its store again",
                RECOVERED_SECONDS,
            )
        join_newcomer(lab)
        assert probes.lost(start) == 0
        assert probes.refused == 0
    assert {name: pid for name, pid in lab.daemon_pids().items() if name in pids} == pids
    assert lab.dead_daemons() == []
    assert {name: peers(lab, name) for name in before}.keys() == before.keys()
    wait_for(lambda: len(published(lab)) == 3, "all three leases in the store", RECOVERED_SECONDS)


def published(lab: Lab) -> set[str]:
    """Keys of the leases in the store."""
    return set(asyncio.run(registry.list_leases(database(lab))).entries)


def test_a_full_file_system(lab: Lab) -> None:
    """The store, the state and the run directories lie on a small file system that is filled to the last byte."""
    small = Path("/run/fablab-small")
    small.mkdir()
    with ExitStack() as stack:
        stack.callback(small.rmdir)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True)
        stack.callback(subprocess.run, ["umount", "-l", str(small)], check=True)
        stack.callback(restart_at_home, lab)
        for node in lab.nodes:
            lab.stop_daemon(node.name)
            own = small / node.name
            lab.start_daemon(node.name, ["--store", f"sqlite://{small}/fabric.db", "--state-dir", f"{own}/state"])
        one, other = lab.pods[:2]
        with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
            wait_for(lambda: len(peers(lab, "node1")) == 2, "all peers")
            pids = lab.daemon_pids()
            start = time.monotonic()
            fill(small / "ballast")
            lab.stop_daemon(NEWCOMER)
            probes.wait_answer(time.monotonic() + 1.0, "answers on a full file system")
            assert len(peers(lab, "node1")) == 2
            (small / "ballast").unlink()
            lab.start_daemon(
                NEWCOMER, ["--store", f"sqlite://{small}/fabric.db", "--state-dir", f"{small}/{NEWCOMER}/state"]
            )
            wait_for(lambda: store_status(lab, "node1")["available"], "the store", RECOVERED_SECONDS)
            assert probes.lost(start) == 0
        assert lab.daemon_pids().items() >= {(name, pids[name]) for name in ("node1", "node2")}
        assert lab.dead_daemons() == []


def restart_at_home(lab: Lab) -> None:
    """All daemons as the lab starts them."""
    for name in list(lab.daemon_pids()):
        lab.stop_daemon(name)
    for node in lab.nodes:
        lab.start_daemon(node.name)


def fill(path: Path) -> None:
    """Write until there is no room at all."""
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 4096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_an_outage_at_the_start_is_bridged_by_what_the_last_run_knew(lab: Lab) -> None:
    """A daemon that restarts while the store is locked goes on with its lease and its peers."""
    one, other = lab.pods[:2]
    wait_for(lambda: (lab.run_dir / "node1" / "state").is_dir(), "the state of the last run")
    with locked(lab):
        lab.stop_daemon("node1")
        lab.start_daemon("node1")
        assert not store_status(lab, "node1")["available"]
        wait_for(lambda: flows.exchange_datagrams(one.netns, one.ip, other.netns, other.ip, [10]) == [], "traffic")
    wait_for(lambda: store_status(lab, "node1")["available"], "the store", RECOVERED_SECONDS)
    assert flows.exchange_datagrams(one.netns, one.ip, other.netns, other.ip, [10]) == []
    assert inside.links("fablab-node1") >= {"flannel.1"}
