"""Network policy as the data plane holds it: which snapshot is in force, and what its rules have done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from encap.drops import DropReason
from fabric.errors import DataplaneError
from fabric.forward.enforcement import MOST_SERVICE_NETWORKS, Enforcement, RuleHits, Staged
from fabric.model import Address, DataplaneSettings

if TYPE_CHECKING:
    from fabric.policy import PolicySnapshot

DIRECTIONS = {DropReason.POLICY_EGRESS: "egress", DropReason.POLICY_INGRESS: "ingress"}
RECENT = 256
"""Denied flows that are remembered."""
RawDenial = tuple[int, int | None, int, int, int, int, int, int]


class Denied(NamedTuple):
    """A flow that policy has refused. `ports` are source and destination port, of ICMP its type and code.

    `direction` is the pod's that refused, "egress" or "ingress", empty where no rule was asked; `rule` is the rule as
    the snapshot names it, or why no rule was asked (the drop reason's name).
    """

    family: int
    src: Address
    dst: Address
    protocol: int
    ports: tuple[int, int]
    direction: str
    rule: str


class Policies:
    """One per data plane. Raises DataplaneError where policy is wanted and flows are not tracked."""

    def __init__(self, settings: DataplaneSettings) -> None:
        self.settings = settings
        self.snapshot: PolicySnapshot | None = None
        self.hits = RuleHits()
        self._staged: Staged | None = None
        self._recent: deque[RawDenial] = deque(maxlen=RECENT)
        self._enforcement: Enforcement | None = None
        self._ports_version = 0
        self._number = 0
        self._judges_otherwise = True  # than by `_number`
        if settings.policy_required:
            self._check_tracking()
        if len(settings.services) > MOST_SERVICE_NETWORKS:
            raise DataplaneError(
                f"{len(settings.services)} Service networks are given, at most {MOST_SERVICE_NETWORKS} can be used"
            )

    def _check_tracking(self) -> None:
        if not self.settings.flows:
            raise DataplaneError("network policy needs the flow table: give --flow-table a size above 0")

    @property
    def staged_snapshot(self) -> PolicySnapshot | None:
        """What is asked beside `snapshot`."""
        return self._staged.policy if self._staged is not None else None

    def set(self, snapshot: PolicySnapshot | None, staged: PolicySnapshot | None = None) -> None:
        """Another snapshot, for the next `enforcement`, and what is to be asked beside it."""
        if snapshot is not None:
            self._check_tracking()
            self.hits.reserve(snapshot.names.next)
        if staged is not self.staged_snapshot:
            self._staged = Staged(staged, self._staged) if staged is not None else None
        self._judges_otherwise |= snapshot is not self.snapshot
        self.snapshot = snapshot
        self._enforcement = None

    def enforcement(self, ports_version: int) -> Enforcement:
        """What the workers need. It gets a new number when the policy or the ports are others than last time, but not
        when only what is staged is: that changes nothing about the flows there are.

        Ports count because a pod port is closed whose address the policy does not know: a flow that was judged before
        the port was there may have taken that address for one outside.
        """
        if self._enforcement is None or ports_version != self._ports_version:
            self._judges_otherwise |= ports_version != self._ports_version
            self._ports_version = ports_version
            # 0 is the number of flows that began when there was no policy.
            judges = self.settings.policy_required or self.snapshot is not None or self._number
            if judges and self._judges_otherwise:
                self._number = self._number % 0xFFFFFFFF + 1
            self._judges_otherwise = False
            settings = self.settings
            self._enforcement = Enforcement(
                self._number, self.snapshot, settings.policy_required, settings.services, self.hits, self._staged
            )
        return self._enforcement

    def rule_hits(self) -> dict[str, int]:
        """Flows that each rule has decided, by the rule's name; a rule that has decided none is left out."""
        return _by_name(self.snapshot, self.hits)

    def staged_hits(self) -> dict[str, tuple[int, int]]:
        """Flows that each rule would have decided with the staged policies in force, and those of them whose verdict
        would have been the other one; empty while nothing is staged."""
        if self._staged is None:
            return {}
        changes = _by_name(self._staged.policy, self._staged.changes)
        hits = _by_name(self._staged.policy, self._staged.hits)
        return {name: (count, changes.get(name, 0)) for name, count in hits.items()}

    def denied(self, records: Iterable[RawDenial]) -> list[Denied]:
        """The last RECENT of all records of `Worker.denied`, with these at the end, for people."""
        self._recent.extend(records)
        return [self._describe(*record) for record in self._recent]

    def _describe(
        self, reason: int, rule: int | None, family: int, src: int, dst: int, protocol: int, first: int, second: int
    ) -> Denied:
        address = IPv4Address if family == 4 else IPv6Address
        name = DropReason(reason).name.lower()
        if rule is not None and self.snapshot is not None:
            name = self.snapshot.describe(rule)
        return Denied(family, address(src), address(dst), protocol, (first, second), DIRECTIONS.get(reason, ""), name)  # type: ignore[call-overload]


def _by_name(snapshot: PolicySnapshot | None, hits: RuleHits) -> dict[str, int]:
    from fabric.policy.numbers import UNKNOWN

    found: dict[str, int] = {}
    if snapshot is not None:
        for number, count in hits.counts().items():
            name = snapshot.describe(number)
            if name != UNKNOWN:
                found[name] = found.get(name, 0) + count
    return found
