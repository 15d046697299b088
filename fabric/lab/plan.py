"""What a lab consists of: names, underlay addresses and options. Pure values, no system calls."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any, Literal

from fabric.errors import FabricError

PREFIX = "fablab-"
UNDERLAY = PREFIX + "underlay"
UNDERLAY_BRIDGE = "underlay"
UNDERLAY_MTU = 1500
GATEWAY = IPv4Address("192.0.2.1")
GATEWAY6 = IPv6Address("2001:db8:0:1::1")
FIRST_NODE = 10
MAX_NODES = 200
MAX_PODS = 200
NETWORK = "10.244.0.0/16"
IPV6_NETWORK = "2001:db8:42::/56"

Mode = Literal["wire", "veth", "bare"]
PodKind = Literal["tun", "veth", "bridge"]
PodKinds = Literal["tun", "veth", "bridge", "mixed"]
Kind = Literal["fabric", "kernel"]
MODES: tuple[Mode, ...] = ("wire", "veth", "bare")
POD_KINDS: tuple[PodKinds, ...] = ("tun", "veth", "bridge", "mixed")


class LabError(FabricError):
    """Something the user can act on; the text is the one line to show."""


@dataclass(slots=True)
class Pod:
    """A pod: a namespace behind a node. `ips` are plain addresses, IPv4 first; `kind` is that of its interface.

    `identity` is what the runtime says of it, `namespace/name`; empty: its name in namespace `default`.
    """

    name: str
    netns: str
    node: str
    kind: PodKind
    ips: list[str] = field(default_factory=list)
    identity: str = ""

    @property
    def ip(self) -> str:
        """The first address (IPv4 unless the lab has none)."""
        return self.ips[0]


@dataclass(slots=True)
class Node:
    """A node: a namespace with `eth0` on the underlay.

    `subnet` and `subnet6` are the pod subnets as prefixes, `mtu` is that of pods; they are empty until the node's
    lease is known.
    """

    name: str
    kind: Kind
    netns: str
    underlay_ip: str
    underlay_ip6: str
    subnet: str = ""
    subnet6: str = ""
    mtu: int = 0
    pods: list[Pod] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Options:
    """How a lab is made.

    `kernel_peer` makes the last node a kernel VXLAN node, `fabric="kernel"` every node. `pod_kind` is the CNI plugin's
    kind for pods of fabric nodes; mixed means bridge for odd and TUN for even pods. `net_conf` are further keys of
    net-conf.json, `daemon_args` further arguments of every fabricd. Without `reserve` the daemons choose their subnets
    themselves.
    """

    nodes: int = 2
    pods: int = 2
    mode: Mode = "wire"
    kernel_peer: bool = False
    pod_kind: PodKinds = "tun"
    ipv6: bool = False
    fabric: Kind = "fabric"
    net_conf: dict[str, Any] = field(default_factory=dict)
    daemon_args: tuple[str, ...] = ()
    reserve: bool = True

    def check(self) -> None:
        """Raises LabError for what cannot be built."""
        if not 1 <= self.nodes <= MAX_NODES:
            raise LabError(f"--nodes must be 1 to {MAX_NODES}, not {self.nodes}")
        if not 0 <= self.pods <= MAX_PODS:
            raise LabError(f"--pods must be 0 to {MAX_PODS}, not {self.pods}")
        if self.mode not in MODES:
            raise LabError(f"--mode must be one of {', '.join(MODES)}, not {self.mode}")
        if self.pod_kind not in POD_KINDS:
            raise LabError(f"--pod-kind must be one of {', '.join(POD_KINDS)}, not {self.pod_kind}")
        if self.kernel_peer and self.nodes < 2:
            raise LabError("--peer kernel needs at least two nodes")


def pod_kind(options: Options, kind: Kind, number: int) -> PodKind:
    """The kind of the `number`th pod (from 1) of a node; on a kernel node flannel's, which has no daemon."""
    if kind == "kernel":
        return "bridge"
    if options.pod_kind == "mixed":
        return "tun" if number % 2 == 0 else "bridge"
    return options.pod_kind


def plan_nodes(options: Options) -> list[Node]:
    """Nodes and pods with their names and underlay addresses; subnets and pod addresses come later."""
    nodes: list[Node] = []
    for i in range(1, options.nodes + 1):
        name = f"node{i}"
        kernel = options.fabric == "kernel" or (options.kernel_peer and i == options.nodes)
        kind: Kind = "kernel" if kernel else "fabric"
        node = Node(
            name, kind, PREFIX + name, str(IPv4Address("192.0.2.0") + FIRST_NODE + i), f"2001:db8:0:1::{FIRST_NODE + i}"
        )
        for k in range(1, options.pods + 1):
            node.pods.append(plan_pod(node, k, pod_kind(options, kind, k)))
        nodes.append(node)
    return nodes


def plan_pod(node: Node, number: int, kind: PodKind) -> Pod:
    """The `number`th pod of a node, without addresses."""
    name = f"{node.name}-pod{number}"
    return Pod(name, PREFIX + name, node.name, kind)


def address_pods(node: Node) -> None:
    """Pod i of a node asks for host number 1 + i of each of its subnets; number 1 is the gateway."""
    for i, pod in enumerate(node.pods, 1):
        pod.ips = []
        if node.subnet:
            pod.ips.append(str(IPv4Interface(node.subnet).network.network_address + 1 + i))
        if node.subnet6:
            pod.ips.append(str(IPv6Interface(node.subnet6).network.network_address + 1 + i))


def net_conf(options: Options) -> dict[str, Any]:
    """The cluster's net-conf.json for these options; keys in `options.net_conf` win."""
    conf: dict[str, Any] = {"Network": NETWORK, "Backend": {"Type": "vxlan"}}
    if options.ipv6:
        conf |= {"EnableIPv6": True, "IPv6Network": IPV6_NETWORK}
    return conf | options.net_conf


def nodes_from_json(data: list[dict[str, Any]]) -> list[Node]:
    """The nodes as `nodes_to_json` wrote them."""
    return [Node(**{**node, "pods": [Pod(**pod) for pod in node["pods"]]}) for node in data]


def nodes_to_json(nodes: list[Node]) -> list[dict[str, Any]]:
    """Plain data of all nodes, for the state file."""
    return [asdict(node) for node in nodes]


def status(nodes: list[Node]) -> dict[str, Any]:
    """The contract's `lab status --json` object."""
    return {
        "nodes": [
            {
                "name": node.name,
                "kind": node.kind,
                "netns": node.netns,
                "underlay_ip": node.underlay_ip,
                "subnet": node.subnet,
                "pods": [{"name": pod.name, "netns": pod.netns, "ips": pod.ips} for pod in node.pods],
            }
            for node in nodes
        ]
    }
