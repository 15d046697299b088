"""From what has changed to the next snapshot: groups to their stages, addresses to entries, all to flat arrays."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from fabric.policy.addresses import NO_STAGES, Entries, Layer, Points, Stages, starts_columns
from fabric.policy.endpoints import Endpoints, Sequence
from fabric.policy.errors import PolicyError
from fabric.policy.groups import Group, GroupKey
from fabric.policy.judge import PolicySnapshot, Stage
from fabric.policy.pool import Pool
from fabric.policy.population import Place, PodKey, Population
from fabric.policy.rules import POLICY_EGRESS, POLICY_INGRESS

FAMILIES = (4, 6)
MAX_SET_WORDS = 8_000_000
"""Set numbers over all distinct entries (32 MB)."""
MAX_HOLES = 100_000
"""Unused words of sets, beyond those in use, before the table is laid out anew."""


@dataclass(frozen=True, slots=True)
class Held:
    """Stages that a group uses, and where they are in the list of all."""

    ingress: Sequence
    egress: Sequence
    stages: Stages


class StageList:
    """The stages of all groups in one list; groups hold theirs, all (None) or by address where Calico's rules ask."""

    def __init__(self, population: Population, endpoints: Endpoints) -> None:
        self.population = population
        self.endpoints = endpoints
        self.pool: Pool[Stage] = Pool([])
        self.held: dict[GroupKey, dict[Place | None, Held]] = {}

    def clear(self) -> None:
        for key in list(self.held):
            self._drop(self.held.pop(key))
        self.pool = Pool([])

    def refresh(self, key: GroupKey) -> bool:
        """Work out the stages of a group anew; whether they are others now. Raises PolicyError; the old ones stay.

        The new ones are taken before the old ones, often the same, are dropped: so those keep their places.
        """
        group = self.population.groups.get(key)
        found: dict[Place | None, Held] = {}
        try:
            if group is not None and group.local:
                at: list[Place | None] = list(places(self.population, group)) if self._by_address(group) else [None]
                for place in at:
                    found[place] = self._take(group, place or (4, 0))
        except BaseException:
            self._drop(found)
            raise
        old = self.held.pop(key, {})
        if found:
            self.held[key] = found
        self._drop(old)
        return {place: held.stages for place, held in old.items()} != {p: h.stages for p, h in found.items()}

    def of(self, key: GroupKey, place: Place) -> Stages:
        held = self.held[key]
        return (held.get(place) or held[None]).stages

    def misses(self, group: Group, place: Place) -> bool:
        """Whether a pod that has come or gone at `place` makes `refresh` necessary."""
        held = self.held.get(group.key)
        if not group.local:
            return held is not None
        return held is None or (None not in held and place not in held)

    def asking_addresses(self) -> list[GroupKey]:
        """The groups whose stages hang on the sets that their addresses are in."""
        groups = self.population.groups
        return [key for key in self.held if key in groups and self._by_address(groups[key])]

    def _by_address(self, group: Group) -> bool:
        return self.endpoints.picky(group)

    def _take(self, group: Group, place: Place) -> Held:
        ingress = self.endpoints.stages_of(group, POLICY_INGRESS, *place)
        try:
            egress = self.endpoints.stages_of(group, POLICY_EGRESS, *place)
        except BaseException:
            self.endpoints.drop(ingress)
            raise
        first = self.pool.take(tuple(cached.stage for cached in ingress))
        second = self.pool.take(tuple(cached.stage for cached in egress))
        return Held(ingress, egress, (first, second, len(ingress), len(egress)))

    def _drop(self, held: dict[Place | None, Held]) -> None:
        for item in held.values():
            for sequence in (item.ingress, item.egress):
                self.pool.release(tuple(cached.stage for cached in sequence))
                self.endpoints.drop(sequence)


class Table:
    """`snapshot` writes what has changed since the last one. After a PolicyError the next one starts from nothing."""

    def __init__(self, population: Population, endpoints: Endpoints) -> None:
        self.population = population
        self.endpoints = endpoints
        self.stages = StageList(population, endpoints)
        self.start_over()

    def start_over(self) -> None:
        self.stages.clear()
        self.entries = Entries()
        self.points = {family: Points(family) for family in FAMILIES}
        self.layers = {family: Layer({}, family) for family in FAMILIES}
        self.layer_slots: dict[int, list[int]] = {family: [] for family in FAMILIES}
        self.packed: tuple[bytes, ...] = ()
        claims, membership = self.population.claims, self.endpoints.membership
        claims.touched.update(claims.pods, claims.nodes)
        membership.restaged.update(self.population.groups)
        membership.respread = True

    def snapshot(self, number: int) -> PolicySnapshot:
        """Raises PolicyError where a limit is passed."""
        sets = self.entries.sets
        if sets.free > MAX_HOLES + sets.live:
            self.start_over()
        try:
            touched = self._restage()
            touched |= self._lay()
            touched |= self.population.claims.touched
            self._write(touched)
            if self.entries.sets.live > MAX_SET_WORDS:
                raise PolicyError("policies", f"make more than {MAX_SET_WORDS} set memberships")
        except BaseException:
            self.start_over()
            raise
        self.population.claims.touched.clear()
        if touched or not self.packed:
            self.packed = self._pack()
        return PolicySnapshot(number, self.packed, list(self.stages.pool.items), self.endpoints.numbers)

    def _restage(self) -> set[Place]:
        """Work out the tiers of groups that may have others, and say which addresses are to be written for that."""
        endpoints, membership, population = self.endpoints, self.endpoints.membership, self.population
        endpoints.refresh()
        wanted = {*membership.restaged, *(key for key in self.stages.held if key not in population.groups)}
        if membership.regrouped or membership.respread:
            wanted.update(self.stages.asking_addresses())
        for place in population.claims.touched:
            pod = population.claims.pod_at(place)
            if pod is not None and self.stages.misses(population.group_of[pod], place):
                wanted.add(population.group_of[pod].key)
        changed = {key for key in wanted if self.stages.refresh(key)}
        membership.refresh()  # rules of new stages name new sets
        changed |= membership.regrouped
        membership.restaged.clear()
        membership.regrouped.clear()
        groups = population.groups
        return {place for key in changed if key in groups for place in places(population, groups[key])}

    def _lay(self) -> set[Place]:
        """New layers where ranges are others, and the points that stand where they differ."""
        membership = self.endpoints.membership
        if not membership.respread:
            return set()
        touched: set[Place] = set()
        for family in FAMILIES:
            layer = Layer({n: found[family] for n, found in membership.spreads.items() if family in found}, family)
            ranges = layer.differences(self.layers[family])
            touched.update((family, address) for address in self.points[family].within(ranges))
            for slot in self.layer_slots[family]:
                self.entries.remove(slot)
            self.layer_slots[family] = [self.entries.add() for _ in layer.starts]
            for slot, sets in zip(self.layer_slots[family], layer.sets, strict=True):
                self.entries.write(slot, sets)
            self.layers[family] = layer
        membership.respread = False
        self.packed = ()
        return touched

    def _write(self, touched: set[Place]) -> None:
        """Entries of these addresses: of the pod that has it, or the node."""
        claims = self.population.claims
        added: dict[int, dict[int, int]] = {family: {} for family in FAMILIES}
        removed: dict[int, list[int]] = {family: [] for family in FAMILIES}
        for place in touched:
            family, address = place
            pod, node = claims.pod_at(place), claims.node_at(place)
            slot = self.points[family].slots.get(address)
            if pod is None and node is None:
                if slot is not None:
                    self.entries.remove(slot)
                    removed[family].append(address)
                continue
            if slot is None:
                slot = added[family][address] = self.entries.add()
            if pod is not None:
                self._write_pod(slot, place, pod)
            else:
                who = (0, self.population.node_number(node or ""), 1)
                self.entries.write(slot, self.layers[family].at(address), who=who)
        for family in FAMILIES:
            self.points[family].put(added[family], removed[family])

    def _write_pod(self, slot: int, place: Place, key: PodKey) -> None:
        population = self.population
        pod, group = population.pods[key], population.group_of[key]
        sets = tuple(sorted(group.sets.union(self.layers[place[0]].at(place[1]))))
        stages = self.stages.of(group.key, place) if population.local(pod) else NO_STAGES
        self.entries.write(slot, sets, stages, (population.owners[key], population.node_number(pod.node), 0))

    def _pack(self) -> tuple[bytes, ...]:
        """What `PolicySnapshot` takes: the layer, entries and their sets, the points."""
        layer: list[bytes] = []
        for family in FAMILIES:
            columns = starts_columns(family, self.layers[family].starts)
            layer += [*(column.tobytes() for column in columns), array("I", self.layer_slots[family]).tobytes()]
        sets = self.entries.sets.items
        assert isinstance(sets, array)
        points = [*self.points[4].pack(), *self.points[6].pack()]
        return (*layer, self.entries.words.tobytes(), sets.tobytes(), *points)


def places(population: Population, group: Group) -> list[Place]:
    """The addresses of a group's pods."""
    return [(a.version, int(a)) for pod in group.pods for a in population.pods[pod].addresses]
