"""An evaluator that reads the objects themselves, rule by rule, as the API texts say it: slow and plain, for
comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address as parse_address
from ipaddress import ip_network as parse_network
from typing import Any

from fabric.policy import Namespace, Node, Pod

Object = Mapping[str, Any]
ip_address, ip_network = lru_cache(1_024)(parse_address), lru_cache(1_024)(parse_network)


def labels_match(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if key not in labels or labels[key] != value:
            return False
    for item in selector.get("matchExpressions", []):
        key, operator, values = item["key"], item["operator"], item.get("values", [])
        if operator == "In" and not (key in labels and labels[key] in values):
            return False
        if operator == "NotIn" and key in labels and labels[key] in values:
            return False
        if operator == "Exists" and key not in labels:
            return False
        if operator == "DoesNotExist" and key in labels:
            return False
    return True


def choice(policy: Object) -> str:
    return str(policy["metadata"].get("annotations", {}).get("podfabric.io/established", "re-evaluate"))


class Naive:
    def __init__(
        self, objects: Iterable[Object], pods: Iterable[Pod], namespaces: Iterable[Namespace], nodes: Iterable[Node]
    ) -> None:
        everything = list(objects)
        self.policies = [o for o in everything if o["kind"] == "NetworkPolicy"]
        self.cluster = [o for o in everything if o["kind"] == "ClusterNetworkPolicy"]
        self.cluster.sort(key=lambda o: (o["spec"]["priority"], o["metadata"]["name"]))
        self.nodes = list(nodes)
        self.pods = {address: pod for pod in pods if not pod.host_network for address in pod.addresses}
        self.namespaces = {n.name: {**n.labels, "kubernetes.io/metadata.name": n.name} for n in namespaces}

    def allowed(self, src: str, dst: str, protocol: str, port: int | None) -> bool:
        return self.fate(src, dst, protocol, port) == ""

    def fate(self, src: str, dst: str, protocol: str, port: int | None) -> str:
        """Empty where a flow may begin, else what the end that refuses it chooses for one that has begun before."""
        source, target = self.pods.get(ip_address(src)), self.pods.get(ip_address(dst))
        if source is not None and source is target:
            return ""
        out = into = ""
        if source is not None:
            out = self.direction(source, "egress", "to", dst, protocol, port, target)
        own = target and any(node.name == target.node and ip_address(src) in node.addresses for node in self.nodes)
        if target is not None and not own:
            into = self.direction(target, "ingress", "from", src, protocol, port, target)
        return (into or out) if out == "keep" else (out or into)

    def direction(
        self, pod: Pod, direction: str, side: str, other: str, protocol: str, port: int | None, target: Pod | None
    ) -> str:
        for stage in (self.admin, self.namespaced, self.baseline):
            verdict = stage(pod, direction, side, other, protocol, port, target)
            if verdict is not None:
                return verdict
        return ""

    def admin(self, *question: Any) -> str | None:
        return self.tier("Admin", *question)

    def baseline(self, *question: Any) -> str | None:
        return self.tier("Baseline", *question)

    def tier(self, tier: str, pod: Pod, direction: str, side: str, other: str, protocol: str, port: int | None,
             target: Pod | None) -> str | None:  # fmt: skip
        for policy in self.cluster:
            spec = policy["spec"]
            if spec["tier"] != tier or not self.cluster_selects(spec["subject"], pod):
                continue
            for rule in spec.get(direction, []):
                peers = any(self.cluster_peer(peer, other) for peer in rule[side])
                traffic = not rule.get("protocols") or any(
                    cluster_protocol(p, protocol, port, target) for p in rule["protocols"]
                )
                if peers and traffic:
                    return {"Accept": "", "Deny": choice(policy), "Pass": None}[rule["action"]]
        return None

    def cluster_selects(self, subject: Object, pod: Pod) -> bool:
        labels = self.namespaces[pod.namespace]
        if "namespaces" in subject:
            return labels_match(subject["namespaces"], labels)
        both = subject["pods"]
        return labels_match(both["namespaceSelector"], labels) and labels_match(both["podSelector"], pod.labels)

    def cluster_peer(self, peer: Object, other: str) -> bool:
        address = ip_address(other)
        if "networks" in peer:
            return any(address in ip_network(net) for net in peer["networks"])
        if "nodes" in peer:
            return any(address in node.addresses and labels_match(peer["nodes"], node.labels) for node in self.nodes)
        return address in self.pods and self.cluster_selects(peer, self.pods[address])

    def namespaced(self, pod: Pod, direction: str, side: str, other: str, protocol: str, port: int | None,
                   target: Pod | None) -> str | None:  # fmt: skip
        """Kubernetes' allow rules: a union, and no other kind of policy is in this tier."""
        isolating = set()
        for policy in self.policies:
            spec = policy["spec"]
            selected = labels_match(spec.get("podSelector", {}), pod.labels)
            if policy["metadata"]["namespace"] != pod.namespace or not selected:
                continue
            types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
            if direction.capitalize() not in types:
                continue
            isolating.add(choice(policy))
            for rule in spec.get(direction) or []:
                if self.rule_allows(rule, side, pod.namespace, other, protocol, port, target):
                    return ""
        if "reset" in isolating:
            return "reset"
        return "keep" if isolating == {"keep"} else "re-evaluate" if isolating else None

    def rule_allows(self, rule: Object, side: str, namespace: str, other: str, protocol: str, port: int | None,
                    target: Pod | None) -> bool:  # fmt: skip
        if rule.get("ports") and not any(port_matches(p, protocol, port, target) for p in rule["ports"]):
            return False
        return not rule.get(side) or any(self.peer_matches(peer, namespace, other) for peer in rule[side])

    def peer_matches(self, peer: Object, namespace: str, other: str) -> bool:
        address = ip_address(other)
        if "ipBlock" in peer:
            block = peer["ipBlock"]
            excepted = any(address in ip_network(e) for e in block.get("except", []))
            return address in ip_network(block["cidr"]) and not excepted
        pod = self.pods.get(address)
        if pod is None or not labels_match(peer.get("podSelector", {}), pod.labels):
            return False
        if "namespaceSelector" in peer:
            return labels_match(peer["namespaceSelector"], self.namespaces[pod.namespace])
        return pod.namespace == namespace


def numbered(name: str, protocol: str | None, target: Pod | None) -> Iterator[tuple[str, int]]:
    """(protocol, number) of the target's port of this name."""
    if target is not None and name in target.ports and protocol in (None, target.ports[name][0]):
        yield target.ports[name]


def port_matches(item: Object, protocol: str, port: int | None, target: Pod | None) -> bool:
    wanted = item.get("protocol", "TCP")
    if wanted != protocol:
        return False
    value = item.get("port")
    if value is None:
        return True
    if isinstance(value, str):
        return (protocol, port) in numbered(value, wanted, target)
    return value <= (port or 0) <= item.get("endPort", value)


def cluster_protocol(item: Object, protocol: str, port: int | None, target: Pod | None) -> bool:
    if "destinationNamedPort" in item:
        return (protocol, port) in numbered(item["destinationNamedPort"], None, target)
    (kind, inner), = item.items()
    if kind.upper() != protocol:
        return False
    if "destinationPort" not in inner:
        return True
    given = inner["destinationPort"]
    if "number" in given:
        return bool(given["number"] == port)
    return bool(given["range"]["start"] <= (port or 0) <= given["range"]["end"])
