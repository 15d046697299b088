"""The hook by which policy reaches the metrics (and `fabricctl top`): `Node.policy_report` holds one, or None.

Whoever enforces policy sets it; nothing is asked of it but when somebody scrapes, in the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

from fabric.metrics.latency import Distribution


class RuleHits(NamedTuple):
    """One rule in force. `policy` is its policy's full name (`namespace/name`), `rule` its place or name therein,
    `direction` the pod's own, `hits` the connections it decided since the daemon's start."""

    policy: str
    rule: str
    direction: Literal["ingress", "egress"]
    action: str
    hits: int


class PolicyReport(Protocol):
    """What the policy engine says about itself."""

    def rule_hits(self) -> Iterable[RuleHits]:
        """Every rule in force, in an order that stays: beyond the bound the later ones are added up."""

    def problems(self) -> tuple[str, ...]:
        """What is wrong with policies, one line each."""

    def programming(self) -> Distribution:
        """From the change of an object in the store to its use by the data path, in seconds."""
