"""Which policies apply to which pods, and which address sets pods are in, kept up by what has changed.

Everything is asked of groups (`groups`). Policies, sets and groups that name a namespace meet only those of it. What
has changed is told in `restaged` (groups whose tiers may be others now), `regrouped` (groups that are in other sets)
and `respread` (some ranges are others).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from fabric.policy.groups import Group, GroupKey, group_matches, net_set_matches
from fabric.policy.population import Population
from fabric.policy.ranges import Range, joined
from fabric.policy.rules import Identity, NetSet, Peer
from fabric.policy.sets import ALL_ADDRESSES, SetTable, Spread, by_labels, depends_on_pods, net_ranges, spread

T = TypeVar("T")


class Buckets(Generic[T]):
    """Numbers or keys by the namespace that they name; None: by none, so they are about all."""

    def __init__(self) -> None:
        self.of: dict[str | None, dict[T, None]] = {}

    def add(self, namespace: str | None, item: T) -> None:
        self.of.setdefault(namespace, {})[item] = None

    def discard(self, namespace: str | None, item: T) -> None:
        bucket = self.of.get(namespace)
        if bucket is not None:
            bucket.pop(item, None)
            if not bucket:
                del self.of[namespace]

    def about(self, namespace: str) -> Iterator[T]:
        yield from self.of.get(namespace, ())
        yield from self.of.get(None, ())


class Membership:
    def __init__(self, population: Population) -> None:
        self.population = population
        self.sets = SetTable()
        self.spreads: dict[int, Spread] = {}
        self.net_sets: list[NetSet] = []
        self.restaged: set[GroupKey] = set()
        self.regrouped: set[GroupKey] = set()
        self.respread = False
        self._subjects: dict[str, Identity] = {}
        self._subject_buckets: Buckets[str] = Buckets()
        self._fresh: set[str] = set()
        self._selected: dict[str, set[GroupKey]] = {}
        self._labelled: dict[int, Peer] = {}
        self._labelled_buckets: Buckets[int] = Buckets()
        self._ranged: dict[int, Peer] = {}
        self._within: dict[int, set[GroupKey]] = {}
        self._spread_version = -1

    # -- what is told

    def set_subject(self, key: str, subject: Identity | None) -> None:
        """Whom the policy `key` is about; None: it is gone."""
        old = self._subjects.pop(key, None)
        if old is not None:
            self._subject_buckets.discard(old.namespace, key)
            for group in self._selected.pop(key):
                self._group(group).policies.discard(key)
                self.restaged.add(group)
        self._fresh.discard(key)
        if subject is not None:
            self._subjects[key] = subject
            self._subject_buckets.add(subject.namespace, key)
            self._selected[key] = set()
            self._fresh.add(key)

    def set_net_sets(self, net_sets: list[NetSet]) -> None:
        """Every set may mean other addresses now."""
        self.net_sets = net_sets
        self.sets.fresh.update(self.sets.uses)

    def selected(self, key: str) -> Iterable[GroupKey]:
        return self._selected[key]

    def _group(self, key: GroupKey) -> Group:
        return self.population.groups.get(key) or self.population.gone[key]

    # -- taking changes over

    def refresh(self) -> None:
        """Everything told since the last time."""
        fresh = {key for key in self.population.fresh if key in self.population.groups}
        for key in [*self.population.gone, *fresh]:
            self._forget(key)
        self._refresh_policies(fresh)
        self._refresh_sets(fresh)
        self.restaged |= fresh
        self.regrouped |= fresh
        self.population.fresh.clear()
        self.population.gone.clear()

    def _forget(self, key: GroupKey) -> None:
        for group in (self.population.gone.get(key), self.population.groups.get(key)):
            if group is None:
                continue
            for name in group.policies & self._selected.keys():
                self._selected[name].discard(key)
            for number in group.sets & self._within.keys():
                self._within[number].discard(key)
            group.policies.clear()
            group.sets.clear()

    def _refresh_policies(self, fresh: set[GroupKey]) -> None:
        for key in fresh:
            for name in self._subject_buckets.about(key.namespace):
                self._select(name, key)
        for name in self._fresh:
            for key in self.population.groups_about(self._subjects[name].namespace):
                if key not in fresh:
                    self._select(name, key)
        self._fresh.clear()

    def _select(self, name: str, key: GroupKey) -> None:
        group = self.population.groups[key]
        if group_matches(self._subjects[name], group, self.population.namespace_labels(key.namespace)):
            group.policies.add(name)
            self._selected[name].add(key)
            self.restaged.add(key)

    def _refresh_sets(self, fresh: set[GroupKey]) -> None:
        """Sets by labels for new groups and new sets; ranges for new ranged sets and those that pods move in."""
        for number in self.sets.fresh | self.sets.gone:
            self._drop_set(number)
        for number in self.sets.fresh:
            self._sort_in(number)
        for key in fresh:
            for number in self._labelled_buckets.about(key.namespace):
                self._enter(number, key)
        for number in self.sets.fresh & self._labelled.keys():
            for key in self.population.groups_about(_namespace(self._labelled[number])):
                if key not in fresh:
                    self._enter(number, key)
        self.sets.fresh.clear()
        self.sets.gone.clear()
        self._refresh_ranges()

    def _drop_set(self, number: int) -> None:
        peer = self._labelled.pop(number, None)
        if peer is not None:
            self._labelled_buckets.discard(_namespace(peer), number)
        for key in self._within.pop(number, ()):
            self.population.groups[key].sets.discard(number)
            self.regrouped.add(key)
        self._ranged.pop(number, None)
        if self.spreads.pop(number, None) is not None:
            self.respread = True

    def _sort_in(self, number: int) -> None:
        peer = self.sets.peers[number]
        if by_labels(peer, net_sets=bool(self.net_sets)):
            self._labelled[number] = peer
            self._labelled_buckets.add(_namespace(peer), number)
            self._within[number] = set()
        elif number != ALL_ADDRESSES:
            self._ranged[number] = peer

    def _enter(self, number: int, key: GroupKey) -> None:
        group = self.population.groups[key]
        if self._selects(self._labelled[number], group):
            group.sets.add(number)
            self._within[number].add(key)
            self.regrouped.add(key)

    def _refresh_ranges(self) -> None:
        moved = self._spread_version != self.population.version
        for number, peer in self._ranged.items():
            if number not in self.spreads or (moved and depends_on_pods(peer)):
                found = spread(peer, self._identified, self._node_ranges)
                self.respread = self.respread or self.spreads.get(number) != found
                self.spreads[number] = found
        self._spread_version = self.population.version

    # -- who is meant

    def _selects(self, peer: Peer, group: Group) -> bool:
        if peer.port is not None and peer.port not in group.key.ports:
            return False
        labels = self.population.namespace_labels(group.key.namespace)
        return group_matches(peer.identity or Identity(), group, labels)

    def _identified(self, identity: Identity, port: tuple[str, int, int] | None, family: int) -> list[Range]:
        """Addresses of the pods and networks of the network sets that `identity` means."""
        peer = Peer(identity, port=port)
        found: list[Range] = []
        for key in self.population.groups_about(identity.namespace):
            group = self.population.groups[key]
            if self._selects(peer, group):
                for pod in group.pods:
                    numbers = (int(a) for a in self.population.pods[pod].addresses if a.version == family)
                    found.extend((number, number) for number in numbers)
        if port is None:
            for item in self.net_sets:
                if net_set_matches(identity, item, self.population.namespace_labels(item.namespace)):
                    found.extend(net_ranges(item.nets, family))
        return joined(found)

    def _node_ranges(self, peer: Peer, family: int) -> list[Range]:
        nodes = self.population.nodes
        wanted = {name for name, node in nodes.items() if peer.nodes is not None and peer.nodes.matches(node.labels)}
        every = self.population.node_addresses()
        return joined((a, a) for version, a, node in every if version == family and node in wanted)

    def contains(self, number: int, group: Group, family: int, address: int) -> bool:
        """Whether an address of this group is in the set."""
        if not number or number in group.sets:
            return True
        return any(first <= address <= last for first, last in self.spreads.get(number, {}).get(family, ()))


def _namespace(peer: Peer) -> str | None:
    return peer.identity.namespace if peer.identity is not None else None
