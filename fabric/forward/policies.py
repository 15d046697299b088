"""Network policy as the data plane holds it: which snapshot is in force, and what its rules have done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from encap.drops import DropReason
from fabric.errors import DataplaneError
from fabric.forward.enforcement import MOST_SERVICE_NETWORKS, Enforcement, RuleHits
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
        self._recent: deque[RawDenial] = deque(maxlen=RECENT)
        self._enforcement: Enforcement | None = None
        self._ports_version = 0
        self._number = 0
        if settings.policy_required:
            self._check_tracking()
        if len(settings.services) > MOST_SERVICE_NETWORKS:
            raise DataplaneError(
                f"{len(settings.services)} Service networks are given, at most {MOST_SERVICE_NETWORKS} can be used"
            )

    def _check_tracking(self) -> None:
        if not self.settings.flows:
            raise DataplaneError("network policy needs the flow table: give --flow-table a size above 0")

    def set(self, snapshot: PolicySnapshot | None) -> None:
        """Another snapshot, for the next `enforcement`."""
        if snapshot is not None:
            self._check_tracking()
            self.hits.reserve(snapshot.names.next)
        self.snapshot = snapshot
        self._enforcement = None

    def enforcement(self, ports_version: int) -> Enforcement:
        """What the workers need. It gets a new number when the policy or the ports are others than last time.

        Ports count because a pod port is closed whose address the policy does not know: a flow that was judged before
        the port was there may have taken that address for one outside.
        """
        if self._enforcement is None or ports_version != self._ports_version:
            self._ports_version = ports_version
            # 0 is the number of flows that began when there was no policy.
            if self.settings.policy_required or self.snapshot is not None or self._number:
                self._number = self._number % 0xFFFFFFFF + 1
            settings = self.settings
            self._enforcement = Enforcement(
                self._number, self.snapshot, settings.policy_required, settings.services, self.hits
            )
        return self._enforcement

    def rule_hits(self) -> dict[str, int]:
        """Flows that each rule has decided, by the rule's name; a rule that has decided none is left out."""
        from fabric.policy.numbers import UNKNOWN

        found: dict[str, int] = {}
        if self.snapshot is not None:
            for number, count in self.hits.counts().items():
                name = self.snapshot.describe(number)
                if name != UNKNOWN:
                    found[name] = found.get(name, 0) + count
        return found

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
