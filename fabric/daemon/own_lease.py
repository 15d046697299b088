"""Our own lease: taken at start, renewed before it ends, put back when it is lost, never written over another's.

Source of the rules: flannel `pkg/subnet/etcd/local_manager.go`. Different on purpose: a lost race is tried again (ten
times, flannel means to), a lease that an administrator wrote without time limit keeps it, and a revoked lease is taken
again instead of ending the daemon. All writes are fenced by the revision that we last saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from time import CLOCK_BOOTTIME, clock_gettime

from fabric import allocation, leases
from fabric.backend.published import published
from fabric.config import NetConf
from fabric.errors import ConflictError, LeaseError, StoreError, StoreUnavailableError
from fabric.leases import LeaseFormatError
from fabric.model import Address, Lease, Network
from fabric.store.base import Entry, Snapshot, Store

log = logging.getLogger("fabric.lease")
TRIES = 10
RETRY_SECONDS = 60.0
PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What the lease says about this node: published addresses (IPv4 first) and the MACs to go on with, by family.

    `output` is what the extension backend's PreStartupCommand printed."""

    conf: NetConf
    public: tuple[Address, ...]
    macs: dict[int, bytes]
    previous: tuple[Network, ...]
    output: str = ""


class OwnLease:
    """`acquire` once, then feed `observe` with every snapshot and keep `run` running.

    `changed` is called when the lease became another one (other subnets); `clock` gives Unix time in seconds, `uptime`
    seconds that nobody can set: a lease is renewed in time also when the clock was set back.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        identity: Identity,
        margin: float,
        clock: Callable[[], float],
        uptime: Callable[[], float] = lambda: clock_gettime(CLOCK_BOOTTIME),
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._identity = identity
        self._margin = margin
        self._clock = clock
        self._uptime = uptime
        self._renew_at = 0.0  # by `uptime`
        self._entry: Entry | None = None
        self._value = b""  # what we last knew to be ours in the store
        self._seen: Snapshot | None = None
        self._moved = False
        self._waiting = False
        self._wake = asyncio.Event()
        self._rng = random.SystemRandom()
        self.created = False
        self.lease: Lease | None = None
        self.changed: Callable[[Lease], None] = lambda lease: None

    async def acquire(self) -> Lease:
        """Take a lease by flannel's rules. Raises LeaseError, StoreUnavailableError."""
        for _ in range(TRIES):
            snapshot = await self._store.list(self._prefix)
            known = [lease_or_claim(key.removeprefix(self._prefix), entry) for key, entry in snapshot.entries.items()]
            found = [lease for lease in known if lease]
            identity = self._identity
            choice = allocation.choose(identity.conf, found, identity.public, identity.previous, self._rng.choice)
            for obsolete in choice.obsolete:
                entry = snapshot.entries[self._prefix + obsolete.key]
                log.info("removing our lease %s: it does not fit the configuration", obsolete.key)
                with contextlib.suppress(ConflictError):
                    await self._store.delete(entry.key, entry.revision)
            try:
                return await self._take(choice, snapshot, found)
            except ConflictError:
                log.info("another node took the subnet first; choosing again")
        raise LeaseError(f"no lease after {TRIES} tries: other nodes took each chosen subnet first; start again")

    def remember(self, lease: Lease) -> None:
        """Go on with the MACs of a lease of an earlier run."""
        self._remember_macs(lease)

    def resume(self, lease: Lease) -> bool:
        """Go on with the lease of an earlier run while the store does not answer; False when it does not fit.

        Also with one that has ended: our pods use its addresses, and as long as nobody can write, nobody takes it.
        """
        ours = lease.public_ip in self._identity.public or lease.public_ipv6 in self._identity.public
        if not ours or not allocation.fits(self._identity.conf, lease):
            return False
        built = self._build(allocation.Choice(lease.subnet, lease.ipv6_subnet, lease), ())
        self.lease = dataclasses.replace(built, expires=lease.expires)
        self._value = leases.emit_value(lease)
        return True

    def republish(self, identity: Identity) -> None:
        """Publish the same subnets and MACs with other public addresses, as soon as the store takes it."""
        assert self.lease is not None
        self._identity = dataclasses.replace(self._identity, public=identity.public)
        v4, v6 = _by_version(identity.public)
        self.lease = dataclasses.replace(self.lease, public_ip=v4, public_ipv6=v6)
        self._moved = True
        self._wake.set()

    def observe(self, snapshot: Snapshot) -> None:
        """Look at the store's content; what has to be done about our lease is done by `run`."""
        self._seen = snapshot
        self._wake.set()

    async def release(self) -> None:
        """Remove a lease that this run created: the start failed after all. Never raises."""
        if self.created and self._entry is not None:
            with contextlib.suppress(StoreError):
                await self._store.delete(self._entry.key, self._entry.revision)

    async def run(self) -> None:
        """Renew and repair for ever."""
        while True:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_renewal()):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if self._moved:
                    self._seen = await self._store.list(self._prefix)
                    self._moved = False
                if self._seen is not None:
                    await self._repair(self._seen)
                await self._renew()
            except ConflictError:
                await asyncio.sleep(PAUSE_SECONDS)  # somebody else wrote; the next snapshot says what
                self._seen = await self._list_quietly()
                self._wake.set()
            except StoreUnavailableError as error:
                if not self._waiting:
                    log.warning("our lease is not written: %s", error)
                self._waiting = True
                await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.0))  # all nodes see it return at once
                self._wake.set()
            except LeaseError as error:
                log.error("no lease for this node: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                self._seen = await self._list_quietly()
                self._wake.set()
            else:
                self._waiting = False

    def _until_renewal(self) -> float | None:
        if self._entry is None or self._entry.expires is None:
            return None
        left = min(self._entry.expires - self._margin - self._clock(), self._renew_at - self._uptime())
        return max(RETRY_SECONDS if self._due() else 0.0, left)

    def _due(self) -> bool:
        if self._entry is None or self._entry.expires is None:
            return False
        return self._clock() >= self._entry.expires - self._margin or self._uptime() >= self._renew_at

    async def _list_quietly(self) -> Snapshot | None:
        with contextlib.suppress(StoreUnavailableError):
            return await self._store.list(self._prefix)
        return None

    async def _renew(self) -> None:
        if self._due() and self._entry is not None:
            entry = self._entry
            self._published(await self._store.put(entry.key, entry.value, entry.revision, leases.TTL))
            log.info("lease %s renewed", self.lease.key if self.lease else "")

    async def _repair(self, snapshot: Snapshot) -> None:
        """Bring the store's idea of our lease to ours; take another subnet when somebody else has ours."""
        lease = self.lease
        if lease is None:
            return
        key = self._prefix + lease.key
        found = snapshot.entries.get(key)
        value = leases.emit_value(lease)
        if found is None:
            log.warning("our lease %s is gone from the store: publishing it again", lease.key)
            self._published(await self._store.put(key, value, 0, leases.TTL))
        elif found.value == value:
            self._published(found)
        elif found.value == self._value:
            log.info("our lease %s gets the public address %s", lease.key, _shown(self._identity.public))
            self._published(await self._store.put(key, value, found.revision, _ttl(found, lease)))
        elif self._is_ours(lease.key, found):
            log.warning("our lease %s was changed by somebody else: writing it again", lease.key)
            self._published(await self._store.put(key, value, found.revision, _ttl(found, lease)))
            await asyncio.sleep(PAUSE_SECONDS)  # two daemons with one public IP must not race each other for ever
        else:
            log.error("our lease %s was taken by another node: taking another subnet", lease.key)
            self._identity = dataclasses.replace(self._identity, previous=())
            self.changed(await self.acquire())
        if self._seen is snapshot:
            self._seen = None

    def _is_ours(self, key: str, entry: Entry) -> bool:
        try:
            found = leases.parse(key, entry.value)
        except LeaseFormatError:
            return True  # unreadable, under the key that we hold
        if found.public_ip in self._identity.public or found.public_ipv6 in self._identity.public:
            return True
        # Our addresses may have changed while nobody could write, but never our MACs.
        macs = {leases.parse_mac(data) for data in (found.backend_data, found.backend_v6_data)} - {None}
        return bool(macs) and macs <= set(self._identity.macs.values())

    async def _take(self, choice: allocation.Choice, snapshot: Snapshot, known: Sequence[Lease]) -> Lease:
        lease = self._build(choice, known)
        key = self._prefix + lease.key
        value = leases.emit_value(lease)
        old = snapshot.entries.get(key) if choice.existing else None
        entry = await self._store.put(key, value, old.revision if old else 0, _ttl(old, lease))
        self.created = old is None
        self.lease = lease
        return self._published(entry)

    def _published(self, entry: Entry) -> Lease:
        """Our lease lies in the store as `entry`."""
        assert self.lease is not None
        if entry.expires is not None and (self._entry is None or entry.revision != self._entry.revision):
            self._renew_at = self._uptime() + entry.expires - self._margin - self._clock()
        self._entry, self._value = entry, entry.value
        self.lease = dataclasses.replace(self.lease, expires=entry.expires, revision=entry.created)
        return self.lease

    def _build(self, choice: allocation.Choice, known: Sequence[Lease]) -> Lease:
        if choice.existing is not None:
            self._remember_macs(choice.existing)
        self._drop_foreign_macs(known)
        identity = self._identity
        if identity.conf.backend.type == "vxlan":
            for address in identity.public:
                identity.macs.setdefault(address.version, leases.new_mac(os.urandom(6)))
        versions = {address.version for address in identity.public}
        macs: dict[int, bytes] = {kind: mac for kind, mac in identity.macs.items() if kind in versions}
        data = published(identity.conf.backend, macs, identity.output)
        v4, v6 = _by_version(self._identity.public)
        return Lease(
            subnet=choice.subnet,
            ipv6_subnet=choice.ipv6_subnet,
            public_ip=v4,
            public_ipv6=v6,
            backend_type=data.backend_type,
            backend_data=data.backend_data,
            backend_v6_data=data.backend_v6_data,
            key=leases.key_of(choice.subnet, choice.ipv6_subnet),
        )

    def _drop_foreign_macs(self, known: Sequence[Lease]) -> None:
        """Forget a MAC that another node has: a machine image was copied with the state of the first."""
        mine = allocation.owned(known, self._identity.public)
        others = [lease for lease in known if lease not in mine]
        taken = {leases.parse_mac(data) for lease in others for data in (lease.backend_data, lease.backend_v6_data)}
        for version, mac in list(self._identity.macs.items()):
            if mac in taken:
                log.warning("MAC %s belongs to another node: choosing a new one", leases.emit_mac(mac))
                del self._identity.macs[version]

    def _remember_macs(self, lease: Lease) -> None:
        for version, data in ((4, lease.backend_data), (6, lease.backend_v6_data)):
            mac = leases.parse_mac(data)
            if mac is not None:
                self._identity.macs[version] = mac


def lease_or_claim(key: str, entry: Entry) -> Lease | None:
    """The lease, or for an unreadable value a stand-in that only occupies its subnets; None for an unreadable key."""
    try:
        return leases.parse(key, entry.value, entry.expires, entry.created)
    except LeaseFormatError:
        pass
    try:
        subnet, ipv6_subnet = leases.parse_key(key)
    except LeaseFormatError:
        return None
    return Lease(subnet, ipv6_subnet, None, None, "", expires=entry.expires, revision=entry.created, key=key)


def _by_version(public: Sequence[Address]) -> tuple[IPv4Address | None, IPv6Address | None]:
    v4 = next((address for address in public if isinstance(address, IPv4Address)), None)
    return v4, next((address for address in public if isinstance(address, IPv6Address)), None)


def _shown(public: Sequence[Address]) -> str:
    return ", ".join(str(address) for address in public)


def _ttl(entry: Entry | None, lease: Lease) -> float | None:
    """Seconds to live: a reservation (no time limit) stays one, unless our type (udp, alloc) publishes no BackendType.

    Such a lease without time limit would look like a reservation whose node has not joined; flannel limits all.
    """
    reserved = entry is not None and entry.expires is None and lease.backend_type != ""
    return None if reserved else leases.TTL


__all__: Sequence[str] = ("Identity", "OwnLease", "lease_or_claim")
