"""The node as a whole with fakes around it: order of the start, refused starts, faults while it runs."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from fabric import leases, state_file
from fabric.daemon import forwarding, report
from fabric.daemon.control import Descriptors
from fabric.daemon.node import Node
from fabric.errors import DataplaneError, FabricError, LeaseError, StartError
from fabric.store.base import Unavailable
from fabric.store.memory import MemoryStore
from routes.state import ObjectError, ReconcileResult
from tests.fabric.clock import Clock, eventually
from tests.fabric.fakes import Bench

P = leases.subnets_prefix()
NONE = Descriptors()


def peer(number: int, mac: int | None = None) -> tuple[str, bytes]:
    data = leases.vxlan_data(1, bytes([2, 0, 0, 0, 0, mac or number]))
    lease = leases.parse(f"10.244.{number}.0-24", b'{"PublicIP":"192.0.2.%d","PublicIPv6":null}' % number)
    return P + lease.key, leases.emit_value(dataclasses.replace(lease, backend_type="vxlan", backend_data=data))


Body = Callable[[Bench, MemoryStore, Node], Awaitable[None]]


def run(tmp_path: Path, body: Body, *words: str, peers: tuple[int, ...] = ()) -> Bench:
    """Start a node, run `body`, stop it."""

    async def whole() -> Bench:
        clock = Clock()
        store = MemoryStore(clock)
        for number in peers:
            key, value = peer(number)
            await store.put(key, value, 0, None)
        bench = Bench(tmp_path, store, clock, *words)
        node = bench.node()
        try:
            await asyncio.wait_for(node.start(), 10)
            await asyncio.wait_for(body(bench, store, node), 20)
        finally:
            await node.stop()
        return bench

    return asyncio.run(whole())


async def nothing(bench: Bench, store: MemoryStore, node: Node) -> None:
    return None


def test_the_order_of_a_start_and_a_stop(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        assert bench.journal.steps == [
            "privileges", "open", "device_free", "create_node_port", "apply", "set_desired", "reconcile", "start",
            "firewall",
        ]  # fmt: skip
        assert bench.subnet_file.exists()
        assert (bench.run_dir / "fabricd.sock").is_socket()

    bench = run(tmp_path, body)
    assert bench.journal.steps[-3:] == ["firewall closed", "close", "stop"]
    assert not bench.run_dir.exists()
    assert bench.subnet_file.exists()  # as flannel: the next start takes the same subnet


def test_settings_and_desired_state(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        settings = bench.dataplane.settings
        assert (settings.vni, settings.encapsulation, settings.device) == (1, "vxlan", "flannel.1")
        assert settings.ports == {"vxlan": 8472, "udp": 8285}
        assert (settings.mtu, settings.offload, settings.workers) == (1450, {"tun-uso": False}, 2)
        assert bench.dataplane.peers == {"10.244.200.0/24": "192.0.2.200"}
        assert bench.reconciler.state is not None
        assert {str(route.prefix) for route in bench.reconciler.state.routes} == {"10.244.200.0/24"}
        assert bench.reconciler.state.mtu == 1450
        assert f"FLANNEL_SUBNET={node.cluster.own_lease.subnet}".replace(".0/", ".1/") in bench.subnet_file.read_text()

    run(tmp_path, body, "--offload=tun-uso=off", "--workers=2", peers=(200,))


def test_peers_come_and_go(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        key, value = peer(200)
        entry = await store.put(key, value, 0, None)
        await eventually(lambda: bench.dataplane.peers == {"10.244.200.0/24": "192.0.2.200"})
        moved = value.replace(b"192.0.2.200", b"192.0.2.201")
        entry = await store.put(key, moved, entry.revision, None)
        await eventually(lambda: bench.dataplane.peers == {"10.244.200.0/24": "192.0.2.201"})
        await store.delete(key, entry.revision)
        await eventually(lambda: bench.dataplane.peers == {})
        await eventually(lambda: bench.reconciler.state is not None and not bench.reconciler.state.routes)

    run(tmp_path, body)


def test_an_unchanged_state_is_not_applied_again(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        before = bench.journal.steps.count("apply")
        await store.put(P + "rubbish", b"", 0, None)
        key, value = peer(200)
        entry = await store.put(key, value, 0, None)
        await eventually(lambda: bench.dataplane.peers)
        await store.put(key, value, entry.revision, 100.0)  # a renewal
        await store.put(P + "more-rubbish", b"", 0, None)
        await eventually(lambda: node.cluster.table.malformed == 2)
        assert bench.journal.steps.count("apply") == before + 1

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("privileges", StartError("no privilege")),
        ("device_free", StartError("device flannel.1 exists already")),
        ("open", DataplaneError("UDP port 8472 is held")),
        ("create_node_port", DataplaneError("no device")),
        ("apply", DataplaneError("cannot compile")),
        ("start", DataplaneError("no thread")),
    ],
)
def test_a_refused_start_leaves_nothing(tmp_path: Path, step: str, error: FabricError) -> None:
    async def whole() -> None:
        store = MemoryStore()
        bench = Bench(tmp_path, store, Clock())
        bench.journal.fail[step] = error
        node = bench.node()
        with pytest.raises(type(error), match=str(error)):
            await node.start()
        await node.stop()
        assert list(bench.directory.iterdir()) == []
        assert not (await store.list("")).entries
        assert ("stop" in bench.journal.steps) == bool(bench.dataplanes)

    asyncio.run(whole())


def test_a_kernel_that_refuses_the_device_refuses_the_start(tmp_path: Path) -> None:
    async def whole(result: ReconcileResult) -> None:
        store = MemoryStore()
        bench = Bench(tmp_path, store, Clock())
        bench.reconciler.result = result
        node = bench.node()
        with pytest.raises(StartError):
            await node.start()
        await node.stop()
        assert list(bench.directory.iterdir()) == []

    asyncio.run(whole(ReconcileResult(errors=(ObjectError("address 10.244.1.0/32", "no"),), devices={"flannel.1": 7})))
    asyncio.run(whole(ReconcileResult()))


def test_a_peers_object_that_fails_is_that_peers_trouble_only(tmp_path: Path) -> None:
    async def whole() -> None:
        bench = Bench(tmp_path, MemoryStore(), Clock())
        errors = tuple(ObjectError(f"{kind} of a peer", "no") for kind in ("route", "neighbour", "fdb"))
        bench.reconciler.result = ReconcileResult(errors=errors, devices={"flannel.1": 7})
        node = bench.node()
        await node.start()
        await node.stop()

    asyncio.run(whole())


def test_a_full_network_refuses_the_start(tmp_path: Path) -> None:
    async def whole() -> None:
        store = MemoryStore()
        text = '{"Network":"10.244.0.0/24","SubnetLen":26,"Backend":{"Type":"vxlan"}}'
        for number in (64, 128, 192):
            await store.put(f"{P}10.244.0.{number}-26", b'{"PublicIP":"198.51.100.%d"}' % number, 0, None)
        bench = Bench(tmp_path, store, Clock(), text=text)
        node = bench.node()
        with pytest.raises(LeaseError, match="out of subnets"):
            await node.start()
        await node.stop()
        assert list(bench.directory.iterdir()) == []

    asyncio.run(whole())


def test_a_store_outage_changes_nothing_in_the_data_path(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        applied = bench.journal.steps.count("apply")
        store.fail("store is locked")
        await eventually(lambda: isinstance(node.cluster.state, Unavailable))
        assert report.status(node)["store"]["reason"] == "store is locked"
        assert bench.dataplane.peers == {"10.244.200.0/24": "192.0.2.200"}
        store.recover(empty=True)  # somebody deleted it
        await eventually(lambda: store.has(P + node.cluster.own_lease.key))
        assert bench.dataplane.peers == {"10.244.200.0/24": "192.0.2.200"}
        assert [item["state"] for item in report.peers(node)] == ["remembered"]
        key, value = peer(200)
        await store.put(key, value, 0, None)
        await eventually(lambda: report.peers(node)[0]["state"] == "used")
        assert bench.journal.steps.count("apply") == applied

    run(tmp_path, body, peers=(200,))


@pytest.mark.slow
def test_a_start_without_the_store_uses_what_the_disk_remembers(tmp_path: Path) -> None:
    async def whole() -> None:
        clock = Clock()
        store = MemoryStore(clock)
        key, value = peer(200)
        await store.put(key, value, 0, None)
        bench = Bench(tmp_path, store, clock)
        node = bench.node()
        await node.start()
        own = node.cluster.own_lease
        await node.stop()
        assert state_file.load(bench.state_dir).own is not None

        silent = MemoryStore(clock)
        silent.fail("store is locked")
        again = Bench(tmp_path, silent, clock)
        node = again.node()
        await node.start()
        assert node.cluster.own_lease.subnet == own.subnet
        assert again.dataplane.peers == {"10.244.200.0/24": "192.0.2.200"}
        silent.recover()
        await eventually(lambda: silent.has(P + own.key))
        await node.stop()

    asyncio.run(whole())


@pytest.mark.slow
def test_a_first_start_without_the_store_is_refused(tmp_path: Path) -> None:
    async def whole() -> None:
        store = MemoryStore()
        store.fail("store is locked")
        bench = Bench(tmp_path, store, Clock())
        node = bench.node()
        with pytest.raises(StartError, match="store is locked; and this node remembers no lease to go on with"):
            await node.start()
        await node.stop()
        assert list(bench.directory.iterdir()) == []

    asyncio.run(whole())


def test_a_deleted_device_is_made_again(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        assert bench.reconciler.on_device is not None
        bench.reconciler.on_device("eth0", None)  # another device is not the node's to make
        bench.reconciler.on_device("flannel.1", None)
        await eventually(lambda: "recreate_node_port" in bench.journal.steps)
        assert bench.journal.steps.count("recreate_node_port") == 1

    run(tmp_path, body)


def test_a_device_that_cannot_be_made_again_is_tried_for_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forwarding, "RECREATE_SECONDS", 0.001)

    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        bench.journal.fail["recreate_node_port"] = DataplaneError("the name is taken")
        assert bench.reconciler.on_device is not None
        bench.reconciler.on_device("flannel.1", None)
        await eventually(lambda: bench.journal.steps.count("recreate_node_port") > 20)
        assert caplog.text.count("the name is taken") == 1
        del bench.journal.fail["recreate_node_port"]
        tries = bench.journal.steps.count("recreate_node_port")
        await eventually(lambda: bench.journal.steps.count("recreate_node_port") > tries)

    run(tmp_path, body)


def test_a_state_that_does_not_compile_leaves_the_last_one(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        bench.journal.fail["apply"] = DataplaneError("too many")
        tries = bench.journal.steps.count("apply")
        for number in (201, 202):
            key, value = peer(number)
            await store.put(key, value, 0, None)
            await eventually(lambda tries=tries: bench.journal.steps.count("apply") > tries)
            tries = bench.journal.steps.count("apply")
        assert bench.dataplane.peers == {"10.244.200.0/24": "192.0.2.200"}
        del bench.journal.fail["apply"]
        key, value = peer(203)
        await store.put(key, value, 0, None)
        await eventually(lambda: len(bench.dataplane.peers) == 4)

    run(tmp_path, body, peers=(200,))


@pytest.mark.slow
def test_a_dead_thread_ends_the_daemon(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        bench.dataplane.threads["ingress"] = False
        assert "ingress" in await asyncio.wait_for(node.supervisor.failed(), 10)

    run(tmp_path, body)


def test_a_stolen_subnet_is_replaced_everywhere(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        key = P + node.cluster.own_lease.key
        thief = peer(66)[1]
        await store.put(key, thief, store.entry(key).revision, None)
        await eventually(lambda: P + node.cluster.own_lease.key != key)
        await eventually(lambda: bench.dataplane.peers)
        assert str(node.cluster.own_lease.subnet).replace(".0/", ".1/") in bench.subnet_file.read_text()
        assert bench.dataplane.state is not None
        assert bench.dataplane.state.vteps[0].prefixes == (node.cluster.own_lease.subnet,)

    run(tmp_path, body)


def test_the_control_methods(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        methods = report.methods(node)
        status = methods["status"]({}, NONE)
        assert (status["node"], status["interface"], status["peers"]) == ("n1", "eth0", {"used": 1, "quarantined": 0})
        assert methods["routes"]({}, NONE)[0]["underlay"] == "192.0.2.200"  # type: ignore[index]
        assert methods["counters"]({}, NONE)["egress_packets"] == 7  # type: ignore[index]
        params = {"name": "p", "netns": "fabtest-x", "ifname": "eth0", "addresses": ["10.244.1.5/24"]}
        assert methods["port.add"](params, NONE) == {"name": "p", "mtu": 0}
        assert bench.dataplane.ports["p"].addresses == (ip_address("10.244.1.5"),)
        methods["port.delete"]({"name": "p"}, NONE)
        assert bench.dataplane.ports == {}
        for bad in ({}, {**params, "mtu": "9"}, {**params, "addresses": "x"}, {**params, "name": ""}):
            with pytest.raises(FabricError, match=r"port\.add: "):
                methods["port.add"](bad, NONE)
        await store.put(P + "rubbish", b"", 0, None)
        await eventually(lambda: len(methods["peers"]({}, NONE)) == 2)
        assert methods["peers"]({}, NONE)[1]["state"] == "malformed"  # type: ignore[index]
        methods["stop"]({}, NONE)
        assert node.stop_requested.is_set()

    run(tmp_path, body, peers=(200,))


def test_the_ready_line_says_what_was_chosen_and_why(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        line = report.ready_line(node)
        for word in ("eth0 (default route, MTU 1500)", "192.0.2.1", "vxlan VNI 1", "UDP 8472", "flannel.1", "gso=on"):
            assert word in line
        assert "\n" not in line

    run(tmp_path, body)
