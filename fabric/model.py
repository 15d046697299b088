"""The objects that travel between the control plane's parts. All are immutable values; equality means "nothing to do".

Words: a *lease* is what a node publishes in the store (its pod subnets with the attributes of its VTEPs, flannel's
`LeaseAttrs`); a *peer* is another node's lease turned into what the data path needs, one per underlay family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Lease:
    """One node's lease. Source: flannel `pkg/lease/lease.go` LeaseAttrs; at least one of the subnets is set.

    `backend_data` and `backend_v6_data` are the backend's JSON as parsed: `{"VNI": 1, "VtepMAC": "..."}` for vxlan.
    `expires` is Unix time in seconds, None for a reservation without a time limit. `revision` is the store's revision
    at which the lease was created (not its last renewal): the older of two clashing leases wins. `key` is the last
    component of the store's key, such as `10.244.1.0-24`. `node` is the node's name where the store knows it
    (Kubernetes), else empty.
    """

    subnet: IPv4Network | None
    ipv6_subnet: IPv6Network | None
    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None
    backend_type: str
    backend_data: Any = None
    backend_v6_data: Any = None
    expires: float | None = None
    revision: int = 0
    key: str = ""
    node: str = ""


Encapsulation = Literal["vxlan", "udp"]
"""A format of the user-space data path. The kernel's VXLAN device and plain routes are not its business."""

Way = Literal["vxlan", "vxlan (kernel)", "direct route", "host-gw", "udp", "extension"]
"""How we send to a peer."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A remote VTEP as the data path sees it: one underlay address that owns a set of inner prefixes.

    `encapsulation` is the format we send; None where the kernel's plain route reaches the peer and the data path only
    accepts from it. `accepts` are the formats that are taken from it. `mac` (6 bytes) is its VTEP's, the only inner
    source accepted in VXLAN; with `any_mac` its lease names none and any unicast address but our own will do. `mtu` is
    the largest inner IP packet (bytes) that fits the underlay towards this peer. With `direct` the kernel has a plain
    route to it: a pod port's packets are left to the host, those that reach the node port are encapsulated still.
    """

    name: str
    underlay: Address
    prefixes: tuple[Network, ...]
    encapsulation: Encapsulation | None
    mac: bytes
    mtu: int
    accepts: frozenset[Encapsulation] = frozenset({"vxlan"})
    any_mac: bool = False
    direct: bool = False


@dataclass(frozen=True, slots=True)
class LocalVtep:
    """Our own tunnel end point for one underlay family: address, MAC (6 bytes) and the inner prefixes we own."""

    underlay: Address
    mac: bytes
    prefixes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class ForwardingState:
    """Everything the data path is compiled from besides its ports. Output of the calculation graph."""

    vni: int
    vteps: tuple[LocalVtep, ...]
    peers: tuple[Peer, ...]


EndpointKind = Literal["tun", "tap", "veth", "bridge"]
"""How a pod is connected: by a port of the data path (tun, tap), or by the host's kernel."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One interface of a pod of this node. `name` is unique, for ports the port's name.

    `netns` is the path of the pod's network namespace, `ifname` the interface in it. `pod_namespace`, `pod_name`,
    `pod_uid`, `container_id` and `labels` are what the runtime says, empty where it says nothing. `mac` is empty for a
    TUN. `mtu` is in bytes, 0 where nobody said. `since` is Unix time in seconds.
    """

    name: str
    kind: EndpointKind
    netns: str
    ifname: str
    addresses: tuple[Address, ...] = ()
    mtu: int = 0
    mac: str = ""
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    container_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    since: float = 0.0

    @property
    def is_port(self) -> bool:
        """Whether the pod's packets pass the data path's workers."""
        return self.kind in ("tun", "tap")


@dataclass(frozen=True, slots=True)
class DataplaneSettings:
    """What the data plane needs to know once, before it opens its sockets; it never changes while the daemon runs.

    `encapsulation` is our own backend type's format, whose sockets must open; None when that type has none, and a
    format is only spoken to peers of other types. `ports` has the UDP port (host order) of each format. `underlay`
    holds our own addresses on the chosen interface, one per enabled family; `mtu` is the node port's MTU in bytes
    (`config.node_port_mtu`); `offload` the kill switches that a person set (absent: probe); `txqueuelen` the node
    port's queue length in packets; `interface` the underlay device; `flows` how many flows are tracked, 0 for none.
    `services` are the networks of Service addresses: what a pod sends there is judged by policy once the host has
    translated it. With `policy_required` pods are cut off until there is a policy snapshot. `bridges` names the device
    for pods that the host's kernel connects (bridge, veth), and is empty when they do not pass the data path.
    """

    vni: int
    ports: Mapping[Encapsulation, int]
    encapsulation: Encapsulation | None
    underlay: tuple[Address, ...]
    device: str
    mtu: int
    workers: int
    offload: Mapping[str, bool]
    reserved_bits: Literal["strict", "ignore"]
    txqueuelen: int
    interface: str = ""
    flows: int = 131_072
    services: tuple[Network, ...] = ()
    policy_required: bool = False
    bridges: str = ""


@dataclass(frozen=True, slots=True)
class RefusedPacket:
    """The beginning of a packet that the data path refused, `length` bytes long. `time` is Unix time in nanoseconds,
    `reason` a DropReason's name in small letters.

    On the way out (`port` is set) `data` is the IP packet, or with `ethernet` a TAP's frame; on the way in it is the
    payload of the datagram that came from `source` in the format `encapsulation`.
    """

    time: int
    reason: str
    length: int
    data: bytes
    port: str = ""
    ethernet: bool = False
    source: Address | None = None
    encapsulation: Encapsulation | None = None


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """`prefix via gateway dev <device>`: onlink behind a tunnel device (flannel's shape), plain on the underlay."""

    prefix: Network
    gateway: Address
    onlink: bool = True


@dataclass(frozen=True, slots=True)
class KernelNeighbour:
    """`address lladdr mac PERMANENT` on a kernel VXLAN device: who answers for a peer's subnet."""

    address: Address
    mac: bytes


@dataclass(frozen=True, slots=True)
class KernelFdbEntry:
    """`mac dst underlay self permanent` on a kernel VXLAN device: where that VTEP is."""

    mac: bytes
    underlay: Address


@dataclass(frozen=True, slots=True)
class KernelVxlan:
    """A VXLAN device of the kernel's: flannel's attributes, see its `pkg/backend/vxlan/device.go`."""

    vni: int
    port: int
    interface: str
    local: Address
    mac: bytes
    learning: bool
    gbp: bool


DeviceRole = Literal["node port", "vxlan", "underlay"]
"""The user-space data path's TUN; a kernel VXLAN device (the reconciler makes it); somebody else's interface."""


@dataclass(frozen=True, slots=True)
class KernelDevice:
    """What the kernel has to hold on one device. `mtu` in bytes, 0 to leave it alone; `addresses` are our overlay
    addresses as host addresses (`/32`, `/128`); `vxlan` is set for the role "vxlan" only. `loose`: packets come out of
    this device whose senders are routed by another one, so a strict reverse path filter would drop them."""

    name: str
    role: DeviceRole
    mtu: int = 0
    addresses: tuple[Address, ...] = ()
    routes: tuple[KernelRoute, ...] = ()
    neighbours: tuple[KernelNeighbour, ...] = ()
    fdb: tuple[KernelFdbEntry, ...] = ()
    vxlan: KernelVxlan | None = None
    loose: bool = False


@dataclass(frozen=True, slots=True)
class KernelState:
    """What the kernel has to hold, device by device: node port, kernel VXLAN devices, underlay devices. No prefix is
    routed twice, on whatever device."""

    devices: tuple[KernelDevice, ...] = ()


@dataclass(frozen=True, slots=True)
class ExtensionPeer:
    """A peer of the extension backend: what its commands are told. `data` is what the peer's PreStartupCommand
    printed: hostile until proven otherwise, it may reach a command on standard input only."""

    key: str
    subnet: IPv4Network | None
    ipv6_subnet: IPv6Network | None
    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None
    data: str
