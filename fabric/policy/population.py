"""Pods by groups, namespaces and nodes, kept in step with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fabric.policy.groups import Group, GroupKey, group_key, make_group
from fabric.policy.model import Namespace, Node, Pod

PodKey = tuple[str, str]


class Population:
    """`version` grows with every change that can move an address from one set to another."""

    def __init__(self, local: Callable[[Pod], bool]) -> None:
        self.local = local
        self.pods: dict[PodKey, Pod] = {}
        self.owners: dict[PodKey, int] = {}
        self.next_owner = 1
        self.groups: dict[GroupKey, Group] = {}
        self.group_of: dict[PodKey, Group] = {}
        self.fresh: set[GroupKey] = set()
        self.namespaces: dict[str, Mapping[str, str]] = {}
        self.nodes: dict[str, Node] = {}
        self.node_numbers: dict[str, int] = {"": 0}
        self.named: dict[str, dict[tuple[int, int], int]] = {}
        self.version = 0

    def set_pod(self, pod: Pod) -> None:
        if self.pods.get(pod.key) == pod:
            return
        self.delete_pod(pod.key)
        self.version += 1
        self.pods[pod.key] = pod
        self.owners[pod.key] = self.next_owner
        self.next_owner = self.next_owner % 0xFFFFFFFE + 1
        if pod.host_network:
            return
        key = group_key(pod)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = make_group(key)
            self.fresh.add(key)
            self._count_ports(key, 1)
        group.pods.add(pod.key)
        self.group_of[pod.key] = group

    def delete_pod(self, key: PodKey) -> None:
        if self.pods.pop(key, None) is None:
            return
        self.version += 1
        del self.owners[key]
        group = self.group_of.pop(key, None)
        if group is not None:
            group.pods.discard(key)
            if not group.pods:
                del self.groups[group.key]
                self.fresh.discard(group.key)
                self._count_ports(group.key, -1)

    def _count_ports(self, key: GroupKey, by: int) -> None:
        for name, protocol, number in key.ports:
            known = self.named.setdefault(name, {})
            known[protocol, number] = known.get((protocol, number), 0) + by
            if not known[protocol, number]:
                del known[protocol, number]

    def set_namespace(self, namespace: Namespace) -> list[Group]:
        """The groups whose selectors must be asked again."""
        labels = namespace.matched_labels
        if self.namespaces.get(namespace.name) == labels:
            return []
        self.namespaces[namespace.name] = labels
        self.version += 1
        return [group for group in self.groups.values() if group.key.namespace == namespace.name]

    def namespace_labels(self, name: str) -> Mapping[str, str]:
        return self.namespaces.get(name) or Namespace(name).matched_labels

    def set_node(self, node: Node) -> None:
        if self.nodes.get(node.name) != node:
            self.nodes[node.name] = node
            self.version += 1

    def delete_node(self, name: str) -> None:
        if self.nodes.pop(name, None) is not None:
            self.version += 1

    def node_number(self, name: str) -> int:
        return self.node_numbers.setdefault(name, len(self.node_numbers))

    def node_addresses(self) -> Iterator[tuple[int, int, str]]:
        """(family, address, node): of nodes, and of pods in their network."""
        for node in self.nodes.values():
            for address in node.addresses:
                yield address.version, int(address), node.name
        for pod in self.pods.values():
            if pod.host_network and pod.node:
                for address in pod.addresses:
                    yield address.version, int(address), pod.node
