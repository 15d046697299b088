"""What a start makes of the records of an earlier run, with fakes around the node."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fabric.boot import boot_id as this_boot
from fabric.daemon import pods_file
from fabric.daemon.node import Node
from fabric.daemon.pods_file import Known
from fabric.errors import DataplaneError, PortLostError
from fabric.model import Endpoint
from fabric.store.memory import MemoryStore
from tests.fabric.clock import Clock, eventually
from tests.fabric.fakes import Bench
from tun.errors import DeviceError
from tun.netns import NetnsIdentity

BOOT = this_boot()
PODS = [Known(Endpoint(name, "tun", f"/run/netns/{name}", "eth0"), NetnsIdentity(4, 1, 1)) for name in ("a", "b")]


def started(bench: Bench, body: Callable[[Node], Awaitable[None]], boot_id: str = BOOT) -> None:
    async def whole() -> None:
        pods_file.save(bench.state_dir, boot_id, PODS)
        node = bench.node()
        try:
            await asyncio.wait_for(node.start(), 10)
            await asyncio.wait_for(body(node), 10)
        finally:
            await node.stop()

    asyncio.run(whole())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    clock = Clock()
    return Bench(tmp_path, MemoryStore(clock), clock)


def names(node: Node) -> list[str]:
    return [item["name"] for item in node.pods.endpoints()]


def test_all_ports_are_there_again_and_stay_recorded(bench: Bench) -> None:
    async def body(node: Node) -> None:
        assert list(bench.dataplane.ports) == ["a", "b"]
        assert node.pods.counters()["pods_ports"] == 2

    started(bench, body)
    assert [known.endpoint.name for known in pods_file.load(bench.state_dir).pods] == ["a", "b"]


def test_pods_of_before_a_reboot_are_forgotten_and_nothing_is_opened(bench: Bench) -> None:
    async def body(node: Node) -> None:
        assert bench.dataplane.ports == {}
        assert node.pods.counters()["pods_lost"] == 2

    started(bench, body, boot_id="another")
    assert pods_file.load(bench.state_dir).pods == ()


GONE = [DeviceError("open", "a", "why", errno=number) for number in (errno.ENOENT, errno.EINVAL)]


@pytest.mark.parametrize("found", [2, *GONE], ids=["another", "no file", "no namespace"])
def test_a_namespace_that_is_gone_or_another_one_is_left_alone(bench: Bench, found: int | DeviceError) -> None:
    bench.namespaces["/run/netns/a"] = found

    async def body(node: Node) -> None:
        assert (list(bench.dataplane.ports), names(node)) == (["b"], ["b"])

    started(bench, body)


def test_what_is_in_doubt_is_kept(bench: Bench) -> None:
    """The namespace cannot be opened for another reason than that it is gone."""
    bench.namespaces["/run/netns/a"] = DeviceError("open", "a", "why", errno=errno.EPERM)

    async def body(node: Node) -> None:
        assert names(node) == ["a", "b"]

    started(bench, body)


def test_a_device_that_is_held_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.daemon.pods.BUSY_SECONDS", 0.05)
    monkeypatch.setattr("fabric.daemon.pods.WATCH_SECONDS", 0.01)
    bench.refusing["a"] = DataplaneError("port a: held by another process")

    async def body(node: Node) -> None:
        assert node.pods.endpoints()[0]["problem"] == "port a: held by another process"
        assert node.pods.counters()["pods_waiting"] == 1
        del bench.refusing["a"]
        await eventually(lambda: node.pods.counters()["pods_waiting"] == 0)
        assert set(bench.dataplane.ports) == {"a", "b"}

    started(bench, body)


def test_a_lost_device_drops_its_record_alone(bench: Bench) -> None:
    bench.refusing["a"] = PortLostError("port a: there is no such device")

    async def body(node: Node) -> None:
        assert names(node) == ["b"]

    started(bench, body)


def test_a_full_disk_costs_no_pod_its_port(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: Path, boot_id: str, pods: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def body(node: Node) -> None:
        monkeypatch.setattr(pods_file, "save", full)
        node.pods.delete_port("a")
        assert names(node) == ["b"]

    started(bench, body)
