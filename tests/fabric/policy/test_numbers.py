"""Names of rule numbers."""

from __future__ import annotations

import pytest

from fabric.policy.numbers import Numbers
from fabric.policy.rules import Action, Identity, Policy, Rule


def policy(*paths: str) -> Policy:
    """Rules at these places, for egress."""
    rules = tuple(Rule(Action.ALLOW, path=path) for path in paths)
    return Policy("NetworkPolicy", "default", "edited", "default", (0.0, ""), Identity(), (None, rules))


def test_a_number_keeps_its_name_while_its_owner_is_known() -> None:
    numbers = Numbers()
    tier = numbers.default("default", 0)
    first = numbers.allot("first", 3)
    assert numbers.default("default", 0) == tier
    assert numbers.describe(tier) == "end of tier default, ingress: no rule matched"
    assert numbers.describe(first) == "first"
    numbers.retire(first)
    assert numbers.describe(first) == "first", "counters of what was replaced can still be read"


def test_a_number_that_is_gone_is_nobody_elses() -> None:
    """Its block lies behind that of a tier's end, which must not get its name and its hits."""
    numbers = Numbers()
    numbers.default("default", 0)
    gone = numbers.allot("gone", 1)
    for base in (gone, *(numbers.allot(f"later {i}", 1) for i in range(1_000))):
        numbers.retire(base)
    assert numbers.describe(gone) == "unknown rule"
    assert Numbers().describe(7) == "unknown rule"


def test_what_staged_policies_bring_to_the_end_of_a_tier_has_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.policy.numbers.MOST_STAGED_ENDS", 2)
    numbers = Numbers()
    plain, one = numbers.default("default", 1), numbers.default("default", 1, ["P a"])
    many = numbers.default("default", 1, [f"P {letter}" for letter in "abcde"])
    assert [numbers.describe(number) for number in (plain, one, many)] == [
        "end of tier default, egress: no rule matched",
        "end of tier default, egress: no rule of P a matched",
        "end of tier default, egress: no rule of P a, P b, P c and 2 more matched",
    ]
    assert numbers.default("default", 1, ["P b"]) == plain, "there are enough of them"
    assert numbers.default("default", 1, ["P a"]) == one


def test_of_a_replaced_policy_only_the_names_are_kept() -> None:
    """Policies are edited for as long as the daemon runs: 280 edits had grown it by 0.8 MB."""
    numbers = Numbers()
    first = numbers.allot(policy("egress[0]", "egress[1]"), 2)
    numbers.retire(first)
    assert numbers.describe(first + 1) == "NetworkPolicy default/edited egress[1]"
    assert numbers.describe(first + 2) == "unknown rule"
    assert not any(isinstance(owner, Policy) for owner in numbers.owners.values())


def test_a_policy_of_many_rules_leaves_as_few_names_behind_as_many_policies() -> None:
    numbers = Numbers()
    bases = [numbers.allot(policy(*(f"egress[{i}]" for i in range(400))), 400) for _ in range(4)]
    for base in bases:
        numbers.retire(base)
    assert [numbers.describe(base) for base in bases[:2]] == ["unknown rule"] * 2
    assert numbers.describe(bases[3] + 399) == "NetworkPolicy default/edited egress[399]"
