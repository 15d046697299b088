"""Policy for the metrics and `fabricctl top` (`fabric.metrics.policy.PolicyReport`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fabric.metrics.latency import Distribution
from fabric.metrics.policy import RuleHits

if TYPE_CHECKING:
    from fabric.policing.keeper import PolicyKeeper


class KeeperReport:
    """What a keeper says about itself."""

    def __init__(self, keeper: PolicyKeeper) -> None:
        self._keeper = keeper

    def rule_hits(self) -> Iterator[RuleHits]:
        """Every rule in force, by the keys of the policies."""
        counts = self._keeper.dataplane().rule_hits()
        for rule in self._keeper.rules():
            yield RuleHits(rule.policy, rule.rule, rule.direction, rule.action, counts.get(rule.description, 0))

    def problems(self) -> tuple[str, ...]:
        """What is wrong with policies and their sources, one line each."""
        return tuple(self._keeper.problems())

    def programming(self) -> Distribution:
        """From the change of an object, as its source tells of it, to its use by the data path."""
        return self._keeper.latency.distribution()
