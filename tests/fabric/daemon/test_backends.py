"""The node as a whole with other backends than VXLAN by our data path: what is made, and when."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from fabric import leases
from fabric.daemon import report
from fabric.daemon.node import Node
from fabric.errors import ConfigError, StartError
from fabric.store.memory import MemoryStore
from routes.state import ReconcileResult
from tests.fabric.clock import Clock, eventually
from tests.fabric.daemon.test_node import peer
from tests.fabric.fakes import Bench

P = leases.subnets_prefix()
Body = Callable[[Bench, MemoryStore, Node], Awaitable[None]]


def conf(kind: str, **more: object) -> str:
    return json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": kind, **more}})


def run(tmp_path: Path, text: str, body: Body, *words: str, devices: tuple[str, ...] = ()) -> Bench:
    async def whole() -> Bench:
        clock = Clock()
        store = MemoryStore(clock)
        bench = Bench(tmp_path, store, clock, *words, text=text)
        bench.reconciler.result = ReconcileResult(devices=dict.fromkeys(devices, 7))
        node = bench.node()
        try:
            await asyncio.wait_for(node.start(), 10)
            await asyncio.wait_for(body(bench, store, node), 20)
        finally:
            await node.stop()
        return bench

    return asyncio.run(whole())


HOST_GW = b'{"PublicIP":"192.0.2.%d","PublicIPv6":null,"BackendType":"host-gw"}'


def test_host_gw_makes_no_device_and_routes_once_the_peer_is_on_link(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        assert "create_node_port" not in bench.journal.steps
        assert "start" not in bench.journal.steps
        assert "FLANNEL_MTU=1500\n" in bench.subnet_file.read_text()
        await store.put(P + "10.244.200.0-24", HOST_GW % 200, 0, None)
        await eventually(lambda: ip_address("192.0.2.200") in bench.reconciler.asked)
        assert report.peers(node)[0]["reason"] == "whether 192.0.2.200 is on link is not known yet"
        assert bench.reconciler.on_reachable is not None
        bench.reconciler.on_reachable({ip_address("192.0.2.200"): "eth0"})
        await eventually(lambda: [str(route.prefix) for route in bench.reconciler.states["eth0"].routes])
        assert report.peers(node)[0]["way"] == "host-gw"
        assert b'"BackendType":"host-gw"' in store.entry(P + node.cluster.own_lease.key).value

    run(tmp_path, conf("host-gw"), body)


def test_routes_of_an_earlier_run_are_never_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who is on link is asked before the first state is set: that one has the routes already."""

    async def whole() -> None:
        store = MemoryStore()
        await store.put(P + "10.244.200.0-24", HOST_GW % 200, 0, None)
        bench = Bench(tmp_path, store, Clock(), text=conf("host-gw"))
        bench.reconciler.result = ReconcileResult()
        bench.reconciler.links = {ip_address("192.0.2.200"): "eth0"}
        node = bench.node()
        await node.start()
        await node.stop()
        assert bench.reconciler.first is not None
        assert [str(route.prefix) for route in bench.reconciler.first["eth0"].routes] == ["10.244.200.0/24"]

    asyncio.run(whole())
    assert "is not used" not in caplog.text


def test_the_data_path_starts_with_the_first_peer_that_needs_it(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        assert "create_node_port" not in bench.journal.steps
        await store.put(*peer(200), 0, None)
        await eventually(lambda: "start" in bench.journal.steps)
        steps = [step for step in bench.journal.steps if step in ("device_free", "create_node_port", "apply", "start")]
        assert steps[-4:] == ["device_free", "create_node_port", "apply", "start"]
        assert bench.dataplane.required == {"vxlan"}
        assert bench.dataplane.peers == {"10.244.200.0/24": "192.0.2.200"}
        assert "flannel.1" in bench.reconciler.states

    run(tmp_path, conf("host-gw"), body)


def test_a_format_that_cannot_be_had_costs_its_peers_only(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        bench.dataplane.unavailable = {"vxlan": "UDP port 8472 is held"}
        await store.put(*peer(200), 0, None)
        await eventually(lambda: report.peers(node))
        found = report.peers(node)[0]
        assert (found["state"], found["way"]) == ("quarantined", "")
        assert found["reason"] == "the vxlan format is not available: UDP port 8472 is held"
        assert "create_node_port" not in bench.journal.steps

    run(tmp_path, conf("host-gw"), body)


def test_a_device_name_that_is_taken_costs_the_peers_that_need_it(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        bench.journal.fail["device_free"] = StartError("device flannel.1 exists already")
        await store.put(*peer(200), 0, None)
        await eventually(lambda: report.peers(node))
        assert "device flannel.1 exists already" in report.peers(node)[0]["reason"]
        assert report.status(node)["ready"]

    run(tmp_path, conf("host-gw"), body)


def test_vxlan_by_the_kernel(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        assert "create_node_port" not in bench.journal.steps
        await store.put(*peer(200), 0, None)
        await eventually(lambda: bench.reconciler.states["flannel.1"].fdb)
        state = bench.reconciler.states["flannel.1"]
        assert state.vxlan is not None
        own = leases.parse_mac(node.cluster.own_lease.backend_data)
        assert (state.vxlan.mac, str(state.vxlan.local), state.vxlan.underlay) == (own, "192.0.2.1", "eth0")
        assert [entry.mac.hex() for entry in state.fdb] == ["0200000000c8"]
        assert report.peers(node)[0]["way"] == "vxlan (kernel)"
        bench.kernel.addresses["eth0"] = ["192.0.2.77/24"]
        assert bench.reconciler.on_underlay is not None
        bench.reconciler.on_underlay(None)
        await eventually(lambda: str(bench.reconciler.states["flannel.1"].vxlan.local) == "192.0.2.77")  # type: ignore[union-attr]

    run(tmp_path, conf("vxlan", Datapath="kernel"), body, devices=("flannel.1",))


def test_alloc_only_takes_a_subnet(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        await store.put(*peer(200), 0, None)
        await eventually(lambda: report.peers(node))
        assert "alloc" in report.peers(node)[0]["reason"]
        assert bench.reconciler.states == {}
        assert "FLANNEL_MTU=1500\n" in bench.subnet_file.read_text()

    run(tmp_path, conf("alloc"), body)


def test_direct_routing_asks_who_is_on_link(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        await store.put(*peer(200), 0, None)
        await eventually(lambda: report.peers(node))
        assert report.peers(node)[0]["way"] == "vxlan"
        assert bench.reconciler.on_reachable is not None
        bench.reconciler.on_reachable({ip_address("192.0.2.200"): "eth0"})
        await eventually(lambda: report.peers(node)[0]["way"] == "direct route")
        bench.reconciler.on_reachable({ip_address("192.0.2.200"): None})
        await eventually(lambda: report.peers(node)[0]["way"] == "vxlan")

    run(tmp_path, conf("vxlan", DirectRouting=True), body, devices=("flannel.1",))


def test_a_peer_that_left_stays_known_to_the_data_path_until_its_route_is_gone(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        key, value = peer(200)
        entry = await store.put(key, value, 0, None)
        await eventually(lambda: bench.dataplane.peers)
        looks = bench.journal.steps.count("reconcile")
        await store.delete(key, entry.revision)
        await eventually(lambda: bench.reconciler.state is not None and not bench.reconciler.state.routes)
        await eventually(lambda: not bench.dataplane.peers)
        assert bench.journal.steps.count("reconcile") > looks

    run(tmp_path, conf("vxlan"), body, devices=("flannel.1",))


def test_the_blackhole_route(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        assert bench.reconciler.blackholes == bench.reconciler.unreachables == {node.cluster.own_lease.subnet}

    run(tmp_path, conf("vxlan"), body, "--ip-blackhole-route", devices=("flannel.1",))


def test_the_firewall_follows_flags_and_lease(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        state = bench.traffic.state
        assert state is not None
        assert (state.ip_masq, state.random_fully, state.forward) == (True, False, False)
        assert state.subnets == (node.cluster.own_lease.subnet,)
        key = P + node.cluster.own_lease.key
        thief = HOST_GW % 66
        await store.put(key, thief, store.entry(key).revision, None)  # our subnet is taken: we take another
        await eventually(lambda: P + node.cluster.own_lease.key != key)
        moved = (node.cluster.own_lease.subnet,)
        await eventually(lambda: bench.traffic.state and bench.traffic.state.subnets == moved)
        assert "FLANNEL_IPMASQ=true" in bench.subnet_file.read_text()

    words = ("--ip-masq", "--ip-masq-fully-random-disable", "--iptables-forward-rules=false")
    run(tmp_path, conf("vxlan"), body, *words, devices=("flannel.1",))


def test_host_gw_behind_a_nat_is_refused(tmp_path: Path) -> None:
    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        raise AssertionError("it started")

    with pytest.raises(ConfigError, match="makes 203\\.0\\.113\\.9 the next hop"):
        run(tmp_path, conf("host-gw"), body, "--public-ip=203.0.113.9")


def test_a_failed_start_takes_its_firewall_and_kernel_objects_back(tmp_path: Path) -> None:
    async def whole() -> None:
        store = MemoryStore()
        bench = Bench(tmp_path, store, Clock())
        bench.reconciler.counters["changes"] = 3
        (bench.run_dir / "fabricd.sock" / "in the way").mkdir(parents=True)
        node = bench.node()
        with pytest.raises(StartError, match="control socket"):
            await node.start()
        await node.stop()
        assert {"withdraw", "firewall removed"} <= set(bench.journal.steps)

    asyncio.run(whole())


def test_the_extension_backends_commands(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = tmp_path / "command"
    script.write_text(f'#!/bin/sh\necho "$1 $SUBNET $(cat)" >> {log}\n[ "$1" = pre ] && printf ours\nexit 0\n')
    script.chmod(0o755)

    async def body(bench: Bench, store: MemoryStore, node: Node) -> None:
        own = node.cluster.own_lease
        assert b'"BackendType":"extension","BackendData":"ours"' in store.entry(P + own.key).value
        theirs = b'{"PublicIP":"192.0.2.200","PublicIPv6":null,"BackendType":"extension","BackendData":"theirs"}'
        entry = await store.put(P + "10.244.200.0-24", theirs, 0, None)
        await eventually(lambda: "add 10.244.200.0/24 theirs" in log.read_text())
        assert report.peers(node)[0]["way"] == "extension"
        await store.delete(P + "10.244.200.0-24", entry.revision)
        await eventually(lambda: "remove 10.244.200.0/24 theirs" in log.read_text())
        assert [line.split()[0] for line in log.read_text().splitlines()] == ["pre", "post", "add", "remove"]
        assert f"post {own.subnet} ours" in log.read_text()

    commands = {"PreStartup": "pre", "PostStartup": "post", "SubnetAdd": "add", "SubnetRemove": "remove"}
    text = conf("extension", **{f"{name}Command": f"{script} {word}" for name, word in commands.items()})
    run(tmp_path, text, body)
