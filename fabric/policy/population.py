"""Pods by groups, namespaces and nodes, kept in step with each other, and who has which address."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from fabric.policy.groups import Group, GroupKey, group_key, make_group
from fabric.policy.model import Address, Namespace, Node, Pod

K = TypeVar("K")
PodKey = tuple[str, str]
Place = tuple[int, int]
"""Family and number of an address."""


class Claims:
    """Who says to have an address. Of several pods the one told last counts; after pods come pods in the host's
    network, then nodes, the same way.

    A claimant of a node is (node,), or (node, namespace, pod) for a pod in its network.
    """

    def __init__(self) -> None:
        self.pods: dict[Place, dict[PodKey, None]] = {}
        self.nodes: dict[Place, dict[tuple[str, ...], None]] = {}
        self.touched: set[Place] = set()

    def pod_at(self, place: Place) -> PodKey | None:
        return next(reversed(self.pods[place])) if place in self.pods else None

    def node_at(self, place: Place) -> str | None:
        claimants = list(reversed(self.nodes.get(place, ())))
        return next((c for c in claimants if len(c) > 1), claimants[0])[0] if claimants else None

    def change_pod(self, key: PodKey, before: Iterable[Address], after: Iterable[Address]) -> None:
        self._change(self.pods, key, before, after)

    def change_node(self, key: tuple[str, ...], before: Iterable[Address], after: Iterable[Address]) -> None:
        self._change(self.nodes, key, before, after)

    def _change(
        self, claims: dict[Place, dict[K, None]], key: K, before: Iterable[Address], after: Iterable[Address]
    ) -> None:
        for address in dict.fromkeys(before):
            place = address.version, int(address)
            self.touched.add(place)
            claims[place].pop(key, None)
            if not claims[place]:
                del claims[place]
        for address in after:
            place = address.version, int(address)
            self.touched.add(place)
            claims.setdefault(place, {})[key] = None


class Population:
    """`version` grows with every change that can move an address from one set to another.

    Told to whoever keeps tables up: `fresh`, groups that are new or in a namespace with new labels; `gone`, groups
    that are not there any more; `renamed`, names of ports that mean other numbers now; `claims.touched`, addresses.
    """

    def __init__(self, local: Callable[[Pod], bool]) -> None:
        self.local = local
        self.pods: dict[PodKey, Pod] = {}
        self.owners: dict[PodKey, int] = {}
        self.next_owner = 1
        self.groups: dict[GroupKey, Group] = {}
        self.groups_in: dict[str, dict[GroupKey, None]] = {}
        self.group_of: dict[PodKey, Group] = {}
        self.fresh: set[GroupKey] = set()
        self.gone: dict[GroupKey, Group] = {}
        self.renamed: set[str] = set()
        self.claims = Claims()
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
            if pod.node:
                self.claims.change_node((pod.node, *pod.key), (), pod.addresses)
            return
        self.claims.change_pod(pod.key, (), pod.addresses)
        group = self._group(group_key(pod))
        group.pods.add(pod.key)
        group.local += self.local(pod)
        self.group_of[pod.key] = group

    def _group(self, key: GroupKey) -> Group:
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = make_group(key)
            self.groups_in.setdefault(key.namespace, {})[key] = None
            self.fresh.add(key)
            self._count_ports(key, 1)
        return group

    def delete_pod(self, key: PodKey) -> None:
        pod = self.pods.pop(key, None)
        if pod is None:
            return
        self.version += 1
        del self.owners[key]
        if pod.host_network:
            if pod.node:
                self.claims.change_node((pod.node, *key), pod.addresses, ())
            return
        self.claims.change_pod(key, pod.addresses, ())
        group = self.group_of.pop(key)
        group.pods.discard(key)
        group.local -= self.local(pod)
        if not group.pods:
            self._drop_group(group.key)

    def _drop_group(self, key: GroupKey) -> None:
        group = self.groups.pop(key)
        del self.groups_in[key.namespace][key]
        if not self.groups_in[key.namespace]:
            del self.groups_in[key.namespace]
        self.fresh.discard(key)
        self.gone.setdefault(key, group)
        self._count_ports(key, -1)

    def groups_about(self, namespace: str | None) -> Iterable[GroupKey]:
        """The groups of a namespace, or (None) all."""
        return self.groups if namespace is None else self.groups_in.get(namespace, ())

    def _count_ports(self, key: GroupKey, by: int) -> None:
        for name, protocol, number in key.ports:
            known = self.named.setdefault(name, {})
            if (protocol, number) not in known:
                self.renamed.add(name)
            known[protocol, number] = known.get((protocol, number), 0) + by
            if not known[protocol, number]:
                del known[protocol, number]
                self.renamed.add(name)

    def set_namespace(self, namespace: Namespace) -> list[Group]:
        """The groups whose selectors must be asked again."""
        labels = namespace.matched_labels
        if self.namespaces.get(namespace.name) == labels:
            return []
        self.namespaces[namespace.name] = labels
        self.version += 1
        return [self.groups[key] for key in self.groups_about(namespace.name)]

    def namespace_labels(self, name: str) -> Mapping[str, str]:
        return self.namespaces.get(name) or Namespace(name).matched_labels

    def set_node(self, node: Node) -> None:
        before = self.nodes.get(node.name)
        if before != node:
            self.claims.change_node((node.name,), before.addresses if before else (), node.addresses)
            self.nodes[node.name] = node
            self.version += 1

    def delete_node(self, name: str) -> None:
        node = self.nodes.pop(name, None)
        if node is not None:
            self.claims.change_node((name,), node.addresses, ())
            self.version += 1

    def node_number(self, name: str) -> int:
        return self.node_numbers.setdefault(name, len(self.node_numbers))

    def node_addresses(self) -> Iterator[tuple[int, int, str]]:
        """(family, address, node): of nodes, and of pods in their network."""
        for (family, address), claimants in self.claims.nodes.items():
            for claimant in claimants:
                yield family, address, claimant[0]
