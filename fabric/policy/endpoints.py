"""From policies to the stages of endpoints: compiled once for all endpoints that cannot be told apart, and kept while
one of them uses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from fabric.policy.groups import Group
from fabric.policy.judge import Stage
from fabric.policy.membership import Membership
from fabric.policy.numbers import Numbers
from fabric.policy.population import Population
from fabric.policy.rules import (
    DEFAULT,
    POLICY_EGRESS,
    POLICY_INGRESS,
    Action,
    Established,
    NetSet,
    Peer,
    Policy,
    PortMatch,
    Rule,
    Tier,
)
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
    key: tuple[object, ...]
    stage: Stage
    sets: tuple[int, ...]
    uses: int = 0


Sequence = tuple[CachedStage, ...]


class Endpoints:
    def __init__(self, population: Population) -> None:
        self.population = population
        self.membership = Membership(population)
        self.numbers = Numbers()
        self.policies: dict[str, Compiled] = {}
        self.tiers: dict[str, Tier] = {"default": DEFAULT}
        self.stages: dict[tuple[object, ...], CachedStage] = {}

    def set_policy(self, key: str, policy: Policy | None) -> None:
        """Raises PolicyError when there are too many peers; the policy before is in force then."""
        compiled = None if policy is None else self._compile(policy)
        old = self.policies.pop(key, None)
        if old is not None:
            self.numbers.retire(old.base)
            self._release(old.owns)
        if compiled is not None:
            self.policies[key] = compiled
        self.membership.set_subject(key, None if policy is None else policy.subject)

    def _compile(self, policy: Policy) -> Compiled:
        rules = [rule for side in policy.rules for rule in side or ()]
        owns = self._take(rule.own for rule in rules)
        names = frozenset(match.name for rule in rules for match in rule.traffic.matches if match.name)
        return Compiled(policy, self.numbers.allot(policy, len(rules)), owns, names)

    def _take(self, peers: Iterable[Peer]) -> tuple[int, ...]:
        """The sets of these peers, all or none of them taken."""
        taken: list[int] = []
        try:
            for peer in peers:
                taken.append(self.membership.sets.take(peer))  # noqa: PERF401 - those before a refusal are released
        except BaseException:
            self._release(taken)
            raise
        return tuple(taken)

    def _release(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.membership.sets.release(number)

    def set_other(self, tiers: dict[str, Tier], net_sets: list[NetSet]) -> None:
        """Tiers or network sets have changed."""
        if tiers != self.tiers:
            self.tiers = tiers
            self.membership.restaged.update(self.population.groups)
        if net_sets != self.membership.net_sets:
            self.membership.set_net_sets(net_sets)

    def forget_groups(self, groups: Iterable[Group]) -> None:
        """Ask all selectors about these groups again."""
        self.population.fresh.update(group.key for group in groups)

    def refresh(self) -> None:
        """Take changes over, and say which groups need their stages anew: `membership.restaged`."""
        names = self.population.renamed
        if names:
            for key, compiled in self.policies.items():
                if compiled.names & names and compiled.policy.rules[POLICY_EGRESS]:
                    self.membership.restaged.update(self.membership.selected(key))
            names.clear()
        self.membership.refresh()

    # -- stages

    def picky(self, group: Group) -> bool:
        """Whether rules of its policies are about some of its addresses only (Calico's may)."""
        return any(any(self.policies[key].owns) for key in group.policies)

    def stages_of(self, group: Group, direction: int, family: int, address: int) -> Sequence:
        """The tiers that judge this endpoint's flows of one direction, in order; none: everything is allowed.

        The caller gives each back with `drop`. Raises PolicyError, and nothing is held then.
        """
        applied = (self.policies[key] for key in group.policies)
        chosen = [item for item in applied if item.policy.rules[direction] is not None]
        chosen.sort(key=lambda c: (self.tier(c.policy).rank, c.policy.order, c.policy.title))
        found: list[CachedStage] = []
        try:
            for tier, members in groupby(chosen, key=lambda c: self.tier(c.policy)):
                found.append(self.stage(tier, tuple(members), direction, group, family, address))
        except BaseException:
            self.drop(found)
            raise
        return tuple(found)

    def drop(self, sequence: Iterable[CachedStage]) -> None:
        """One use less of each; a stage that nobody uses is forgotten with its sets."""
        for cached in sequence:
            cached.uses -= 1
            if not cached.uses:
                del self.stages[cached.key]
                self._release(cached.sets)

    def tier(self, policy: Policy) -> Tier:
        """A tier that does not exist is the last of Calico's, and denies at its end: fail closed."""
        if isinstance(policy.tier, Tier):
            return policy.tier
        return self.tiers.get(policy.tier) or Tier((1, float("inf"), policy.tier), Action.DENY, policy.tier)

    def stage(
        self, tier: Tier, members: tuple[Compiled, ...], direction: int, group: Group, family: int, address: int
    ) -> CachedStage:
        names = frozenset().union(*(member.names for member in members))
        if direction == POLICY_INGRESS:
            ports: object = frozenset(port for port in group.key.ports if port[0] in names)
        else:
            ports = frozenset((name, *port) for name in names for port in self.population.named.get(name, ()))
        contains = self.membership.contains
        owns = frozenset(n for c in members for n in c.owns if contains(n, group, family, address))
        key = (tier, direction, tuple(member.base for member in members), ports, owns)
        cached = self.stages.get(key)
        if cached is None:
            cached = self.stages[key] = self._build(key, tier, members, direction, group, owns)
        cached.uses += 1
        return cached

    def _build(
        self,
        key: tuple[object, ...],
        tier: Tier,
        members: tuple[Compiled, ...],
        direction: int,
        group: Group,
        owns: frozenset[int],
    ) -> CachedStage:
        steps: list[Step] = []
        try:
            for member in members:
                steps.extend(self.steps(member, direction, group, owns))
            label = (tier.name, tuple(member.policy.title for member in members))
            staged = [member.policy.title for member in members if member.policy.staged]
            number = self.numbers.default(tier.name, direction, staged)
            choice = choice_at_end(member.policy.established for member in members)
            return CachedStage(
                key, build_stage(steps, tier.default, number, choice, label), tuple(n for s in steps for n in s.sets)
            )
        except BaseException:
            self._release(n for step in steps for n in step.sets)
            raise

    def steps(self, member: Compiled, direction: int, group: Group, owns: frozenset[int]) -> Iterator[Step]:
        policy = member.policy
        offset = len(policy.rules[POLICY_INGRESS] or ()) if direction == POLICY_EGRESS else 0
        for i, rule in enumerate(policy.rules[direction] or ()):
            if rule.action is Action.LOG or rule.traffic.sources == () or member.owns[offset + i] not in owns:
                continue
            number = member.base + offset + i
            if direction == POLICY_INGRESS:
                ports = {(name, protocol): port for name, protocol, port in group.key.ports}
                yield self.step(policy, rule, number, rule.peers, resolve_ports(rule.traffic.matches, ports))
                continue
            unnamed = [match for match in rule.traffic.matches if not match.name]
            yield self.step(policy, rule, number, rule.peers, unnamed)
            for match in rule.traffic.matches:
                name = match.name or ""
                for protocol, port in self.population.named.get(name, ()):
                    peers = tuple(replace(peer, port=(name, protocol, port)) for peer in rule.peers)
                    yield self.step(policy, rule, number, peers, resolve_ports([match], {(name, protocol): port}))

    def step(
        self, policy: Policy, rule: Rule, number: int, peers: tuple[Peer, ...], matches: list[PortMatch]
    ) -> Step:
        ranges = traffic_ranges(matches, rule.traffic.excluded)
        taken = self._take(peers) if ranges else ()
        return Step(rule.action, number, taken, ranges, rule.traffic.sources, policy.established)


def choice_at_end(choices: Iterable[Established]) -> Established:
    """What becomes of established flows that none of a tier's policies allows: they all refuse them."""
    given = set(choices)
    if Established.RESET in given:
        return Established.RESET
    return Established.KEEP if given == {Established.KEEP} else Established.RE_EVALUATE
