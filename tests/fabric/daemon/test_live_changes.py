"""Changes of the interface towards the other nodes while the daemon runs, with fakes around it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from fabric import leases
from fabric.daemon import report
from fabric.daemon.node import Node
from fabric.errors import DataplaneError
from fabric.store.memory import MemoryStore
from tests.fabric.clock import Clock, eventually
from tests.fabric.fakes import Bench

P = leases.subnets_prefix()
Body = Callable[[Bench, MemoryStore, Node], Awaitable[None]]


def run(tmp_path: Path, body: Body, *words: str) -> None:
    async def whole() -> None:
        clock = Clock()
        store = MemoryStore(clock)
        bench = Bench(tmp_path, store, clock, *words)
        node = bench.node()
        try:
            await asyncio.wait_for(node.start(), 10)
            await asyncio.wait_for(body(bench, store, node), 20)
        finally:
            await node.stop()

    asyncio.run(whole())


def tell(bench: Bench) -> None:
    """The reconciler says that the interface is another than before."""
    assert bench.reconciler.on_underlay is not None
    bench.reconciler.on_underlay(None)


def test_another_address_is_bound_published_and_used(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        key = P + node.cluster.own_lease.key
        before = leases.parse("10.244.1.0-24", store.entry(key).value)
        bench.kernel.addresses["eth0"] = ["192.0.2.77/24"]
        tell(bench)
        await eventually(lambda: b"192.0.2.77" in store.entry(key).value)
        after = leases.parse("10.244.1.0-24", store.entry(key).value)
        assert (after.subnet, after.backend_data) == (before.subnet, before.backend_data)
        assert [str(item) for item in bench.dataplane.settings.underlay] == ["192.0.2.77"]
        assert bench.dataplane.state is not None
        assert [str(vtep.underlay) for vtep in bench.dataplane.state.vteps] == ["192.0.2.77"]
        assert report.status(node)["public"] == ["192.0.2.77"]
        assert bench.journal.steps.count("create_node_port") == 1
        assert key == P + node.cluster.own_lease.key

    run(tmp_path, body)


def test_another_mtu_reaches_node_port_and_subnet_file(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        for mtu in (1400, 9000):
            bench.kernel.mtu = mtu
            tell(bench)
            await eventually(lambda mtu=mtu: f"FLANNEL_MTU={mtu - 50}\n" in bench.subnet_file.read_text())
            assert bench.reconciler.state is not None
            assert bench.reconciler.state.mtu == mtu - 50

    run(tmp_path, body)


def test_a_configured_mtu_stays(tmp_path: Path) -> None:
    async def whole() -> None:
        store = MemoryStore()
        text = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}'
        bench = Bench(tmp_path, store, Clock(), text=text)
        node = bench.node()
        await node.start()
        bench.kernel.mtu = 9000
        tell(bench)
        await eventually(lambda: node.external.mtu == 9000)
        assert node.mtu == 1350
        await node.stop()

    asyncio.run(whole())


def test_an_interface_that_loses_its_address_keeps_the_last_until_there_is_another(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        bench.kernel.addresses["eth0"] = []
        tell(bench)
        await eventually(lambda: "eth0 has no usable IPv4 address" in node.uplink.problem())
        assert "rebind" not in bench.journal.steps
        bench.kernel.addresses["eth0"] = ["192.0.2.1/24"]  # nobody tells of it
        await eventually(lambda: node.uplink.problem() == "")
        assert "rebind" not in bench.journal.steps

    run(tmp_path, body)


def test_an_mtu_too_small_for_pods_is_not_taken(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        bench.kernel.mtu = 300
        tell(bench)
        await eventually(lambda: "an outer MTU of 300 leaves 250 bytes" in node.uplink.problem())
        assert node.mtu == 1450

    run(tmp_path, body)


def test_an_address_that_cannot_be_bound_yet_is_tried_again(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        bench.journal.fail["rebind"] = DataplaneError("the address is not on this host")
        bench.kernel.addresses["eth0"] = ["192.0.2.77/24"]
        tell(bench)
        await eventually(lambda: node.uplink.problem())
        assert report.status(node)["public"] == ["192.0.2.1"]
        del bench.journal.fail["rebind"]
        await eventually(lambda: report.status(node)["public"] == ["192.0.2.77"])

    run(tmp_path, body)


def test_the_default_route_may_move_to_another_interface(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        bench.kernel.default[4] = "eth1"
        tell(bench)
        await eventually(lambda: bench.dataplane.settings.interface == "eth1")
        assert report.status(node)["interface"] == "eth1"

    run(tmp_path, body)


def test_a_public_address_of_the_administrators_stays(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        key = P + node.cluster.own_lease.key
        value = store.entry(key).value
        bench.kernel.addresses["eth0"] = ["192.0.2.77/24"]
        tell(bench)
        await eventually(lambda: [str(item) for item in bench.dataplane.settings.underlay] == ["192.0.2.77"])
        assert store.entry(key).value == value

    run(tmp_path, body, "--public-ip=203.0.113.9")
