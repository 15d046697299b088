"""The wall clock is set a day on or back while everything runs: no live lease ends by that, and none lives on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fabric import leases
from fabric.clock import SteadyClock
from fabric.config import DEFAULT_TEXT, parse
from fabric.daemon.own_lease import Identity, OwnLease
from fabric.lease_table import GRACE, LeaseTable
from fabric.store.base import Entry, Snapshot
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.store import EtcdStore
from fabric.store.memory import MemoryStore
from fabric.store.sqlite_file import SqliteFile
from tests.fabric.clock import eventually
from tests.fabric.store.etcd_server import running

P = leases.subnets_prefix()
DAY = 24 * 3600.0
JUMPS = pytest.mark.parametrize("jump", [DAY, -DAY, 50 * 365 * DAY], ids=["a day on", "a day back", "from 1976 to now"])
A, B = "10.244.2.0-24", "10.244.3.0-24"
VALUE = b'{"PublicIP":"192.0.2.2","PublicIPv6":null}'


class Machine:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self._wall, self._uptime = 1_800_000_000.0, 3600.0

    def wall(self) -> float:
        return self._wall

    def uptime(self) -> float:
        return self._uptime

    def set(self, jump: float) -> None:
        """Somebody sets the wall clock."""
        self._wall += jump

    def wait(self, seconds: float) -> None:
        self._wall += seconds
        self._uptime += seconds

    def process(self) -> SteadyClock:
        """The clock of a process that starts now."""
        return SteadyClock(self.wall, self.uptime)


@contextmanager
def opened(path: Path, machine: Machine) -> Iterator[tuple[SqliteFile, SteadyClock]]:
    """The file as a process has it that starts now."""
    clock = machine.process()
    file = SqliteFile(path, clock, machine.uptime)
    file.open()
    try:
        yield file, clock
    finally:
        file.close()


@JUMPS
def test_a_process_does_not_notice(jump: float) -> None:
    machine = Machine()
    clock = machine.process()
    before = clock()
    machine.set(jump)
    machine.wait(10)
    assert clock() == before + 10


@JUMPS
def test_sqlite_leases_end_when_they_would_have_for_old_and_new_processes(tmp_path: Path, jump: float) -> None:
    machine, path = Machine(), tmp_path / "s.db"
    with opened(path, machine) as (old, old_clock):
        made = old.put(P + A, VALUE, 0, leases.TTL)
        machine.set(jump)
        with opened(path, machine) as (new, new_clock):
            for file, clock in ((old, old_clock), (new, new_clock)):
                ends = file.list(P).entries[P + A].expires
                assert ends is not None
                assert ends - clock() == pytest.approx(leases.TTL)
            machine.wait(3600)
            renewed = new.put(P + A, VALUE, made.revision, leases.TTL)
            assert renewed.created == made.created
            other = new.put(P + B, VALUE, 0, 60)
            assert other.expires == pytest.approx(new_clock() + 60)
            machine.wait(61)
            assert old.list(P).entries.keys() == {P + A}
            assert old.list(P).entries[P + A].expires == pytest.approx(old_clock() + leases.TTL - 61)
            machine.wait(leases.TTL)
            assert not old.list(P).entries
            assert not new.list(P).entries


def test_small_differences_of_clocks_are_none(tmp_path: Path) -> None:
    """What NTP does all the time: the same bytes for everybody."""
    machine, path = Machine(), tmp_path / "s.db"
    with opened(path, machine) as (old, _):
        made = old.put(P + A, VALUE, 0, 60)
        machine.set(0.3)
        with opened(path, machine) as (new, _):
            assert new.list(P).entries[P + A] == made == old.list(P).entries[P + A]


@pytest.mark.parametrize("text", ["", "nonsense", "another-start 12.5", "{} nan", "{} inf", "{}"])
def test_a_files_time_that_says_nothing_is_set_anew(tmp_path: Path, text: str) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    machine, path = Machine(), tmp_path / "s.db"
    with opened(path, machine):
        pass
    tool = sqlite3.connect(path, isolation_level=None)
    tool.execute("UPDATE meta SET value = ? WHERE name = 'clock'", (text.format(boot),))
    with opened(path, machine) as (file, clock):
        assert file.put(P + A, VALUE, 0, 60).expires == clock() + 60
    assert tool.execute("SELECT value FROM meta WHERE name = 'clock'").fetchone()[0].startswith(boot + " 1799996")
    tool.close()


@JUMPS
def test_what_only_the_lease_table_remembers_stays_its_time(jump: float) -> None:
    machine = Machine()
    clock = machine.process()
    table = LeaseTable(P)
    entry = Entry(P + A, VALUE, 1, 1, clock() + 3600)
    table.update(Snapshot("one", 1, {P + A: entry}), clock())
    table.update(Snapshot("made anew", 0, {}), clock())
    machine.set(jump)
    machine.wait(3599)
    assert [lease.key for lease in table.current(clock())] == [A]
    machine.wait(2)
    assert not table.current(clock())


@JUMPS
def test_a_lease_that_ended_in_an_outage_has_its_grace(jump: float) -> None:
    machine = Machine()
    clock = machine.process()
    table = LeaseTable(P)
    table.update(Snapshot("one", 1, {P + A: Entry(P + A, VALUE, 1, 1, clock() + 60)}), clock())
    machine.set(jump)
    machine.wait(61)
    table.update(Snapshot("one", 2, {}), clock())
    assert [lease.key for lease in table.current(clock())] == [A]
    machine.wait(GRACE + 1)
    assert not table.current(clock())


@JUMPS
def test_our_own_lease_is_renewed_when_it_is_due_and_only_then(jump: float) -> None:
    async def whole() -> None:
        machine = Machine()
        clock = machine.process()
        store = MemoryStore(clock)
        own = OwnLease(store, P, Identity(parse(DEFAULT_TEXT), (), {}, ()), 3600.0, clock, machine.uptime)
        lease = await own.acquire()
        first = store.entry(P + lease.key)
        task = asyncio.create_task(own.run())

        async def look() -> None:
            """Have `run` look at its clocks."""
            looked = asyncio.Event()
            own.observe(await store.list(P))
            asyncio.get_running_loop().call_later(0.05, looked.set)
            await looked.wait()

        machine.set(jump)
        await look()
        assert store.entry(P + lease.key) == first
        machine.wait(leases.TTL - 3599)
        own.observe(await store.list(P))
        await eventually(lambda: store.entry(P + lease.key).revision > first.revision)
        assert store.entry(P + lease.key).created == first.created
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(whole())


@pytest.mark.root
@JUMPS
def test_etcd_leases_keep_their_ends(tmp_path: Path, jump: float) -> None:
    machine = Machine()
    clock = machine.process()

    async def body(url: str) -> None:
        store = EtcdStore(EtcdSettings((url,)), clock)
        made = await store.put(P + A, VALUE, 0, leases.TTL)
        machine.set(jump)
        listed = (await store.list(P)).entries[P + A]
        assert listed == made
        fresh = EtcdStore(EtcdSettings((url,)), machine.process())  # a process that starts after it was set
        ends = (await fresh.list(P)).entries[P + A].expires
        assert ends == pytest.approx(machine.wall() + leases.TTL, abs=60)
        await store.put(P + A, VALUE, made.revision, leases.TTL)
        await store.close()
        await fresh.close()

    with running(tmp_path) as server:
        run(lambda: body(server.url))


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(body(), 60)

    asyncio.run(whole())
