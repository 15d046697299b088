"""What the kernel has to hold for the ways by which peers are reached, device by device."""

from __future__ import annotations

from fabric.calc.parts import NO_ENTRIES, Part
from fabric.calc.words import Node, data_of, public_of
from fabric.config import node_port_mtu, overhead, vxlan_device_name
from fabric.leases import derived_mac, parse_mac
from fabric.model import Address, KernelDevice, KernelVxlan, Lease


def devices_of(node: Node, ways: Part) -> tuple[KernelDevice, ...]:
    """The node port when the data path is in use, kernel VXLAN devices, then underlay devices by name.

    The underlay interface is always among them, so that routes left on it by an earlier configuration go; but the alloc
    backend has no kernel objects at all.
    """
    if node.conf.backend.type == "alloc":
        return ()
    overlay = [*_node_port(node, ways), *_vxlan_devices(node, ways)]
    plain = {node.interface, *ways.devices} - {device.name for device in overlay}
    found = {name: ways.devices.get(name, NO_ENTRIES) for name in sorted(plain)}
    return (*overlay, *(KernelDevice(name, "underlay", routes=entries.routes) for name, entries in found.items()))


def own_mac(lease: Lease, version: int) -> bytes:
    """Our MAC in VXLAN: the one that our lease names, else one that follows from our public address."""
    address = public_of(lease, version)
    return parse_mac(data_of(lease, version)) or (derived_mac(address) if address else bytes(6))


def _node_port(node: Node, ways: Part) -> list[KernelDevice]:
    own_format = node.conf.backend.encapsulation
    if not own_format and not ways.served:
        return []
    addresses: tuple[Address, ...] = tuple(
        subnet.network_address
        for version, subnet in node.subnets(node.lease)
        if own_format or (node.device, version) in ways.routed  # a second device with our address: only where needed
    )
    mtu = node.mtu if own_format else node_port_mtu(node.conf, node.underlay_mtu)
    here = ways.devices.get(node.device, NO_ENTRIES).routes
    return [KernelDevice(node.device, "node port", mtu, addresses, here, loose=bool(ways.served - {node.device}))]


def _vxlan_devices(node: Node, ways: Part) -> list[KernelDevice]:
    """flannel's devices, one per family that we have an underlay address of."""
    backend = node.conf.backend
    if not backend.kernel:
        return []
    local_of = {own.version: own for own in node.underlay}
    return [
        _vxlan_device(node, version, subnet.network_address, local_of[version], ways)
        for version, subnet in node.subnets(node.lease)
        if version in local_of
    ]


def _vxlan_device(node: Node, version: int, address: Address, local: Address, ways: Part) -> KernelDevice:
    backend = node.conf.backend
    name = vxlan_device_name(backend.vni, version)
    here = ways.devices.get(name, NO_ENTRIES)
    mac = own_mac(node.lease, version)
    return KernelDevice(
        name,
        "vxlan",
        (backend.mtu or node.underlay_mtu) - overhead("vxlan", version),
        (address,),
        here.routes,
        here.neighbours,
        here.fdb,
        KernelVxlan(backend.vni, backend.port, node.interface, local, mac, backend.learning, backend.gbp),
        loose=any(device != name for device, family in ways.routed if family == version),
    )
