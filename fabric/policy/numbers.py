"""Rule numbers for hit counters: a block for each policy, never used again while the process lives."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from sys import intern

from fabric.policy.rules import DIRECTIONS, Policy, Rule

UNKNOWN = "unknown rule"
"""The name of a rule that is long gone."""
MOST_TITLES = 3
"""Staged policies that are named at the end of a tier."""
MOST_STAGED_ENDS = 1_000
"""Ends of tiers with the staged policies that have come there; beyond, they count at the end of the tier."""
MOST_OLD = 1_000
"""Rules of replaced policies whose names are known."""


class Numbers:
    """`describe` works for every policy that is in force, and for replaced ones until MOST_OLD more rules have gone.

    Of a replaced policy the names alone are kept: a policy is kilobytes, and one that is edited again and again would
    hold megabytes.
    """

    def __init__(self) -> None:
        self.next = 0
        self.bases: list[int] = []
        self.owners: dict[int, Policy | str | tuple[str, ...]] = {}
        self.defaults: dict[str, int] = {}
        self.staged_ends = 0
        self.old: deque[tuple[int, int]] = deque()  # base and number of rules
        self.old_rules = 0

    def allot(self, owner: Policy | str, count: int) -> int:
        base = self.next
        self.next += max(count, 1)
        self.bases.append(base)
        self.owners[base] = owner
        return base

    def retire(self, base: int) -> None:
        owner = self.owners[base]
        if isinstance(owner, Policy):
            # Interned: a policy that is edited keeps most of its rules' names.
            owner = self.owners[base] = tuple(
                intern(_name(owner, rule)) for rules in owner.rules for rule in rules or ()
            )
        count = max(1, len(owner)) if isinstance(owner, tuple) else 1
        self.old.append((base, count))
        self.old_rules += count
        while self.old_rules > MOST_OLD and len(self.old) > 1:
            gone, count = self.old.popleft()
            self.old_rules -= count
            # Another list: one thread compiles while another describes.
            self.bases = [base for base in self.bases if base != gone]
            del self.owners[gone]

    def default(self, tier: str, direction: int, staged: Sequence[str] = ()) -> int:
        """The number of the end of a tier, where what no rule matched is denied.

        `staged`: the staged policies that have brought a flow there. They have an end of their own, so that it is told
        what NetworkPolicies would do, which deny nowhere else.
        """
        end = f"end of tier {tier}, {DIRECTIONS[direction]}: no rule"
        name = f"{end} matched"
        if staged:
            more = f" and {len(staged) - MOST_TITLES} more" if len(staged) > MOST_TITLES else ""
            own = f"{end} of {', '.join(staged[:MOST_TITLES])}{more} matched"
            if own in self.defaults or self.staged_ends < MOST_STAGED_ENDS:
                self.staged_ends += own not in self.defaults
                name = own
        if name not in self.defaults:
            self.defaults[name] = self.allot(name, 1)
        return self.defaults[name]

    def describe(self, number: int) -> str:
        bases = self.bases
        at = bisect_right(bases, number) - 1
        owner = self.owners.get(bases[at], UNKNOWN) if at >= 0 else UNKNOWN
        offset = number - bases[at] if at >= 0 else 0
        if isinstance(owner, str):
            return owner if offset == 0 else UNKNOWN
        if isinstance(owner, tuple):
            return owner[offset] if offset < len(owner) else UNKNOWN
        for rules in owner.rules:
            if rules is None:
                continue
            if offset < len(rules):
                return _name(owner, rules[offset])
            offset -= len(rules)
        return UNKNOWN


def _name(policy: Policy, rule: Rule) -> str:
    return f"{policy.title} {rule.path}" + (f" ({rule.name})" if rule.name else "")
