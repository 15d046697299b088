"""What the kernel has to hold for the ways by which peers are reached, device by device."""

from __future__ import annotations

from collections.abc import Sequence

from fabric.calc.reach import Reach
from fabric.calc.words import Node, data_of, public_of
from fabric.config import node_port_mtu, overhead, vxlan_device_name
from fabric.leases import derived_mac, parse_mac
from fabric.model import Address, KernelDevice, KernelRoute, KernelVxlan, Lease


def devices_of(node: Node, reaches: Sequence[Reach]) -> tuple[KernelDevice, ...]:
    """The node port when the data path is in use, kernel VXLAN devices, then underlay devices by name.

    The underlay interface is always among them, so that routes left on it by an earlier configuration go; but the alloc
    backend has no kernel objects at all.
    """
    if node.conf.backend.type == "alloc":
        return ()
    by_device: dict[str, list[Reach]] = {node.interface: []}
    for found in reaches:
        by_device.setdefault(found.device, []).append(found)
    overlay = [*_node_port(node, reaches), *_vxlan_devices(node, reaches)]
    plain = by_device.keys() - {device.name for device in overlay} - {""}
    return (*overlay, *(KernelDevice(name, "underlay", routes=_routes(by_device[name])) for name in sorted(plain)))


def own_mac(lease: Lease, version: int) -> bytes:
    """Our MAC in VXLAN: the one that our lease names, else one that follows from our public address."""
    address = public_of(lease, version)
    return parse_mac(data_of(lease, version)) or (derived_mac(address) if address else bytes(6))


def _routes(reaches: Sequence[Reach]) -> tuple[KernelRoute, ...]:
    return tuple(found.route for found in reaches if found.route)


def _node_port(node: Node, reaches: Sequence[Reach]) -> list[KernelDevice]:
    own_format = node.conf.backend.encapsulation
    served = [found for found in reaches if found.peer]
    if not own_format and not served:
        return []
    here = _routes([found for found in served if found.device == node.device])
    versions = {route.prefix.version for route in here}
    addresses: tuple[Address, ...] = tuple(
        subnet.network_address
        for version, subnet in node.subnets(node.lease)
        if own_format or version in versions  # a second device with our address: only where it is needed
    )
    mtu = node.mtu if own_format else node_port_mtu(node.conf, node.underlay_mtu)
    loose = any(found.device != node.device for found in served)
    return [KernelDevice(node.device, "node port", mtu, addresses, here, loose=loose)]


def _vxlan_devices(node: Node, reaches: Sequence[Reach]) -> list[KernelDevice]:
    """flannel's devices, one per family that we have an underlay address of."""
    backend = node.conf.backend
    if not backend.kernel:
        return []
    local_of = {own.version: own for own in node.underlay}
    return [
        _vxlan_device(node, version, subnet.network_address, local_of[version], reaches)
        for version, subnet in node.subnets(node.lease)
        if version in local_of
    ]


def _vxlan_device(node: Node, version: int, address: Address, local: Address, reaches: Sequence[Reach]) -> KernelDevice:
    backend = node.conf.backend
    name = vxlan_device_name(backend.vni, version)
    family = [found for found in reaches if found.route and found.route.prefix.version == version]
    here = [found for found in family if found.device == name]
    mac = own_mac(node.lease, version)
    return KernelDevice(
        name,
        "vxlan",
        (backend.mtu or node.underlay_mtu) - overhead("vxlan", version),
        (address,),
        _routes(here),
        tuple(found.neighbour for found in here if found.neighbour),
        tuple(found.fdb for found in here if found.fdb),
        KernelVxlan(backend.vni, backend.port, node.interface, local, mac, backend.learning, backend.gbp),
        loose=len(here) < len(family),
    )
