"""Plain kernel VXLAN: the lab's flannel-style peer, and a second overlay beside the fabric as a baseline.

The peer is laid out as flannel's vxlan backend does (one device per family, static neighbour and FDB entries, onlink
routes); the baseline uses another device, VNI and UDP port, so that both overlays coexist on the same nodes and
pods and a comparison only changes routes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

from fabric.lab import system
from fabric.lab.plan import UNDERLAY_MTU, LabError, Node

OVERHEAD = {4: 50, 6: 70}


@dataclass(frozen=True, slots=True)
class Vtep:
    """A tunnel end point of one family: the pod subnet behind it, its underlay address and its MAC."""

    subnet: IPv4Network | IPv6Network
    underlay: str
    mac: str


@dataclass(frozen=True, slots=True)
class Device:
    """A kernel VXLAN device."""

    name: str
    vni: int
    port: int


BASELINE = {4: Device("kernel.2", 2, 8473), 6: Device("kernel-v6.2", 2, 8473)}


def flannel_devices(vni: int, port: int) -> dict[int, Device]:
    """flannel's devices by family."""
    return {4: Device(f"flannel.{vni}", vni, port), 6: Device(f"flannel-v6.{vni}", vni, port)}


def random_mac() -> str:
    """Six random bytes, unicast and locally administered, as flannel chooses them."""
    octets = [random.randrange(256) for _ in range(6)]
    octets[0] = (octets[0] & 0xFE) | 0x02
    return ":".join(f"{octet:02x}" for octet in octets)


def make_vteps(node: Node) -> list[Vtep]:
    """VTEPs for the subnets the node has; IPv6 pods ride on the IPv6 underlay, as in flannel."""
    vteps = []
    if node.subnet:
        vteps.append(Vtep(IPv4Network(node.subnet), node.underlay_ip, random_mac()))
    if node.subnet6:
        vteps.append(Vtep(IPv6Network(node.subnet6), node.underlay_ip6, random_mac()))
    return vteps


def make_device(netns: str, device: Device, vtep: Vtep) -> None:
    """Create the device as flannel does; it takes its UDP port in the namespace.

    The baseline gets no address: only pods talk over it, and a second owner of the node's overlay address would
    change how the fabric's own device is used.
    """
    mtu = UNDERLAY_MTU - OVERHEAD[vtep.subnet.version]
    lines = [
        f"link add {device.name} address {vtep.mac} mtu {mtu} type vxlan id {device.vni} dev eth0 "
        f"local {vtep.underlay} dstport {device.port} nolearning",
    ]
    if device not in BASELINE.values():
        lines.append(f"addr add {vtep.subnet.network_address}/{vtep.subnet.max_prefixlen} dev {device.name}")
    system.batch([*lines, f"link set {device.name} up"], netns)


def gateway(device: Device, peer: Vtep) -> str:
    """Next hop for a peer: its network address as flannel has it.

    The baseline's IPv6 next hop is link-local, because the kernel refuses an onlink next hop that another device's
    route covers.
    """
    if device is BASELINE[6]:
        return str(IPv6Address("fe80::") + int(peer.mac.replace(":", ""), 16))
    return str(peer.subnet.network_address)


def program_neighbour(netns: str, device: Device, peers: Sequence[Vtep]) -> None:
    """ARP/ND and FDB entries towards the peers, both permanent."""
    if not peers:
        return
    system.batch(
        [f"neigh replace {gateway(device, p)} dev {device.name} lladdr {p.mac} nud permanent" for p in peers],
        netns,
    )
    entries = [f"fdb replace {p.mac} dev {device.name} dst {p.underlay} self permanent" for p in peers]
    script = "".join(f"bridge {entry};" for entry in entries)
    system.run(netns, ["sh", "-ec", script])


def program_routes(netns: str, device: Device, peers: Sequence[Vtep]) -> None:
    """`<peer subnet> via <peer network address> onlink`, as flannel."""
    lines = [f"route replace {p.subnet} via {gateway(device, p)} dev {device.name} onlink" for p in peers]
    system.batch(lines, netns)


class KernelNode:
    """The kernel peer's own side: its VTEPs and what it knows of the others."""

    def __init__(self, node: Node, vteps: Sequence[Vtep], vni: int, port: int) -> None:
        self.node = node
        self._devices = flannel_devices(vni, port)
        self.vteps = {vtep.subnet.version: vtep for vtep in vteps}

    def make(self) -> None:
        """Create flannel.1 (and flannel-v6.1)."""
        for version, vtep in self.vteps.items():
            make_device(self.node.netns, self._devices[version], vtep)

    def learn(self, peers: Sequence[Vtep]) -> None:
        """Program what a flannel on this node would for the peers' leases; may be called again with more."""
        for version, own in self.vteps.items():
            others = [peer for peer in peers if peer.subnet.version == version and peer.subnet != own.subnet]
            program_neighbour(self.node.netns, self._devices[version], others)
            program_routes(self.node.netns, self._devices[version], others)


class KernelOverlay:
    """The baseline: kernel VXLAN on UDP 8473, VNI 2, between the same nodes, prepared but not routed to.

    `active()` sends pod traffic over it by routes for the halves of every peer subnet, which are longer than
    the fabric's and leave those alone. Pods on TUN ports bypass the node's routes: use veth pods.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._vteps: Mapping[str, list[Vtep]] = {node.netns: make_vteps(node) for node in nodes}
        for netns, vteps in self._vteps.items():
            for vtep in vteps:
                make_device(netns, BASELINE[vtep.subnet.version], vtep)
        for netns, version, peers in self._pairs():
            program_neighbour(netns, BASELINE[version], peers)

    def _pairs(self) -> Iterator[tuple[str, int, list[Vtep]]]:
        for netns, own in self._vteps.items():
            for version in (vtep.subnet.version for vtep in own):
                others = [v for other, vteps in self._vteps.items() if other != netns for v in vteps]
                yield netns, version, [vtep for vtep in others if vtep.subnet.version == version]

    def _routes(self, verb: str) -> None:
        for netns, version, peers in self._pairs():
            device = BASELINE[version]
            system.batch(
                [
                    f"route {verb} {half} via {gateway(device, peer)} dev {device.name} onlink"
                    for peer in peers
                    for half in peer.subnet.subnets()
                ],
                netns,
            )

    def activate(self) -> None:
        """Route pod traffic between nodes over the kernel's VXLAN."""
        self._routes("replace")

    def deactivate(self) -> None:
        """Give the traffic back to the fabric."""
        self._routes("del")

    @contextmanager
    def active(self) -> Iterator[None]:
        """`activate` for a with-block."""
        self.activate()
        try:
            yield
        finally:
            self.deactivate()

    def remove(self) -> None:
        """Delete the baseline's devices with everything that points to them."""
        for netns, vteps in self._vteps.items():
            system.batch((f"link del {BASELINE[vtep.subnet.version].name}" for vtep in vteps), netns)


def vtep_of_lease(subnet: str, underlay: str, backend_data: object) -> Vtep:
    """A peer's VTEP from its lease; raises LabError when the lease has no usable `VtepMAC`."""
    mac = backend_data.get("VtepMAC") if isinstance(backend_data, dict) else None
    if not isinstance(mac, str):
        raise LabError(f"the lease of {subnet} names no VtepMAC; is its backend vxlan?")
    return Vtep(ip_network(subnet), underlay, mac)
