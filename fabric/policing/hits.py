"""What the rules in force have done: every rule with the number of flows that it has decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from fabric.policing import objects
from fabric.policing.documents import Given
from fabric.policy.parse import parse_object
from fabric.policy.rules import Action, Policy

Direction = Literal["ingress", "egress"]
SIDES: tuple[Direction, Direction] = ("ingress", "egress")


class RuleInForce(NamedTuple):
    """One rule. `policy` is its policy's title (`NetworkPolicy shop/web`), `rule` its place therein and its name if it
    has one, `place` where it stands in a file, empty for an API's."""

    policy: str
    rule: str
    direction: Direction
    action: str
    place: str

    @property
    def description(self) -> str:
        """As the data path counts it (`fabric.policy.numbers`)."""
        return f"{self.policy} {self.rule}"


class Rules:
    """All rules of what is in force, in the order of the policies' keys; each policy is read once."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[Given, tuple[RuleInForce, ...]]] = {}
        self._of: Mapping[str, Given] = {}
        self._all: tuple[RuleInForce, ...] = ()

    def of(self, accepted: Mapping[str, Given]) -> tuple[RuleInForce, ...]:
        """The rules of these objects; asked again with the same mapping it costs nothing."""
        if accepted is self._of:
            return self._all
        before, self._read = self._read, {}
        for key in sorted(key for key in accepted if not objects.is_around(key)):
            given, known = accepted[key], before.get(key)
            self._read[key] = known if known is not None and known[0] is given else (given, _rules(given))
        self._of = accepted
        self._all = tuple(rule for _, rules in self._read.values() for rule in rules)
        return self._all


def _rules(given: Given) -> tuple[RuleInForce, ...]:
    policy = parse_object(given.value)
    if not isinstance(policy, Policy):
        return ()
    return tuple(
        RuleInForce(
            policy.title,
            rule.path + (f" ({rule.name})" if rule.name else ""),
            side,
            rule.action.name.lower(),
            given.place(rule.path),
        )
        for side, rules in zip(SIDES, policy.rules, strict=True)
        for rule in rules or ()
        if rule.action is not Action.LOG
    )
