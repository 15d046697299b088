"""Leases that the lab itself writes: subnets in the order of the nodes, and the kernel nodes' VTEPs.

A lab of kernel nodes only needs no store. With daemons the lab reserves a subnet per node before they start, as an
administrator may do in flannel (a lease without time limit that names only the public IP), so that node 3 gets the
third subnet; kernel nodes, which have nobody to publish for them, get complete leases.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from fabric import config, leases
from fabric.lab.kernel import Vtep, make_vteps
from fabric.lab.plan import LabError, Node, Options, net_conf
from fabric.model import Lease, Network
from fabric.store.base import Snapshot
from fabric.store.sqlite import SqliteStore

PREFIX = leases.subnets_prefix()


@dataclass(frozen=True, slots=True)
class Seat:
    """The subnets of one node."""

    subnet: IPv4Network | None
    subnet6: IPv6Network | None


def store_path(run_dir: Path) -> Path:
    """The SQLite file all daemons of the lab share."""
    return run_dir / "fabric.db"


def seat(conf: config.NetConf, number: int) -> Seat:
    """The subnets of the `number`th node (from 1), as SubnetMin and SubnetLen give them."""

    def nth(limits: config.SubnetRange | None) -> Network | None:
        if limits is None:
            return None
        start = limits.minimum + (number - 1) * limits.step
        if start > limits.maximum:
            raise LabError(f"{limits.network} has no subnet for node {number}; make Network larger")
        kind = IPv6Network if limits.network.version == 6 else IPv4Network
        return kind((start, limits.subnet_len))

    first, second = nth(conf.ipv4), nth(conf.ipv6)
    return Seat(first if isinstance(first, IPv4Network) else None, second if isinstance(second, IPv6Network) else None)


def assign(nodes: Sequence[Node], options: Options) -> None:
    """Number the subnets of all kernel nodes through; their devices and leases are made from them."""
    conf = parse_conf(options)
    for number, node in enumerate(nodes, 1):
        if node.kind == "kernel":
            subnets = seat(conf, number)
            node.subnet = str(subnets.subnet or "")
            node.subnet6 = str(subnets.subnet6 or "")


def parse_conf(options: Options) -> config.NetConf:
    """The net-conf.json of these options, checked; raises ConfigError."""
    return config.parse(json.dumps(net_conf(options)))


def lease_of(node: Node, subnets: Seat, vni: int, vteps: Sequence[Vtep]) -> Lease:
    """A reservation, or with `vteps` a complete vxlan lease as flannel on that node would publish it."""
    data = {v.subnet.version: leases.vxlan_data(vni, bytes.fromhex(v.mac.replace(":", ""))) for v in vteps}
    return Lease(
        subnet=subnets.subnet,
        ipv6_subnet=subnets.subnet6,
        public_ip=IPv4Address(node.underlay_ip) if subnets.subnet else None,
        public_ipv6=IPv6Address(node.underlay_ip6) if subnets.subnet6 else None,
        backend_type="vxlan" if vteps else "",
        backend_data=data.get(4),
        backend_v6_data=data.get(6),
    )


def publish(nodes: Sequence[Node], options: Options, run_dir: Path) -> dict[str, list[Vtep]]:
    """Write all leases the lab is responsible for; the VTEPs made for the kernel nodes, by node name."""
    conf = parse_conf(options)
    vteps = {node.name: make_vteps(node) for node in nodes if node.kind == "kernel"}
    written = []
    for number, node in enumerate(nodes, 1):
        if node.kind == "kernel" or options.reserve:
            subnets = seat(conf, number)
            written.append(lease_of(node, subnets, conf.backend.vni, vteps.get(node.name, [])))
    asyncio.run(put_leases(store_path(run_dir), written))
    return vteps


async def put_leases(path: Path, written: Sequence[Lease]) -> None:
    """Create the leases in the store, without time limit."""
    store = SqliteStore(path)
    await store.open()
    try:
        for lease in written:
            key = PREFIX + leases.key_of(lease.subnet, lease.ipv6_subnet)
            await store.put(key, leases.emit_value(lease), 0, None)
    finally:
        await store.close()


async def list_leases(path: Path) -> Snapshot:
    """All leases in the store now."""
    store = SqliteStore(path)
    await store.open()
    try:
        return await store.list(PREFIX)
    finally:
        await store.close()


def read_vteps(run_dir: Path) -> list[Vtep]:
    """Every VTEP in the store, one per family: what a flannel on a kernel node would program."""
    found: list[Vtep] = []
    for key, entry in asyncio.run(list_leases(store_path(run_dir))).entries.items():
        lease = leases.parse(key.removeprefix(PREFIX), entry.value)
        for subnet, public, data in (
            (lease.subnet, lease.public_ip, lease.backend_data),
            (lease.ipv6_subnet, lease.public_ipv6, lease.backend_v6_data),
        ):
            mac = leases.parse_mac(data)
            if subnet is not None and public is not None and mac is not None and lease.backend_type == "vxlan":
                found.append(Vtep(subnet, str(public), leases.emit_mac(mac)))
    return found
