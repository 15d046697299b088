"""From policies to the stages of endpoints, and which sets each address is in; everything cached by what it hangs
on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from fabric.policy.groups import Group, group_matches, net_set_matches
from fabric.policy.judge import Stage
from fabric.policy.numbers import Numbers
from fabric.policy.population import Population
from fabric.policy.ranges import Range, joined
from fabric.policy.rules import (
    DEFAULT,
    EVERYWHERE,
    POLICY_EGRESS,
    POLICY_INGRESS,
    Action,
    Identity,
    NetSet,
    Peer,
    Policy,
    PortMatch,
    Rule,
    Tier,
)
from fabric.policy.sets import SetTable, Spread, by_labels, depends_on_pods, net_ranges, spread
from fabric.policy.stages import Step, build_stage, resolve_ports, traffic_ranges


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy in force: `base` is its first rule's number, `owns` the sets that its rules want this end to be in."""

    policy: Policy
    base: int
    owns: tuple[int, ...]
    names: frozenset[str]


@dataclass(slots=True)
class CachedStage:
    stage: Stage
    sets: tuple[int, ...]
    used: int


class Endpoints:
    def __init__(self, population: Population) -> None:
        self.population = population
        self.numbers = Numbers()
        self.sets = SetTable()
        self.spreads: dict[int, Spread] = {}
        self.policies: dict[str, Compiled] = {}
        self.fresh: set[str] = set()
        self.tiers: dict[str, Tier] = {"default": DEFAULT}
        self.net_sets: list[NetSet] = []
        self.stages: dict[tuple[object, ...], CachedStage] = {}
        self.spread_version = -1
        self.round = 0

    def set_policy(self, key: str, policy: Policy | None) -> None:
        old = self.policies.pop(key, None)
        if old is not None:
            self.numbers.retire(old.base)
            for number in old.owns:
                self.sets.release(number)
            for group in self.population.groups.values():
                group.policies.discard(key)
        self.fresh.discard(key)
        if policy is None:
            return
        rules = [rule for side in policy.rules for rule in side or ()]
        owns = tuple(self.sets.take(rule.own) for rule in rules)
        names = frozenset(match.name for rule in rules for match in rule.traffic.matches if match.name)
        self.policies[key] = Compiled(policy, self.numbers.allot(policy, len(rules)), owns, names)
        self.fresh.add(key)

    def set_other(self, tiers: dict[str, Tier], net_sets: list[NetSet]) -> None:
        """Tiers or network sets have changed: every set may mean other addresses now."""
        self.tiers = tiers
        if net_sets != self.net_sets:
            self.net_sets = net_sets
            self.sets.fresh.update(self.sets.uses)
            self.spread_version = -1

    def forget_groups(self, groups: Iterable[Group]) -> None:
        """Ask all selectors about these groups again."""
        self.population.fresh.update(group.key for group in groups)

    # -- who is selected, who is in which set

    def refresh_groups(self) -> None:
        """Which policies apply to which group: new groups are asked about all, new policies of all."""
        fresh = self.population.fresh
        groups = self.population.groups
        for key in list(groups if self.fresh else fresh):
            group, labels = groups[key], self.population.namespace_labels(key.namespace)
            if key in fresh:
                group.policies.clear()
            for name in self.policies if key in fresh else self.fresh:
                if group_matches(self.policies[name].policy.subject, group, labels):
                    group.policies.add(name)
        self.fresh.clear()

    def refresh_sets(self) -> None:
        """Sets by labels for new groups and new sets; ranges for new spread sets and for those that pods move in."""
        net_sets = bool(self.net_sets)
        changed = self.sets.fresh | self.sets.gone
        for number in changed:
            self.spreads.pop(number, None)
        labelled = {n: p for n, p in self.sets.peers.items() if by_labels(p, net_sets=net_sets)}
        fresh_sets = [number for number in self.sets.fresh if number in labelled]
        groups, fresh = self.population.groups, self.population.fresh
        for key in list(groups if changed else fresh):
            group = groups[key]
            if key in fresh:
                group.sets.clear()
                asked: Iterable[int] = labelled
            else:
                group.sets -= changed
                asked = fresh_sets
            group.sets.update(number for number in asked if self.selects(labelled[number], group))
        moved = self.spread_version != self.population.version
        for number, peer in self.sets.peers.items():
            if peer == EVERYWHERE or number in labelled:
                continue
            if number not in self.spreads or (moved and depends_on_pods(peer)):
                self.spreads[number] = spread(peer, self.identified, self.node_ranges)
        self.spread_version = self.population.version
        self.population.fresh.clear()
        self.sets.fresh.clear()
        self.sets.gone.clear()

    def selects(self, peer: Peer, group: Group) -> bool:
        if peer.port is not None and peer.port not in group.key.ports:
            return False
        labels = self.population.namespace_labels(group.key.namespace)
        return group_matches(peer.identity or Identity(), group, labels)

    def identified(self, identity: Identity, port: tuple[str, int, int] | None, family: int) -> list[Range]:
        """Addresses of the pods and networks of the network sets that `identity` means."""
        peer = Peer(identity, port=port)
        found: list[Range] = []
        for group in self.population.groups.values():
            if self.selects(peer, group):
                for key in group.pods:
                    numbers = (int(a) for a in self.population.pods[key].addresses if a.version == family)
                    found.extend((number, number) for number in numbers)
        if port is None:
            for item in self.net_sets:
                if net_set_matches(identity, item, self.population.namespace_labels(item.namespace)):
                    found.extend(net_ranges(item.nets, family))
        return joined(found)

    def node_ranges(self, peer: Peer, family: int) -> list[Range]:
        nodes = self.population.nodes
        wanted = {name for name, node in nodes.items() if peer.nodes is not None and peer.nodes.matches(node.labels)}
        every = self.population.node_addresses()
        return joined((a, a) for version, a, node in every if version == family and node in wanted)

    def contains(self, number: int, group: Group, family: int, address: int) -> bool:
        if not number or number in group.sets:
            return True
        return any(first <= address <= last for first, last in self.spreads.get(number, {}).get(family, ()))

    # -- stages

    def stages_of(self, group: Group, direction: int, family: int, address: int) -> tuple[Stage, ...]:
        """The tiers that judge this endpoint's flows of one direction, in order; none: everything is allowed."""
        applied = (self.policies[key] for key in group.policies)
        chosen = [item for item in applied if item.policy.rules[direction] is not None]
        chosen.sort(key=lambda c: (self.tier(c.policy).rank, c.policy.order, c.policy.title))
        found = []
        for tier, members in groupby(chosen, key=lambda c: self.tier(c.policy)):
            found.append(self.stage(tier, tuple(members), direction, group, family, address))
        return tuple(found)

    def tier(self, policy: Policy) -> Tier:
        """A tier that does not exist is the last of Calico's, and denies at its end: fail closed."""
        if isinstance(policy.tier, Tier):
            return policy.tier
        return self.tiers.get(policy.tier) or Tier((1, float("inf"), policy.tier), Action.DENY, policy.tier)

    def stage(
        self, tier: Tier, members: tuple[Compiled, ...], direction: int, group: Group, family: int, address: int
    ) -> Stage:
        names = frozenset().union(*(member.names for member in members))
        if direction == POLICY_INGRESS:
            ports: object = frozenset(port for port in group.key.ports if port[0] in names)
        else:
            ports = frozenset((name, *port) for name in names for port in self.population.named.get(name, ()))
        owns = frozenset(n for c in members for n in c.owns if self.contains(n, group, family, address))
        key = (tier, direction, tuple(member.base for member in members), ports, owns)
        cached = self.stages.get(key)
        if cached is None:
            steps = [step for member in members for step in self.steps(member, direction, group, owns)]
            label = (tier.name, tuple(member.policy.title for member in members))
            number = self.numbers.default(tier.name, direction)
            stage = build_stage(steps, tier.default, number, label)
            cached = self.stages[key] = CachedStage(stage, tuple(n for s in steps for n in s.sets), self.round)
        cached.used = self.round
        return cached.stage

    def steps(self, member: Compiled, direction: int, group: Group, owns: frozenset[int]) -> Iterator[Step]:
        policy = member.policy
        offset = len(policy.rules[POLICY_INGRESS] or ()) if direction == POLICY_EGRESS else 0
        for i, rule in enumerate(policy.rules[direction] or ()):
            if rule.action is Action.LOG or rule.traffic.sources == () or member.owns[offset + i] not in owns:
                continue
            number = member.base + offset + i
            if direction == POLICY_INGRESS:
                ports = {(name, protocol): port for name, protocol, port in group.key.ports}
                yield self.step(rule, number, rule.peers, resolve_ports(rule.traffic.matches, ports))
                continue
            yield self.step(rule, number, rule.peers, [match for match in rule.traffic.matches if not match.name])
            for match in rule.traffic.matches:
                name = match.name or ""
                for protocol, port in self.population.named.get(name, ()):
                    peers = tuple(replace(peer, port=(name, protocol, port)) for peer in rule.peers)
                    yield self.step(rule, number, peers, resolve_ports([match], {(name, protocol): port}))

    def step(self, rule: Rule, number: int, peers: tuple[Peer, ...], matches: list[PortMatch]) -> Step:
        ranges = traffic_ranges(matches, rule.traffic.excluded)
        taken = tuple(self.sets.take(peer) for peer in peers) if ranges else ()
        return Step(rule.action, number, taken, ranges, rule.traffic.sources)

    def begin(self) -> None:
        """Before the endpoints of a snapshot are asked for their stages."""
        self.round += 1
        self.refresh_groups()
        self.refresh_sets()

    def finish(self) -> None:
        """After it: stages that nobody asked for are forgotten, and new sets are worked out."""
        for key in [key for key, cached in self.stages.items() if cached.used != self.round]:
            for number in self.stages.pop(key).sets:
                self.sets.release(number)
        self.refresh_sets()
