"""Our own lease where Kubernetes is the store: the subnets are our Node's podCIDRs, what we publish its annotations.

Source: flannel `pkg/subnet/kube/kube.go` (AcquireLease, CompleteLease). Different on purpose: a Node without podCIDR is
waited for; annotations that somebody removed or changed are written again, also when the Node object was made anew; a
podCIDR that changed is followed; `public-ip-overwrite` is followed while we run. Only what differs is patched.

The Node object has no owner besides its name, so nothing here is fenced: should flanneld run on the same node, each
writes what it knows, and we wait longer each time (1 s to 60 s). So we do when the API does not take a patch, but for
one that refuses connections: that is tried every second, by nodes that have something to write.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from time import monotonic, time

from fabric import leases
from fabric.backend.published import Published, published
from fabric.config import NetConf
from fabric.daemon.own_lease import Identity
from fabric.errors import ConflictError, LeaseError, NotConnectedError, StoreError, StoreUnavailableError
from fabric.leases import LeaseFormatError
from fabric.model import Lease
from fabric.store.base import Snapshot
from fabric.store.kube import annotate, nodes
from fabric.store.kube.api import ANSWER_SECONDS, NotFoundError
from fabric.store.kube.nodes import Node, NodeError
from fabric.store.kube.store import KubeStore

log = logging.getLogger("fabric.lease")
LOOK_SECONDS = 1.0
PATIENCE = 3.0
"""With an API that says nothing, where a lease of an earlier run is there to go on with."""
PAUSES = (1.0, 60.0)
QUIET_SECONDS = 120.0


class KubeLease:
    """`acquire` once, then keep `run` running; `observe` wakes it. Surface and meaning as of `OwnLease`.

    `prefix` is the one under which the store's entries are watched; `condition` says whether the Node's condition
    NetworkUnavailable is cleared once the node forwards (`--set-node-network-unavailable`); `clock` is Unix time.
    """

    def __init__(
        self,
        store: KubeStore,
        prefix: str,
        identity: Identity,
        condition: bool = True,
        clock: Callable[[], float] = time,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._identity = identity
        self._condition = condition
        self._clock = clock
        self._name = store.node_name
        self._names = store.names
        self._cleared: str | None = None  # uid of the Node object whose condition we cleared
        self._judged: Node | None = None
        self._written = (0, 0)  # the store's epoch and the version that our last patch made
        self._before: Mapping[str, str] = {}
        self._overwrites: dict[int, str] = {}
        self._remembers = False  # a lease of an earlier run
        self._expected = True  # the next difference is our own doing, not somebody else's
        self._fights, self._fought = 0, 0.0
        self._said = ""
        self._wake = asyncio.Event()
        self.created = False
        self.lease: Lease | None = None
        self.changed: Callable[[Lease], None] = lambda lease: None
        store.own_changed = self._wake.set

    async def acquire(self) -> Lease:
        """Publish what our Node's podCIDRs give us, waiting for them. Raises LeaseError, StoreUnavailableError."""
        node = await self._assigned()
        await self._adopt_macs(node)
        lease = self._build(node)
        self.created, self._before = not nodes.is_managed(node, self._names), node.annotations
        try:
            await self._publish(node, lease)
        except (ConflictError, NotFoundError) as error:
            raise StoreUnavailableError(str(error)) from None
        self.lease, self._judged, self._expected = lease, node, False
        return lease

    def remember(self, lease: Lease) -> None:
        """Go on with the MACs of a lease of an earlier run; those on our Node win."""
        self._remembers = True
        for version, data in ((4, lease.backend_data), (6, lease.backend_v6_data)):
            mac = leases.parse_mac(data)
            if mac is not None:
                self._identity.macs[version] = mac

    def resume(self, lease: Lease) -> bool:
        """Go on with the lease of an earlier run while the API does not answer; False when it does not fit."""
        if lease.node != self._name:
            return False
        self.remember(lease)
        try:
            subnet, ipv6_subnet = leases.parse_key(lease.key)
            self.lease = self._lease(subnet, ipv6_subnet, lease.key, lease.revision)
        except (LeaseError, LeaseFormatError):
            return False
        return True

    def republish(self, identity: Identity) -> None:
        """Publish the same subnets and MACs with other public addresses, as soon as the API takes it."""
        assert self.lease is not None
        self._identity = dataclasses.replace(self._identity, public=identity.public)
        v4, v6 = self._public()
        self.lease = dataclasses.replace(self.lease, public_ip=v4, public_ipv6=v6)
        self._judged, self._expected = None, True
        self._wake.set()

    def observe(self, snapshot: Snapshot) -> None:
        """Look at our Node again if it is another one; what has to be done about it is done by `run`."""
        if self._store.own_node() is not self._judged:
            self._wake.set()

    async def release(self) -> None:
        """Take back what this run made of a Node that was not flannel's: the start failed after all. Never raises."""
        if not self.created or self.lease is None:
            return
        mine = annotate.published(self._names, self.lease, self._before)
        patch = {name: self._before.get(name) for name in mine}
        with contextlib.suppress(StoreError):
            await self._store.api.patch_status(self._name, {"metadata": {"annotations": patch}})
            self.created = False

    async def run(self) -> None:
        """Keep the Node's annotations and condition as they have to be, for ever."""
        pause = PAUSES[0]
        while True:
            try:
                rewritten = await self._sync()
                await self._clear_condition()
            except (StoreUnavailableError, ConflictError, NotFoundError) as error:
                self._say(f"our node's annotations are not written: {error}")
                limit = PAUSES[0] if isinstance(error, NotConnectedError) else PAUSES[1]
                await asyncio.sleep(min(pause, limit) * random.uniform(0.5, 1.0))
                pause = min(pause * 2, limit)
                continue
            except StoreError as error:
                self._say(f"our node's annotations are refused: {error}")
                await asyncio.sleep(PAUSES[1])
                continue
            pause, self._said = PAUSES[0], ""
            if rewritten:
                await asyncio.sleep(self._after_fight())
            await self._wake.wait()
            self._wake.clear()

    async def _sync(self) -> bool:
        """Bring our Node's annotations to what they have to be; whether somebody else had changed them."""
        self._wake.clear()
        node = self._store.own_node()
        if node is None and self._judged is not None:
            log.warning("node %s is gone from the API: peers stop sending to us until it is there again", self._name)
            self._judged = None
        if node is None or self.lease is None or node is self._judged or self._is_stale(node):
            return False
        try:
            lease = self._build(node)
        except LeaseError as error:
            log.error("%s; we keep %s", error, self.lease.key)
            self._judged = node
            return False
        old, self.lease = self.lease, lease
        moved = (lease.public_ip, lease.public_ipv6) != (old.public_ip, old.public_ipv6)
        foreign = not self._expected and not moved and lease.key == old.key
        written = await self._publish(node, lease, foreign)
        self._judged, self._expected = node, False
        if (lease.subnet, lease.ipv6_subnet) != (old.subnet, old.ipv6_subnet):
            log.warning("the podCIDR of node %s is now %s", self._name, ", ".join(node.pod_cidrs))
            self.changed(lease)
        return written and foreign

    async def _publish(self, node: Node, lease: Lease, foreign: bool = False) -> bool:
        """Patch what differs; whether something did."""
        patch = annotate.differing(annotate.published(self._names, lease, node.annotations), node.annotations)
        if not patch:
            return False
        if foreign and not self._fights:
            log.warning("annotations of our node were changed by somebody else: writing %s again", ", ".join(patch))
        after = await self._store.api.patch_status(self._name, {"metadata": {"annotations": patch}})
        self._written = (self._store.epoch, after.version)
        return True

    def _is_stale(self, node: Node) -> bool:
        """Whether the watch has not shown us our own last patch yet."""
        epoch, version = self._written
        return epoch == self._store.epoch and 0 < node.version < version

    async def _clear_condition(self) -> None:
        """NetworkUnavailable is False from now on, once for each Node object (flannel CompleteLease)."""
        node = self._store.own_node()
        if not self._condition or node is None or node.uid == self._cleared:
            return
        now = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": "NetworkUnavailable",
            "status": "False",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
            "reason": "FlannelIsUp",
            "message": "Flannel is running on this node",
        }
        await self._store.api.patch_status(self._name, {"status": {"conditions": [condition]}})
        self._cleared = node.uid

    async def _assigned(self) -> Node:
        """Our Node, as soon as it exists and has a podCIDR."""
        while True:
            try:
                node = await self._store.api.node(self._name, PATIENCE if self._remembers else ANSWER_SECONDS)
                if node.pod_cidrs:
                    return node
                problem = f'node "{self._name}" pod cidr not assigned'
            except NotFoundError:
                problem = f'there is no node "{self._name}": is --node-name (NODE_NAME) right?'
            self._say(f"{problem}: waiting for it")
            await asyncio.sleep(LOOK_SECONDS)

    async def _adopt_macs(self, node: Node) -> None:
        """MACs by preference: published on our Node, of an earlier run unless another node has them, new."""
        macs = self._identity.macs
        stored = annotate.stored_macs(self._names, node.annotations)
        if macs.keys() - stored.keys():
            taken = await self._foreign_macs()
            for version in [version for version, mac in macs.items() if mac in taken]:
                log.warning("MAC %s belongs to another node: choosing a new one", leases.emit_mac(macs.pop(version)))
        macs.update(stored)

    async def _foreign_macs(self) -> set[bytes]:
        found: set[bytes] = set()
        with contextlib.suppress(StoreUnavailableError):
            for key, entry in (await self._store.list(self._prefix)).entries.items():
                with contextlib.suppress(LeaseFormatError):
                    lease = leases.parse(key.removeprefix(self._prefix), entry.value)
                    if lease.node != self._name:
                        both = (leases.parse_mac(lease.backend_data), leases.parse_mac(lease.backend_v6_data))
                        found |= {mac for mac in both if mac is not None}
        return found

    def _build(self, node: Node) -> Lease:
        """Our lease by what the Node says. Raises LeaseError."""
        try:
            subnet, ipv6_subnet = nodes.pod_subnets(node)
        except NodeError as error:
            raise LeaseError(str(error)) from None
        if subnet is None and ipv6_subnet is None:
            raise LeaseError(f'node "{self._name}" pod cidr not assigned')
        found = node.annotations
        self._overwrites = {version: annotate.overwrite(self._names, found, version) for version in (4, 6)}
        return self._lease(subnet, ipv6_subnet, leases.key_of(subnet, ipv6_subnet, self._name), node.created)

    def _lease(self, subnet: IPv4Network | None, ipv6_subnet: IPv6Network | None, key: str, created: int) -> Lease:
        """The lease for podCIDRs, with the families that the configuration enables. Raises LeaseError."""
        conf = self._identity.conf
        subnet = subnet if conf.ipv4 is not None else None
        ipv6_subnet = ipv6_subnet if conf.ipv6 is not None else None
        self._check_network(conf, subnet, ipv6_subnet, key)
        data = self._published(conf)
        v4, v6 = self._public()
        return Lease(
            subnet=subnet,
            ipv6_subnet=ipv6_subnet,
            public_ip=v4,
            public_ipv6=v6,
            backend_type=data.backend_type,
            backend_data=data.backend_data,
            backend_v6_data=data.backend_v6_data,
            revision=created,
            key=key,
            node=self._name,
        )

    def _check_network(
        self, conf: NetConf, subnet: IPv4Network | None, ipv6_subnet: IPv6Network | None, key: str
    ) -> None:
        """flannel's check, and its words."""
        if subnet is None and ipv6_subnet is None:
            families = "IPv6" if conf.ipv4 is None else "IPv4" if conf.ipv6 is None else "IPv4 or IPv6"
            raise LeaseError(f'node "{self._name}" has no {families} PodCIDR, only {key}: enable that family')
        for limits, found, family in ((conf.ipv4, subnet, ""), (conf.ipv6, ipv6_subnet, "IPv6 ")):
            if limits is None or found is None:
                continue
            network = limits.network
            inside = found.prefixlen >= network.prefixlen and found.network_address in network
            if not inside:
                raise LeaseError(
                    f'subnet "{network}" specified in the flannel net config doesn\'t contain "{found}" '
                    f'{family}PodCIDR of the "{self._name}" node'
                )

    def _published(self, conf: NetConf) -> Published:
        versions = {item.version for item in self._identity.public}
        if conf.backend.type == "vxlan":
            for version in versions:
                self._identity.macs.setdefault(version, leases.new_mac(os.urandom(6)))
        macs: dict[int, bytes] = {kind: mac for kind, mac in self._identity.macs.items() if kind in versions}
        return published(conf.backend, macs, self._identity.output)

    def _public(self) -> tuple[IPv4Address | None, IPv6Address | None]:
        """What we publish: our own addresses, or what the administrator wrote over them."""
        found = {address.version: address for address in self._identity.public}
        found |= {version: ip_address(text) for version, text in self._overwrites.items() if text and version in found}
        v4, v6 = found.get(4), found.get(6)
        return v4 if isinstance(v4, IPv4Address) else None, v6 if isinstance(v6, IPv6Address) else None

    def _after_fight(self) -> float:
        """How long to leave the Node alone after writing over somebody else's annotations."""
        now = monotonic()
        self._fights = self._fights + 1 if now - self._fought < QUIET_SECONDS else 1
        self._fought = now
        return min(PAUSES[0] * 2.0 ** (self._fights - 1), PAUSES[1])

    def _say(self, line: str) -> None:
        """Each trouble once."""
        if line != self._said:
            self._said = line
            log.warning("%s", line)
