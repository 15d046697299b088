"""Rule numbers for hit counters: a block for each policy, never used again while the process lives."""

from __future__ import annotations

from bisect import bisect_right

from fabric.policy.rules import DIRECTIONS, Policy

UNKNOWN = "unknown rule"
"""The name of a rule that is long gone."""


class Numbers:
    """`describe` works for every policy that is in force, and for replaced ones until 1,000 more have gone."""

    def __init__(self) -> None:
        self.next = 0
        self.bases: list[int] = []
        self.owners: dict[int, Policy | str] = {}
        self.defaults: dict[tuple[str, int], int] = {}
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

    def default(self, tier: str, direction: int) -> int:
        """The number of the end of a tier, where what no rule matched is denied."""
        key = tier, direction
        if key not in self.defaults:
            self.defaults[key] = self.allot(f"end of tier {tier}, {DIRECTIONS[direction]}: no rule matched", 1)
        return self.defaults[key]

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
