"""Rule numbers for hit counters: a block for each policy, never used again while the process lives."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from fabric.policy.rules import DIRECTIONS, Policy

UNKNOWN = "unknown rule"
"""The name of a rule that is long gone."""
MOST_TITLES = 3
"""Staged policies that are named at the end of a tier."""
MOST_STAGED_ENDS = 1_000
"""Ends of tiers with the staged policies that have come there; beyond, they count at the end of the tier."""


class Numbers:
    """`describe` works for every policy that is in force, and for replaced ones until 1,000 more have gone."""

    def __init__(self) -> None:
        self.next = 0
        self.bases: list[int] = []
        self.owners: dict[int, Policy | str] = {}
        self.defaults: dict[str, int] = {}
        self.staged_ends = 0
        self.old: list[int] = []

    def allot(self, owner: Policy | str, count: int) -> int:
        base = self.next
        self.next += max(count, 1)
        self.bases.append(base)
        self.owners[base] = owner
        return base

    def retire(self, base: int) -> None:
        self.old.append(base)
        if len(self.old) > 1_000:
            gone = self.old.pop(0)
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
        for rules in owner.rules:
            if rules is None:
                continue
            if offset < len(rules):
                rule = rules[offset]
                return f"{owner.title} {rule.path}" + (f" ({rule.name})" if rule.name else "")
            offset -= len(rules)
        return UNKNOWN
