"""Why a flow passes or not, in lines for people: every tier that was asked, and the rule that decided."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.policy.judge import PolicySnapshot
from fabric.policy.rules import DIRECTIONS, Action

VERBS = {Action.ALLOW: "allowed", Action.DENY: "denied", Action.PASS: "passed on"}


@dataclass(frozen=True, slots=True)
class TierAnswer:
    """What one tier said: `rule` is the description of the rule that matched, None where none did and the tier
    passes.
    """

    direction: str
    tier: str
    policies: tuple[str, ...]
    action: Action
    rule: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    allowed: bool
    rule: str | None
    """What decided; None: no policy did, so it is allowed."""
    tiers: tuple[TierAnswer, ...]

    def lines(self) -> list[str]:
        found = [
            f"{t.direction} tier {t.tier} ({', '.join(t.policies)}): "
            f"{VERBS[t.action]} by {t.rule or 'no matching rule'}"
            for t in self.tiers
        ]
        return [*found, f"{'allowed' if self.allowed else 'denied'}: {self.rule or 'no policy decides on this flow'}"]


def explain(snapshot: PolicySnapshot, src: str, dst: str, protocol: str | int, port: int | None = None) -> Explanation:
    """The verdict with the whole way to it; addresses are the ends of a new flow."""
    allowed, egress, ingress = snapshot.verdict(src, dst, protocol, port)
    decided = ingress if ingress is not None else egress
    tiers = tuple(
        TierAnswer(
            DIRECTIONS[direction], label[0], label[1], Action(action), None if rule is None else snapshot.describe(rule)
        )
        for direction, label, rule, action in snapshot.trace(src, dst, protocol, port)
    )
    return Explanation(allowed, None if decided is None else snapshot.describe(decided), tiers)
