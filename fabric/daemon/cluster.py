"""This node's place in the cluster: the store, our own lease in it, the other nodes' leases, and the disk's memory of
all of that for a start while the store is away.

Nothing here ends forwarding: a store that goes away leaves everything as it was last known. A store that comes and goes
is reported once in `SAY_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

from fabric import state_file, subnet_file
from fabric.config import NetConf
from fabric.daemon.own_lease import Identity
from fabric.daemon.parts import Membership, Source
from fabric.daemon.saver import Saver
from fabric.errors import StartError, StoreCorruptError, StoreError, StoreUnavailableError
from fabric.flags import Options
from fabric.lease_table import LeaseTable
from fabric.model import Address, Lease
from fabric.state_file import Remembered
from fabric.store.base import Snapshot, Store, Unavailable

log = logging.getLogger("fabric")
STORE_PATIENCE = 3.0
SAY_SECONDS = 120.0


class Cluster:
    """`join` once, then keep `watch` and `run_lease` running. `changed` is called when leases may have changed, and
    `moved` when our own lease became another one."""

    def __init__(self, options: Options, source: Source, clock: Callable[[], float]) -> None:
        self.source = source
        self.state: Snapshot | Unavailable | None = None
        self.table = LeaseTable(source.prefix)
        self.changed: Callable[[], None] = lambda: None
        self.moved: Callable[[Lease], None] = lambda lease: None
        self._options = options
        self._clock = clock
        self._store: Store | None = None
        self._public: Mapping[int, str] = {}
        self._membership: Membership | None = None
        self._remembered = state_file.load(Path(options.state_dir))
        self._renderer = state_file.Renderer()
        self._saver = Saver(Path(options.state_dir), self._render)
        self._keep = False
        self._said_away = -SAY_SECONDS
        self._quiet = False

    async def config(self) -> NetConf:
        """The network configuration; waits for one that has to come from the store. Raises StartError."""
        self._store = await self.source.connect(self._remembered)
        return await self.source.config(self._remembered)

    async def public_addresses(self) -> Mapping[int, str]:
        """Public addresses by IP version that an administrator wrote into the store."""
        self._public = await self.source.public_addresses(self._remembered)
        return self._public

    async def join(
        self, conf: NetConf, public: tuple[Address, ...], macs: Mapping[int, bytes], output: str = ""
    ) -> None:
        """Take our lease and learn of the peers; from the disk's memory when the store is away.

        `macs` are those to go on with when neither the store nor the disk knows of a lease of ours; `output` is that of
        the extension backend's PreStartupCommand.
        """
        previous = subnet_file.previous(Path(self._options.subnet_file))
        identity = Identity(conf, public, dict(macs), previous, output)
        own = self.source.membership(identity, self._options.renew_margin, self._clock)
        own.changed = self._own_lease_changed
        self._membership = own
        if self._remembered.own is not None:
            own.remember(self._remembered.own)
        store = self._opened()
        await store.open()
        deadline = monotonic() + STORE_PATIENCE
        while True:
            try:
                await own.acquire()
                self._take_over(await store.list(self.source.prefix))
                break
            except StoreCorruptError:
                raise
            except StoreUnavailableError as error:
                if monotonic() < deadline:
                    await asyncio.sleep(0.05)
                    continue
                self._resume(own, error)
                break

    def _resume(self, own: Membership, error: StoreError) -> None:
        if self._remembered.own is None or not own.resume(self._remembered.own):
            raise StartError(f"{error}; and this node remembers no lease to go on with")
        log.warning("%s: starting with the lease and the peers of the last run", error)
        self.table.seed(self._remembered.peers)
        self.state = Unavailable(str(error))

    @property
    def own_lease(self) -> Lease:
        """Our lease; there is one from `join` on."""
        assert self._membership is not None
        assert self._membership.lease is not None
        return self._membership.lease

    @property
    def store(self) -> Store:
        """The store; there is one from `config` on."""
        return self._opened()

    def leases(self) -> tuple[Lease, ...]:
        """All leases that hold now, ours among them, by key."""
        return self.table.current(self._clock())

    async def run_lease(self) -> None:
        """Keep our lease for ever."""
        assert self._membership is not None
        await self._membership.run()

    def republish(self, conf: NetConf, public: tuple[Address, ...]) -> None:
        """Our public addresses are others now."""
        assert self._membership is not None
        self._membership.republish(Identity(conf, public, {}, ()))
        self._saver.soon()

    async def watch(self) -> None:
        """Follow the store for ever."""
        async with contextlib.aclosing(self._opened().watch(self.source.prefix)) as items:  # type: ignore[type-var]
            async for item in items:
                if isinstance(item, Unavailable):
                    self._away(item)
                else:
                    self._observe(item)

    def keep(self) -> None:
        """This node forwards: from now on the state file follows what is known."""
        self._keep = True
        self._saver.soon()

    async def abandon(self) -> None:
        """The start failed: take back what it did to the store. Never raises."""
        if self._membership is not None:
            await self._membership.release()
        await self.source.undo()

    async def close(self) -> None:
        """Save what is known and close the store. Idempotent."""
        if self._keep:
            self._saver.now()
        await self._saver.wait()
        if self._store is not None:
            await self._store.close()

    def _opened(self) -> Store:
        assert self._store is not None
        return self._store

    def _away(self, item: Unavailable) -> None:
        now = monotonic()
        self._quiet = now < self._said_away + SAY_SECONDS
        if not self._quiet:
            self._said_away = now
            log.warning("%s: forwarding goes on with what is known", item.reason)
        self.state = item

    def _observe(self, item: Snapshot) -> None:
        if isinstance(self.state, Unavailable) and not self._quiet:
            log.info("the store answers again")
        self._take_over(item)
        assert self._membership is not None
        self._membership.observe(item)
        self.changed()
        self._saver.soon()

    def _take_over(self, snapshot: Snapshot) -> None:
        self.state = snapshot
        for line in self.table.update(snapshot, self._clock()):
            log.warning("%s", line)

    def _own_lease_changed(self, lease: Lease) -> None:
        log.warning("this node's subnet is now %s", lease.key)
        self.moved(lease)
        self._saver.soon()

    def _render(self) -> bytes:
        own = self.own_lease
        peers = tuple(lease for lease in self.leases() if lease.key != own.key)
        return self._renderer(Remembered(own, peers, self.source.config_text, self._public))
