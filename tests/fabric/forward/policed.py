"""Two nodes whose workers judge, and policies written as briefly as they are said.

    with Cluster(fabric) as cluster:
        cluster.apply(policy("b", ingress=[allow("a", "TCP", 80)]))
        assert cluster.send("a", "b", tcp(80)) == PASSED

Pods: `a` and `b` on node 1, `c` on node 2, each with the label `pod` of its name; `bridged` has an address of node 1
and no port, as a pod behind a bridge of the host. Others: `node1`, `outside`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.sctp import SCTP
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from fabric.forward.enforcement import Enforcement, RuleHits
from fabric.forward.flow_probe import FlowProbe
from fabric.forward.flows import FlowTable
from fabric.forward.snapshot import Snapshot
from fabric.model import ForwardingState, LocalVtep
from fabric.policy import Cluster as Policies
from fabric.policy import Namespace, Pod, PolicySnapshot
from fabric.policy import Node as PolicyNode
from fabric.policy.parse import object_key
from tests.fabric.forward.harness import Fabric, HarnessPort, Node, address4, address6, wait_for
from tests.fuzz.seeds import NullPort
from tun.port import Frame

PASSED = "passed"
PLACES = {"a": (1, 10), "b": (1, 11), "c": (2, 10), "bridged": (1, 20), "node1": (1, 0)}
OUTSIDE = {4: "192.0.2.9", 6: "2001:db8:ffff::9"}
SERVICE = {4: "10.96.0.1", 6: "2001:db8:96::1"}
SERVICE_NETWORKS = (ip_network("10.96.0.0/16"), ip_network("2001:db8:96::/112"))
HOMES = {"a": "node1", "b": "node1", "bridged": "node1", "c": "node2"}
Object = Mapping[str, Any]
Make = Callable[[bool], Scapy]
"""The transport part of a packet; of the answer to it when True."""


def address(name: str, family: int) -> str:
    if name in ("outside", "service"):
        return (OUTSIDE if name == "outside" else SERVICE)[family]
    return address4(*PLACES[name]) if family == 4 else address6(*PLACES[name])


# --- packets ---


def tcp(port: int, sport: int = 4000, flags: str = "S", answer_flags: str = "SA") -> Make:
    def make(answer: bool) -> Scapy:
        ports = (port, sport) if answer else (sport, port)
        return TCP(sport=ports[0], dport=ports[1], flags=answer_flags if answer else flags)

    return make


def udp(port: int, sport: int = 4000, size: int = 32) -> Make:
    def make(answer: bool) -> Scapy:
        ports = (port, sport) if answer else (sport, port)
        return UDP(sport=ports[0], dport=ports[1]) / Raw(bytes(size))

    return make


def sctp(port: int, sport: int = 4000) -> Make:
    def make(answer: bool) -> Scapy:
        ports = (port, sport) if answer else (sport, port)
        return SCTP(sport=ports[0], dport=ports[1]) / Raw(bytes(8))

    return make


def ping(identifier: int = 9, family: int = 4) -> Make:
    if family == 4:
        return lambda answer: ICMP(type=0 if answer else 8, id=identifier)
    return lambda answer: ICMPv6EchoReply(id=identifier) if answer else ICMPv6EchoRequest(id=identifier)


def packet(source: str, destination: str, make: Make, family: int = 4, *, answer: bool = False) -> bytes:
    """From `source` to `destination`, also when it is an answer."""
    layer = IP if family == 4 else IPv6
    return bytes(layer(src=address(source, family), dst=address(destination, family)) / make(answer))


# --- policies ---


def pods(*names: str) -> dict[str, Any]:
    return {"podSelector": {"matchExpressions": [{"key": "pod", "operator": "In", "values": list(names)}]}}


def block(cidr: str) -> dict[str, Any]:
    return {"ipBlock": {"cidr": cidr}}


def allow(peers: str | Sequence[Mapping[str, Any]] = (), protocol: str = "", port: int | None = None) -> dict[str, Any]:
    """A rule, for "from" or "to"; without peers about everybody."""
    rule: dict[str, Any] = {"peers": [pods(*peers.split())] if isinstance(peers, str) else list(peers)}
    if protocol:
        rule["ports"] = [{"protocol": protocol, **({} if port is None else {"port": port})}]
    return rule


def policy(
    subject: str,
    *,
    ingress: Sequence[Object] | None = None,
    egress: Sequence[Object] | None = None,
    name: str = "",
    established: str = "",
    staged: bool = False,
) -> Object:
    """A NetworkPolicy that selects the pod `subject`; a direction that is given is isolated."""
    spec: dict[str, Any] = {**pods(subject), "policyTypes": []}
    for kind, side, rules in (("ingress", "from", ingress), ("egress", "to", egress)):
        if rules is not None:
            spec["policyTypes"].append(kind.capitalize())
            spec[kind] = [
                {**{key: value for key, value in rule.items() if key != "peers"}, side: rule["peers"]} for rule in rules
            ]
    metadata: dict[str, Any] = {"name": name or f"for-{subject}", "namespace": "default"}
    metadata["annotations"] = {"podfabric.io/established": established} if established else {}
    if staged:
        metadata["annotations"]["podfabric.io/staged"] = "true"
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def compile_for(
    node: str, policies: Sequence[Object], known: Sequence[str] = tuple(HOMES), homes: Mapping[str, str] = HOMES
) -> PolicySnapshot:
    """What `node` judges by when these pods are known, at home on these nodes."""
    return world_for(node, policies, known, homes).snapshot()


def world_for(
    node: str, policies: Sequence[Object], known: Sequence[str] = tuple(HOMES), homes: Mapping[str, str] = HOMES
) -> Policies:
    """The same before it is compiled."""
    world = Policies(lambda pod: pod.node == node)
    world.set_namespace(Namespace("default"))
    for number in (1, 2):
        world.set_node(PolicyNode(f"node{number}", {}, (ip_address(f"127.0.0.{number}"),)))
    for name in known:
        addresses = (ip_address(address(name, 4)), ip_address(address(name, 6)))
        world.set_pod(Pod("default", name, {"pod": name}, addresses, homes[name]))
    for item in policies:
        result = world.apply(object_key(item), item)
        assert result.error is None, result.error
    return world


@dataclass
class Cluster:
    fabric: Fabric
    services: Sequence[Any] = ()
    required: bool = False
    flows: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        self.one: Node = self.fabric.add_node(1, **self.flows)
        self.two: Node = self.fabric.add_node(2)
        self.ports: dict[str, HarnessPort] = {
            "a": self.one.add_pod(10), "b": self.one.add_pod(11), "c": self.two.add_pod(10)
        }  # fmt: skip
        self.hits = RuleHits()
        self.snapshot: PolicySnapshot | None = None
        self.fabric.publish()
        self.put(None, None)

    def apply(self, *policies: Object, known: Sequence[str] = tuple(HOMES)) -> None:
        self.put(compile_for("node1", policies, known), compile_for("node2", policies, known))

    def put(self, one: PolicySnapshot | None, two: PolicySnapshot | None) -> None:
        """Let both nodes judge by these; established flows are judged again."""
        self.number += 1
        self.snapshot = one
        for node, snapshot in ((self.one, one), (self.two, two)):
            if snapshot is not None:
                self.hits.reserve(snapshot.names.next)
            node.enforcement = Enforcement(self.number, snapshot, self.required, self.services, self.hits)
            node.publish()

    def port(self, name: str) -> HarnessPort:
        return self.ports.get(name, self.one.host)

    def send(
        self, source: str, destination: str, make: Make, family: int = 4, *, answer: bool = False, by: str = "",
        to: str = "",
    ) -> str:
        """One packet: PASSED when `destination` (or the port of `to`) got it, else the drop reason."""
        raw = packet(source, destination, make, family, answer=answer)
        return self.give(raw, by or source, to or destination)

    def give(self, raw: bytes, by: str, to: str) -> str:
        before = self.drops()
        self.port(by).peer.inject(raw)
        target = self.port(to)
        arrived: list[Frame] = []

        def known() -> str | None:
            frame = target.peer.take()
            if frame is not None:
                arrived.append(frame)
                return PASSED
            after = self.drops()
            return next((name for name, count in after.items() if count != before.get(name, 0)), None)

        return wait_for(known)

    def drops(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in (self.one, self.two):
            for name, count in node.drops().items():
                found[name] = found.get(name, 0) + count
        return found

    def exchange(self, source: str, destination: str, make: Make, family: int = 4) -> tuple[str, str]:
        """A packet and the answer to it."""
        there = self.send(source, destination, make, family)
        return there, self.send(destination, source, make, family, answer=True)


def probe_on(
    table: FlowTable, policies: Sequence[Object], packets: list[bytes], number: int = 1,
    enforcement: Enforcement | None = None,
) -> FlowProbe:
    """The flow table of node 1 with a and b, accounts 1 and 2, without worker; IPv4 only. `number`: of the rules.

    `enforcement`: in place of the policies and their number.
    """
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    ports = [NullPort(null), *(NullPort(null, 1450, (each,)) for each in (address("a", 4), address("b", 4)))]
    for name, port in zip("ab", ports[1:], strict=True):
        port.name = name
    own = LocalVtep(ip_address("127.0.0.1"), b"\x02\0\0\0\0\x01", (ip_network("10.244.1.0/24"),))
    state = ForwardingState(1, (own,), ())
    return FlowProbe(snapshot_of(state, ports, table, enforcement or enforced(policies, number)), packets)


def enforced(policies: Sequence[Object], number: int) -> Enforcement:
    """What node 1 enforces of `policies`."""
    snapshot, hits = compile_for("node1", policies), RuleHits()
    hits.reserve(snapshot.names.next)
    return Enforcement(number, snapshot, False, SERVICE_NETWORKS, hits)


def snapshot_of(
    state: ForwardingState, ports: Sequence[Any], table: FlowTable, enforcement: Enforcement, number: int = 1,
    port: int = 1,
) -> Snapshot:
    """What a worker of node 1 would have; `port` is the tunnel's."""
    return Snapshot(number, state, ports, 1, {"vxlan": port, "udp": 2}, True, table, enforcement)
