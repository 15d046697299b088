"""Our own lease over its life: taken, kept, renewed, lost, stolen."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network, ip_address

import pytest

from fabric import config, leases
from fabric.config import NetConf
from fabric.daemon.own_lease import Identity, OwnLease
from fabric.errors import ConflictError, LeaseError
from fabric.model import Lease, Network
from fabric.store.base import Entry, Snapshot
from fabric.store.memory import MemoryStore
from tests.fabric.clock import Clock, eventually

P = leases.subnets_prefix()
CONF = config.parse(config.DEFAULT_TEXT)
SMALL = config.parse('{"Network":"10.244.0.0/24","SubnetLen":26,"Backend":{"Type":"vxlan"}}')
DAY = 24 * 3600.0


def node(
    store: MemoryStore, clock: Clock, ip: str = "192.0.2.1", conf: NetConf = CONF, previous: tuple[Network, ...] = ()
) -> OwnLease:
    return OwnLease(store, P, Identity(conf, (ip_address(ip),), {}, previous), 3600.0, clock)


def run(body: Callable[[MemoryStore, Clock], Awaitable[None]]) -> None:
    async def whole() -> None:
        clock = Clock()
        await asyncio.wait_for(body(MemoryStore(clock), clock), 20)

    asyncio.run(whole())


class Living:
    """An own lease with its task and a watch, as in the daemon."""

    def __init__(self, store: MemoryStore, own: OwnLease) -> None:
        self.changes: list[Lease] = []
        own.changed = self.changes.append
        self._tasks = [asyncio.create_task(own.run()), asyncio.create_task(self._watch(store, own))]

    async def _watch(self, store: MemoryStore, own: OwnLease) -> None:
        async for item in store.watch(P):
            if isinstance(item, Snapshot):
                own.observe(item)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def entry_of(store: MemoryStore, key: str) -> Entry | None:
    return (await store.list(P)).entries.get(P + key)


def test_value_and_time_limit() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        lease = await node(store, clock, previous=(IPv4Network("10.244.7.0/24"),)).acquire()
        entry = await entry_of(store, "10.244.7.0-24")
        assert entry is not None
        assert entry.value.startswith(
            b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"'
        )
        assert entry.expires == clock.now + DAY
        assert (lease.revision, lease.key) == (entry.created, "10.244.7.0-24")

    run(body)


def test_a_restart_keeps_subnet_and_mac() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        first = await node(store, clock).acquire()
        again = await node(store, clock).acquire()
        assert (again.subnet, again.backend_data, again.revision) == (first.subnet, first.backend_data, first.revision)

    run(body)


def test_a_mac_of_another_node_is_not_reused() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        first = await node(store, clock).acquire()
        copied = node(store, clock, "192.0.2.2")
        copied.remember(first)
        second = await copied.acquire()
        assert second.backend_data != first.backend_data

    run(body)


def test_many_nodes_at_once_get_different_subnets_until_none_is_left() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        nodes = [node(store, clock, f"192.0.2.{number}", SMALL) for number in range(1, 4)]
        found = await asyncio.gather(*(item.acquire() for item in nodes))
        assert sorted(str(lease.subnet) for lease in found) == ["10.244.0.128/26", "10.244.0.192/26", "10.244.0.64/26"]
        with pytest.raises(LeaseError, match=r"^out of subnets"):
            await node(store, clock, "192.0.2.9", SMALL).acquire()

    run(body)


def test_a_race_that_is_always_lost_ends() -> None:
    class Hostile(MemoryStore):
        async def put(self, key: str, value: bytes, expected: int, ttl: float | None) -> Entry:
            raise ConflictError("lost")

    async def whole() -> None:
        with pytest.raises(LeaseError, match="no lease after 10 tries"):
            await node(Hostile(), Clock()).acquire()

    asyncio.run(whole())


def test_a_subnet_under_an_unreadable_value_is_not_free() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        for number in (64, 128):
            await store.put(f"{P}10.244.0.{number}-26", b"rubbish", 0, None)
        await store.put(P + "rubbish", b"rubbish", 0, None)
        assert (await node(store, clock, conf=SMALL).acquire()).key == "10.244.0.192-26"

    run(body)


def test_an_unfitting_lease_of_ours_is_removed() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        await node(store, clock).acquire()
        lease = await node(store, clock, conf=SMALL).acquire()
        assert list((await store.list(P)).entries) == [P + lease.key]

    run(body)


def test_a_reservation_stays_without_time_limit() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        await store.put(P + "10.244.5.0-24", b'{"PublicIP":"192.0.2.1","PublicIPv6":null}', 0, None)
        lease = await node(store, clock).acquire()
        entry = await entry_of(store, "10.244.5.0-24")
        assert lease.key == "10.244.5.0-24"
        assert entry is not None
        assert entry.expires is None
        assert b"VtepMAC" in entry.value

    run(body)


def test_a_udp_node_limits_the_reservation_that_it_takes() -> None:
    """Without BackendType and time limit its lease would still look like a reservation, and nobody would use it."""

    async def body(store: MemoryStore, clock: Clock) -> None:
        await store.put(P + "10.244.5.0-24", b'{"PublicIP":"192.0.2.1","PublicIPv6":null}', 0, None)
        udp = config.parse('{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}')
        lease = await node(store, clock, conf=udp).acquire()
        entry = await entry_of(store, "10.244.5.0-24")
        assert lease.key == "10.244.5.0-24"
        assert entry is not None
        assert entry.expires == clock.now + DAY

    run(body)


def test_renewed_before_it_ends() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        own = node(store, clock)
        key = (await own.acquire()).key
        clock.advance(DAY - 3600)
        living = Living(store, own)
        await eventually(lambda: store.entry(P + key).expires == clock.now + DAY)
        assert living.changes == []
        await living.end()

    run(body)


def test_lost_it_is_put_back() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        own = node(store, clock)
        lease = await own.acquire()
        living = Living(store, own)
        entry = store.entry(P + lease.key)
        await store.delete(P + lease.key, entry.revision)
        await eventually(lambda: store.has(P + lease.key))
        assert store.entry(P + lease.key).value == entry.value
        store.recover(empty=True)
        await eventually(lambda: store.has(P + lease.key))
        assert living.changes == []
        await living.end()

    run(body)


def test_stolen_another_subnet_is_taken_and_the_thief_is_left_alone() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        own = node(store, clock)
        lease = await own.acquire()
        living = Living(store, own)
        theirs = leases.emit_value(leases.parse(lease.key, b'{"PublicIP":"192.0.2.66","PublicIPv6":null}'))
        await store.put(P + lease.key, theirs, store.entry(P + lease.key).revision, None)
        await eventually(lambda: living.changes)
        assert store.entry(P + lease.key).value == theirs
        assert living.changes[0].key != lease.key
        assert living.changes[0].backend_data == lease.backend_data
        await living.end()

    run(body)


def test_changed_by_an_unreadable_write_ours_comes_back() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        own = node(store, clock)
        lease = await own.acquire()
        living = Living(store, own)
        good = store.entry(P + lease.key)
        await store.put(P + lease.key, b"rubbish", good.revision, None)
        await eventually(lambda: store.entry(P + lease.key).value == good.value)
        await living.end()

    run(body)


def test_put_back_after_an_outage() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        own = node(store, clock)
        lease = await own.acquire()
        living = Living(store, own)
        store.fail("down")
        await asyncio.sleep(0)
        store.recover(empty=True)
        await eventually(lambda: store.has(P + lease.key))
        await living.end()

    run(body)


def test_release_takes_back_only_what_this_run_made() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        first = node(store, clock)
        await first.acquire()
        again = node(store, clock)
        await again.acquire()
        await again.release()
        assert len((await store.list(P)).entries) == 1
        await node(store, clock, "192.0.2.2").release()
        fresh = node(store, clock, "192.0.2.3")
        await fresh.acquire()
        await fresh.release()
        assert len((await store.list(P)).entries) == 1

    run(body)


def test_resume_needs_a_lease_that_fits() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        lease = await node(store, clock).acquire()
        assert node(store, clock).resume(lease)
        assert not node(store, clock, "192.0.2.2").resume(lease)
        assert not node(store, clock, conf=SMALL).resume(lease)
        clock.advance(DAY)
        assert node(store, clock).resume(lease)  # ended, but nobody can have taken it

    run(body)


def moved(ip: str) -> Identity:
    return Identity(CONF, (ip_address(ip),), {}, ())


def test_another_public_address_is_published_under_the_same_subnet_and_mac() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        own = node(store, clock)
        lease = await own.acquire()
        created = store.entry(P + lease.key).created
        living = Living(store, own)
        own.republish(moved("192.0.2.9"))
        assert own.lease is not None
        assert str(own.lease.public_ip) == "192.0.2.9"
        await eventually(lambda: b"192.0.2.9" in store.entry(P + lease.key).value)
        entry = store.entry(P + lease.key)
        found = leases.parse(lease.key, entry.value)
        assert (found.subnet, found.backend_data, entry.created) == (lease.subnet, lease.backend_data, created)
        assert living.changes == []
        await living.end()

    run(body)


def test_addresses_that_change_twice_in_an_outage_end_with_the_last() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        own = node(store, clock)
        lease = await own.acquire()
        living = Living(store, own)
        store.fail("down")
        own.republish(moved("192.0.2.8"))
        await asyncio.sleep(0.01)
        own.republish(moved("192.0.2.9"))
        await asyncio.sleep(0.01)
        store.recover()
        await eventually(lambda: b"192.0.2.9" in store.entry(P + lease.key).value)
        assert living.changes == []
        await living.end()

    run(body)


def test_a_start_in_an_outage_that_changes_its_address_knows_its_own_lease_again() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        lease = await node(store, clock).acquire()
        own = node(store, clock)
        assert own.resume(lease)
        living = Living(store, own)
        own.republish(moved("192.0.2.9"))
        await eventually(lambda: b"192.0.2.9" in store.entry(P + lease.key).value)
        assert living.changes == []
        await living.end()

    run(body)


def test_a_lease_taken_by_another_while_the_address_changed_is_left_to_it() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        own = node(store, clock)
        lease = await own.acquire()
        theirs = (
            b'{"PublicIP":"192.0.2.66","PublicIPv6":null,"BackendType":"vxlan",'
            b'"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}}'
        )
        await store.put(P + lease.key, theirs, store.entry(P + lease.key).revision, None)
        own.republish(moved("192.0.2.9"))
        living = Living(store, own)
        await eventually(lambda: living.changes)
        assert store.entry(P + lease.key).value == theirs
        assert str(living.changes[0].public_ip) == "192.0.2.9"
        await living.end()

    run(body)


def test_a_clock_that_is_set_back_delays_no_renewal() -> None:
    async def body(store: MemoryStore, clock: Clock) -> None:
        uptime = Clock(0.0)
        own = OwnLease(store, P, Identity(CONF, (ip_address("192.0.2.1"),), {}, ()), 3600.0, clock, uptime)
        key = (await own.acquire()).key
        revision = store.entry(P + key).revision
        clock.advance(-DAY)
        uptime.advance(DAY - 3600)
        living = Living(store, own)
        await eventually(lambda: store.entry(P + key).revision > revision)
        assert store.entry(P + key).expires == clock.now + DAY
        await living.end()

    run(body)


def test_a_lease_that_ended_while_we_were_away_and_is_anothers_now_is_never_written() -> None:
    """R7: also when we came back before the store did, and went on with it."""

    async def body(store: MemoryStore, clock: Clock) -> None:
        lease = await node(store, clock).acquire()
        clock.advance(2 * DAY)
        theirs = leases.emit_value(leases.parse(lease.key, b'{"PublicIP":"192.0.2.66","PublicIPv6":null}'))
        taken = await store.put(P + lease.key, theirs, 0, DAY)
        own = node(store, clock)
        assert own.resume(lease)
        living = Living(store, own)
        await eventually(lambda: living.changes)
        assert (store.entry(P + lease.key).value, store.entry(P + lease.key).revision) == (theirs, taken.revision)
        assert living.changes[0].backend_data == lease.backend_data
        await living.end()

    run(body)
