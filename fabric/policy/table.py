"""The last pass: every address with its entry, and every entry with its stages, as one snapshot."""

from __future__ import annotations

from fabric.policy.addresses import EntryTable, Layer, overlay, pack
from fabric.policy.endpoints import Endpoints
from fabric.policy.errors import PolicyError
from fabric.policy.groups import Group
from fabric.policy.judge import PolicySnapshot, Stage
from fabric.policy.model import Pod
from fabric.policy.population import Population
from fabric.policy.rules import POLICY_EGRESS, POLICY_INGRESS

Places = tuple[int, int, int, int]
MAX_SET_WORDS = 8_000_000
"""Set numbers over all distinct entries (32 MB)."""


class StageList:
    """The stages of all entries in one list; the same sequence is there once."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.places: dict[tuple[int, ...], int] = {}

    def place(self, sequence: tuple[Stage, ...]) -> int:
        key = tuple(map(id, sequence))
        if key not in self.places:
            self.places[key] = len(self.stages)
            self.stages.extend(sequence)
        return self.places[key]


def lay_out(number: int, population: Population, endpoints: Endpoints) -> PolicySnapshot:
    endpoints.begin()
    stages, places = StageList(), {}
    for key, pod in population.pods.items():
        if not pod.host_network and population.local(pod):
            places[key] = _places(pod, population.group_of[key], endpoints, stages)
    endpoints.finish()
    table = EntryTable()
    points: dict[int, dict[int, int]] = {4: {}, 6: {}}
    layers = {
        family: Layer({n: found[family] for n, found in endpoints.spreads.items() if family in found}, family)
        for family in (4, 6)
    }
    for family, address, node in population.node_addresses():
        who = (0, population.node_number(node), 1)
        points[family][address] = table.entry(layers[family].at(address), who=who)
    for key, group in population.group_of.items():
        _place_pod(population, population.pods[key], group, places.get(key, {}), layers, table, points)
    if len(table.sets) > MAX_SET_WORDS:
        raise PolicyError("policies", f"make {len(table.sets)} set memberships, more than {MAX_SET_WORDS}")
    flat = [overlay(layers[family], points[family], table, family) for family in (4, 6)]
    return PolicySnapshot(number, pack(*flat[0], *flat[1], table), stages.stages, endpoints.numbers)


def _places(pod: Pod, group: Group, endpoints: Endpoints, stages: StageList) -> dict[int, Places]:
    """By address: where the stages of both directions are, and how many."""
    found = {}
    for address in pod.addresses:
        number = int(address)
        ingress = endpoints.stages_of(group, POLICY_INGRESS, address.version, number)
        egress = endpoints.stages_of(group, POLICY_EGRESS, address.version, number)
        found[number] = (stages.place(ingress), stages.place(egress), len(ingress), len(egress))
    return found


def _place_pod(
    population: Population,
    pod: Pod,
    group: Group,
    places: dict[int, Places],
    layers: dict[int, Layer],
    table: EntryTable,
    points: dict[int, dict[int, int]],
) -> None:
    who = (population.owners[pod.key], population.node_number(pod.node), 0)
    for address in pod.addresses:
        number = int(address)
        sets = tuple(sorted(group.sets.union(layers[address.version].at(number))))
        points[address.version][number] = table.entry(sets, places.get(number, (0, 0, 0, 0)), who)
