"""Random clusters with policies, small enough that rules meet: few labels, few ports, overlapping networks."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Any

from fabric.policy import Namespace, Node, Pod

KEYS, VALUES = ("app", "role"), ("a", "b", "")
NAMES = ("http", "dns")
PORTS = (80, 81, 443)
PROTOCOLS = ("TCP", "UDP", "SCTP")
NETS = ("10.244.0.0/16", "10.244.0.0/28", "198.51.100.0/24", "0.0.0.0/0", "2001:db8::/32", "2001:db8::/125")
EXCEPTS = {
    "10.244.0.0/16": "10.244.0.0/30", "10.244.0.0/28": "10.244.0.2/31", "198.51.100.0/24": "198.51.100.7/32",
    "0.0.0.0/0": "10.0.0.0/8", "2001:db8::/32": "2001:db8::/126", "2001:db8::/125": "2001:db8::3/128",
}  # fmt: skip
OUTSIDE = ("198.51.100.7", "198.51.100.8", "203.0.113.1", "2001:db8:1::1", "192.0.2.1", "192.0.2.2")


class World:
    """`objects`, `pods`, `namespaces`, `nodes`; `addresses` to ask about, by family.

    `host_pods`: some pods are in their node's network.
    """

    def __init__(self, seed: int, *, host_pods: bool = False) -> None:
        self.random = Random(seed)
        self.host_pods = host_pods
        r = self.random
        self.namespaces = [Namespace(name, self.labels()) for name in ("x", "y", "z")]
        self.nodes = [
            Node("n1", self.labels(), (IPv4Address("192.0.2.1"),)),
            Node("n2", self.labels(), (IPv4Address("192.0.2.2"),)),
        ]
        self.pods = [self.pod(i) for i in range(r.randint(2, 8))]
        self.objects = [self.network_policy(i) for i in range(r.randint(0, 5))]
        self.objects += [self.cluster_policy(i) for i in range(r.randint(0, 4))]
        every = [str(address) for pod in self.pods for address in pod.addresses] + list(OUTSIDE)
        self.addresses = [[a for a in every if ":" not in a], [a for a in every if ":" in a]]

    def labels(self) -> dict[str, str]:
        return {key: self.random.choice(VALUES) for key in KEYS if self.random.random() < 0.6}

    def pod(self, i: int) -> Pod:
        r = self.random
        ports = {name: (r.choice(PROTOCOLS), r.choice(PORTS)) for name in NAMES if r.random() < 0.6}
        own = (IPv4Address("10.244.0.0") + i, IPv6Address("2001:db8::") + i)
        node, host = r.choice(self.nodes), self.host_pods and r.random() < 0.1
        return Pod(r.choice("xyz"), f"p{i}", self.labels(), node.addresses if host else own, node.name, host, ports)

    def selector(self) -> dict[str, Any]:
        r = self.random
        chosen: dict[str, Any] = {}
        if r.random() < 0.4:
            chosen["matchLabels"] = {r.choice(KEYS): r.choice(VALUES)}
        if r.random() < 0.4:
            operator = r.choice(("In", "NotIn", "Exists", "DoesNotExist"))
            item: dict[str, Any] = {"key": r.choice(KEYS), "operator": operator}
            if operator in ("In", "NotIn"):
                item["values"] = r.sample(VALUES, r.randint(1, 2))
            chosen["matchExpressions"] = [item]
        return chosen

    def few(self, make: Any, low: int = 0) -> list[Any]:
        return [make() for _ in range(self.random.randint(low, 2))]

    def peer(self) -> dict[str, Any]:
        r = self.random
        if r.random() < 0.3:
            cidr = r.choice(NETS)
            return {"ipBlock": {"cidr": cidr, **({"except": [EXCEPTS[cidr]]} if r.random() < 0.5 else {})}}
        given = r.choice((("podSelector",), ("namespaceSelector",), ("podSelector", "namespaceSelector")))
        return {name: self.selector() for name in given}

    def port(self) -> dict[str, Any]:
        r = self.random
        item: dict[str, Any] = {"protocol": r.choice(PROTOCOLS)} if r.random() < 0.7 else {}
        if r.random() < 0.8:
            item["port"] = r.choice((*PORTS, *NAMES))
            if item["port"] in PORTS and r.random() < 0.3:
                item["endPort"] = item["port"] + r.randint(0, 2)
        return item

    def network_policy(self, i: int) -> dict[str, Any]:
        r = self.random
        spec: dict[str, Any] = {"podSelector": self.selector()}
        for direction, side in (("ingress", "from"), ("egress", "to")):
            if r.random() < 0.6:
                spec[direction] = self.few(lambda side=side: {side: self.few(self.peer), "ports": self.few(self.port)})
        if r.random() < 0.6:
            spec["policyTypes"] = r.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        metadata = {"name": f"np{i}", "namespace": r.choice("xyz"), **self.choice()}
        return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}

    def choice(self) -> dict[str, Any]:
        """What becomes of established flows, sometimes left open."""
        value = self.random.choice(("keep", "keep", "reset", "re-evaluate", None))
        return {} if value is None else {"annotations": {"podfabric.io/established": value}}

    def pods_peer(self) -> dict[str, Any]:
        if self.random.random() < 0.5:
            return {"namespaces": self.selector()}
        return {"pods": {"namespaceSelector": self.selector(), "podSelector": self.selector()}}

    def cluster_rule(self, side: str) -> dict[str, Any]:
        r = self.random
        outside = side == "to" and r.random() < 0.4
        make = self.pods_peer
        if outside:
            make = lambda: {"networks": r.sample(NETS, 2)} if r.random() < 0.6 else {"nodes": self.selector()}  # noqa: E731
        rule: dict[str, Any] = {"action": r.choice(("Accept", "Deny", "Pass")), side: self.few(make, 1)}
        if r.random() < 0.6:
            rule["protocols"] = self.few(lambda: self.cluster_port(named=not outside), 1)
        return rule

    def cluster_port(self, *, named: bool) -> dict[str, Any]:
        r = self.random
        if named and r.random() < 0.3:
            return {"destinationNamedPort": r.choice(NAMES)}
        port = r.choice(({"number": 80}, {"range": {"start": 80, "end": 81}}, {"number": 443}, None))
        return {r.choice(("tcp", "udp", "sctp")): {} if port is None else {"destinationPort": port}}

    def cluster_policy(self, i: int) -> dict[str, Any]:
        r = self.random
        spec: dict[str, Any] = {
            "tier": r.choice(("Admin", "Baseline")), "priority": r.randint(0, 3), "subject": self.pods_peer(),
            "ingress": self.few(lambda: self.cluster_rule("from")), "egress": self.few(lambda: self.cluster_rule("to")),
        }  # fmt: skip
        kind = {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy"}
        return {**kind, "metadata": {"name": f"cnp{i}", **self.choice()}, "spec": spec}

    def question(self) -> tuple[str, str, str, int | None]:
        r = self.random
        family = self.addresses[r.random() < 0.3]
        protocol = r.choice((*PROTOCOLS, "ICMP"))
        port = None if protocol == "ICMP" else r.choice((*PORTS, 82, 9999))
        return r.choice(family), r.choice(family), protocol, port
