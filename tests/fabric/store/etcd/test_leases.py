"""Leases in a real etcd: flannel's bytes, races for subnets, renewal, expiry, reservations, theft."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from time import time

import pytest
import uvloop

from fabric import config, leases
from fabric.daemon.own_lease import Identity, OwnLease
from fabric.errors import ConflictError
from fabric.lease_table import LeaseTable
from fabric.model import Lease, Network
from fabric.store.base import Snapshot
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.store import EtcdStore, read_config
from tests.fabric.clock import eventually
from tests.fabric.store.etcd.watched import values, watched
from tests.fabric.store.etcd_server import EtcdServer, running
from tests.fabric.store.proxy import Proxy

pytestmark = pytest.mark.root
P = leases.subnets_prefix()
CONF = config.parse('{"Network":"10.244.0.0/19","SubnetLen":24,"Backend":{"Type":"vxlan"}}')
MARGIN = 3600.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running(tmp_path_factory.mktemp("etcd")) as started:
        yield started


@pytest.fixture
def etcd(server: EtcdServer) -> EtcdServer:
    server.ctl("del", "", "--from-key")
    for line in server.ctl("lease", "list").splitlines()[1:]:
        server.ctl("lease", "revoke", line)
    return server


def run(body: Awaitable[None]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(body, 90)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


class Node:
    """A node's own lease with a store of its own, its task and its watch, as in the daemon."""

    def __init__(self, url: str, ip: str, margin: float = MARGIN, previous: tuple[Network, ...] = ()) -> None:
        self.store = EtcdStore(EtcdSettings((url,)))
        self.own = OwnLease(self.store, P, Identity(CONF, (ip_address(ip),), {}, previous), margin, time)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def key(self) -> str:
        assert self.own.lease is not None
        return P + self.own.lease.key

    async def __aenter__(self) -> "Node":
        await self.store.open()
        await self.own.acquire()
        return self

    def live(self) -> None:
        self._tasks = [asyncio.create_task(self.own.run()), asyncio.create_task(self._watch())]

    async def _watch(self) -> None:
        async for item in self.store.watch(P):
            if isinstance(item, Snapshot):
                self.own.observe(item)

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.store.close()


V4 = {"subnet": IPv4Network("10.5.52.0/24"), "ipv6_subnet": None, "public_ipv6": None}
FLANNEL: list[tuple[str, Lease, str]] = [
    (
        "10.5.52.0-24",
        Lease(
            **V4,
            public_ip=IPv4Address("192.168.64.3"),
            backend_type="vxlan",
            backend_data=leases.vxlan_data(1, bytes.fromhex("c6d2326f8f44")),
        ),
        '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}',
    ),
    (
        "10.244.1.0-24&fd00:12:13::-56",
        Lease(
            subnet=IPv4Network("10.244.1.0/24"),
            ipv6_subnet=IPv6Network("fd00:12:13::/56"),
            public_ip=IPv4Address("10.0.0.5"),
            public_ipv6=IPv6Address("fd00:5::5"),
            backend_type="vxlan",
            backend_data=leases.vxlan_data(1, bytes.fromhex("12c66589b4e3")),
            backend_v6_data=leases.vxlan_data(1, bytes.fromhex("da5e459f1273")),
        ),
        '{"PublicIP":"10.0.0.5","PublicIPv6":"fd00:5::5","BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"},"BackendV6Data":{"VNI":1,"VtepMAC":"da:5e:45:9f:12:73"}}',
    ),
    (
        "10.5.52.0-24",
        Lease(**V4, public_ip=IPv4Address("192.168.64.3"), backend_type=""),
        '{"PublicIP":"192.168.64.3","PublicIPv6":null}',
    ),
    (
        "10.5.52.0-24",
        Lease(**V4, public_ip=IPv4Address("192.168.64.3"), backend_type="host-gw"),
        '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}',
    ),
]


@pytest.mark.parametrize(("key", "lease", "text"), FLANNEL, ids=["vxlan", "dual stack", "udp", "host-gw"])
def test_flannels_keys_and_values_byte_for_byte(etcd: EtcdServer, key: str, lease: Lease, text: str) -> None:
    """Expected texts: flannel `pkg/lease/lease.go` (LeaseAttrs) as written by its etcd manager."""

    async def body() -> None:
        async with watched(etcd.url) as watch:
            name = P + leases.key_of(lease.subnet, lease.ipv6_subnet)
            await watch.store.put(name, leases.emit_value(lease), 0, leases.TTL)
            assert etcd.ctl("get", "/coreos.com/network/subnets/", "--prefix") == f"{P}{key}\n{text}\n"
            found = etcd.get(name)
            assert found is not None
            remaining = etcd.ctl("lease", "timetolive", f"{found['lease']:x}")
            assert "granted with TTL(86400s)" in remaining
            etcd.ctl("put", name, text)  # and as flannel's, it reads the same
            entry = (await watch.store.list(P)).entries[name]
            back = leases.parse(key, entry.value)
            assert leases.emit_value(back) == text.encode()

    run(body())


def test_the_configuration_is_read_where_flannel_has_it(etcd: EtcdServer) -> None:
    async def body() -> None:
        async with watched(etcd.url) as watch:
            assert await read_config(watch.store, "/coreos.com/network") is None
            etcd.ctl("put", "/coreos.com/network/config", '{"Network":"10.5.0.0/16"}')
            etcd.ctl("put", "/coreos.com/network/config2", "{}")
            assert await read_config(watch.store, "/coreos.com/network/") == b'{"Network":"10.5.0.0/16"}'

    run(body())


def test_twenty_nodes_at_once_get_twenty_subnets(etcd: EtcdServer) -> None:
    async def body() -> None:
        nodes = [Node(etcd.url, f"192.0.2.{number}") for number in range(1, 21)]
        async with contextlib.AsyncExitStack() as stack:
            await asyncio.gather(*(stack.enter_async_context(node) for node in nodes))
            snapshot = await nodes[0].store.list(P)
            assert set(snapshot.entries) == {node.key for node in nodes}
            assert len(snapshot.entries) == 20
            for node in nodes:
                entry = snapshot.entries[node.key]
                assert node.own.lease is not None
                assert leases.parse(node.own.lease.key, entry.value).public_ip == node.own.lease.public_ip
                assert entry.expires is not None
                assert entry.created == entry.revision
            assert len(etcd.ctl("lease", "list").splitlines()) == 21  # a headline, and none of a lost race

    run(body())


def test_a_lease_is_renewed_with_a_new_etcd_lease_and_the_old_one_goes(etcd: EtcdServer) -> None:
    async def body() -> None:
        async with Node(etcd.url, "192.0.2.1", margin=leases.TTL - 1.5) as node:
            before = etcd.get(node.key)
            assert before is not None
            node.live()

            def renewed() -> bool:
                found = etcd.get(node.key)
                return found is not None and found["mod_revision"] > before["mod_revision"]

            async with asyncio.timeout(20):
                while not await asyncio.to_thread(renewed):
                    pass
            after = etcd.get(node.key)
            assert after is not None
            assert (after["create_revision"], after["value"]) == (before["create_revision"], before["value"])
            assert after["lease"] != before["lease"]
            await eventually(lambda: len(etcd.ctl("lease", "list").splitlines()) == 2, 10)

    run(body())


def test_an_expired_lease_frees_its_subnet_and_another_node_takes_it(etcd: EtcdServer) -> None:
    async def body() -> None:
        last = "10.244.31.0-24"
        start = time()
        granted = etcd.ctl("lease", "grant", "3").split()[1]
        etcd.ctl("put", P + last, '{"PublicIP":"192.0.2.9","PublicIPv6":null}', f"--lease={granted}")
        async with watched(etcd.url) as watch:
            await watch.until(lambda: watch.snapshots and P + last in watch.snapshots[-1].entries)
            entry = watch.snapshots[-1].entries[P + last]
            assert entry.expires is not None
            assert start + 2 <= entry.expires <= time() + 3  # etcd answers in whole seconds, rounded down
            await watch.until_shows({})
            async with Node(etcd.url, "192.0.2.1", previous=(IPv4Network("10.244.31.0/24"),)) as node:
                assert node.key == P + last

    run(body())


def test_a_reservation_is_taken_and_stays_without_end(etcd: EtcdServer) -> None:
    async def body() -> None:
        etcd.ctl("put", P + "10.244.7.0-24", '{"PublicIP":"192.0.2.1","PublicIPv6":null}')
        async with Node(etcd.url, "192.0.2.1") as node:
            assert node.key == P + "10.244.7.0-24"
            assert node.own.lease is not None
            assert node.own.lease.expires is None
            found = etcd.get(node.key)
            assert found is not None
            assert found["version"] == 2  # the node's attributes are in
            assert found.get("lease", 0) == 0
        assert etcd.ctl("lease", "list") == "found 0 leases\n"

    run(body())


def test_a_lease_that_holds_other_keys_too_is_not_revoked(etcd: EtcdServer) -> None:
    async def body() -> None:
        granted = etcd.ctl("lease", "grant", "600").split()[1]
        for name in ("10.244.7.0-24", "10.244.8.0-24"):
            etcd.ctl("put", P + name, '{"PublicIP":"192.0.2.1","PublicIPv6":null}', f"--lease={granted}")
        async with watched(etcd.url) as watch:
            entry = (await watch.store.list(P)).entries[P + "10.244.7.0-24"]
            await watch.store.put(entry.key, b"{}", entry.revision, 100.0)
            assert etcd.get(P + "10.244.8.0-24") is not None
            entry = (await watch.store.list(P)).entries[P + "10.244.8.0-24"]
            await watch.store.delete(entry.key, entry.revision)
            assert granted not in etcd.ctl("lease", "list")
            assert etcd.get(P + "10.244.7.0-24") is not None

    run(body())


def test_a_lost_race_gives_its_etcd_lease_back(etcd: EtcdServer) -> None:
    async def body() -> None:
        async with watched(etcd.url) as watch:
            await watch.store.put(P + "10.244.7.0-24", b"{}", 0, None)
            with pytest.raises(ConflictError, match=r"10\.244\.7\.0-24 is at revision \d+, not 0"):
                await watch.store.put(P + "10.244.7.0-24", b"{}", 0, 100.0)
        assert etcd.ctl("lease", "list") == "found 0 leases\n"

    run(body())


def test_a_subnet_taken_while_its_node_was_away_is_never_written_over(
    etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """R7: away for longer than the lease, the returning node sees the new owner and takes another subnet."""
    caplog.set_level(logging.ERROR)

    async def body() -> None:
        async with Proxy(etcd.url) as proxy, Node(proxy.url, "192.0.2.1") as away:
            away.live()
            stolen = away.key
            await proxy.cut()
            found = etcd.get(stolen)
            assert found is not None
            etcd.ctl("lease", "revoke", f"{found['lease']:x}")  # the day is over
            taken = away.own.lease
            assert taken is not None
            assert taken.subnet is not None
            async with Node(etcd.url, "192.0.2.2", previous=(taken.subnet,)) as other:
                other.live()
                assert other.key == stolen
                before = etcd.get(stolen)
                await proxy.mend()
                await eventually(lambda: away.key != stolen, 20)
                assert [record.message for record in caplog.records] == [
                    f"our lease {taken.key} was taken by another node: taking another subnet"
                ]
                assert etcd.get(stolen) == before
                assert etcd.get(away.key) is not None
                assert other.key == stolen

    run(body())


BAD = {
    "nonsense": "{}",
    "10.244.300.0-24": "{}",
    "10.244.4.0-24": "not json",
    "10.244.5.0-24": '{"PublicIP":7}',
    "10.244.6.0-24": '{"PublicIP":"' + "x" * 100_000 + '"}',
    "\udcff\udcfe": "\udcff",
}


def test_what_is_malformed_is_counted_and_the_rest_goes_on(etcd: EtcdServer) -> None:
    async def body() -> None:
        good = '{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"host-gw"}'
        etcd.ctl("put", P + "10.244.9.0-24", good)
        async with watched(etcd.url) as watch:
            table = LeaseTable(P)
            await watch.until(lambda: watch.snapshots)
            assert table.update(watch.snapshots[-1], time()) == []
            for key, value in BAD.items():
                etcd.ctl("put", P + key, input=value) if len(value) > 1000 else etcd.ctl("put", P + key, value)
            etcd.ctl("put", P + "10.244.9.0-24", "broken now")
            await watch.until(lambda: values(watch.snapshots[-1]).get("10.244.9.0-24") == b"broken now")
            lines = table.update(watch.snapshots[-1], time())
            assert len(lines) == len(BAD) + 1
            assert table.malformed == len(BAD) + 1
            assert not any("\n" in line for line in lines)
            assert [lease.key for lease in table.current(time())] == ["10.244.9.0-24"]
            assert table.current(time())[0].public_ip == IPv4Address("192.0.2.9")
            assert not watch.outages

    run(body())
