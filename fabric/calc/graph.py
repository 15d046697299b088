"""Everything put together: claims and ways of all leases into one outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType

from fabric.calc.claims import OURS, Claim, Claims, claim_of
from fabric.calc.devices import devices_of, own_mac
from fabric.calc.reach import Reach, reach
from fabric.calc.words import Node, OnLink, Outcome, Verdict
from fabric.identity import differing
from fabric.model import (
    Address,
    ExtensionPeer,
    ForwardingState,
    KernelState,
    Lease,
    LocalVtep,
)

NOTHING: OnLink = MappingProxyType({})
NOT_KNOWN = object()


@dataclass(frozen=True, slots=True)
class _Facts:
    """What one lease means on this node, whatever the others are. `links` is what was known of the addresses whose
    being on link matters; `verdict` is that of a lease that no other one disturbs; `is_peer` is False for our own and
    for others with our address."""

    lease: Lease
    claim: Claim
    reaches: tuple[Reach, ...]
    links: tuple[tuple[Address, object], ...]
    verdict: Verdict
    is_peer: bool


class Memo:
    """What follows from one lease alone, and who holds what, kept between calls: with 1,000 peers, one that changes
    costs one, not 1,000.

    It changes no answer. Leases are told apart by identity, which `LeaseTable` keeps for an unchanged lease. Holders
    are kept only while no two leases clash: what follows from a clash depends on the age of all.
    """

    def __init__(self) -> None:
        self._node: Node | None = None
        self._facts: dict[int, _Facts] = {}
        self._judged: tuple[_Facts, ...] = ()
        self._claims: Claims | None = None

    def facts(self, node: Node, leases: Iterable[Lease], on_link: OnLink) -> tuple[_Facts, ...]:
        """The facts of each lease; what is not asked for again is forgotten."""
        if node != self._node:
            self._facts, self._claims = {}, None
        old = self._facts
        found = []
        for lease in leases:
            held = old.get(id(lease))
            if held is None or held.lease is not lease or (held.links and not _still(held, on_link)):
                held = _facts(node, lease, on_link)
            found.append(held)
        self._node, self._facts = node, {id(item.lease): item for item in found}
        return tuple(found)

    def refusals(self, node: Node, facts: tuple[_Facts, ...]) -> dict[int, str]:
        """Why a lease does not get what it claims, by the identity of its facts; only where another one is why.

        `facts` are those that `facts` gave for this node.
        """
        own = node.lease.key
        if self._claims is not None:
            gone, come = differing(self._judged, facts)
            if not self._claims.exchange(
                (item.claim for item in gone if item.lease.key != own),
                ((item.lease, item.claim) for item in come if item.lease.key != own),
            ):
                self._claims = None
        refused: dict[int, str] = {}
        if self._claims is None:
            claims, refused = _judge(node, facts)
            self._claims = None if refused else claims
        self._judged = facts
        return refused


def calculate(node: Node, leases: Iterable[Lease], memo: Memo | None = None, on_link: OnLink = NOTHING) -> Outcome:
    """The desired state for `leases` (any order, duplicates allowed, our own may be among them)."""
    found = {lease.key: lease for lease in leases}
    found[node.lease.key] = node.lease
    memo = memo or Memo()
    facts = memo.facts(node, sorted(found.values(), key=attrgetter("key")), on_link)
    return _outcome(node, facts, memo.refusals(node, facts))


def _judge(node: Node, facts: Iterable[_Facts]) -> tuple[Claims, dict[int, str]]:
    """Who holds what, and who does not get it. Clashes go to the older lease: revision, then key."""
    claims = Claims(claim_of(node, node.lease))
    refused = {}
    for item in sorted(facts, key=lambda item: (item.lease.revision, item.lease.key)):
        if item.lease is node.lease:
            claims.own(item.claim)
            continue
        refusal = claims.judge(item.lease, item.claim)
        if refusal != item.claim.invalid:
            refused[id(item)] = refusal
    return claims, refused


def beats_ours(verdict: Verdict, own: Lease) -> bool:
    """Whether nodes other than ours prefer this lease to our own: it clashes with ours and is older."""
    older = (verdict.lease.revision, verdict.lease.key) < (own.revision, own.key)
    return older and verdict.reason.endswith(OURS)


def _is_own(node: Node, lease: Lease) -> bool:
    return lease.public_ip in node.public or lease.public_ipv6 in node.public


def _still(facts: _Facts, on_link: OnLink) -> bool:
    """Whether what the facts depend on is as it was."""
    return all(on_link.get(address, NOT_KNOWN) == known for address, known in facts.links)


def _facts(node: Node, lease: Lease, on_link: OnLink) -> _Facts:
    claim = claim_of(node, lease)
    subnets = [] if claim.invalid else node.subnets(lease)
    reaches = [(version, reach(node, lease, version, subnet, on_link)) for version, subnet in subnets]
    asked = [found.asked for _, found in reaches if found.asked]
    links = tuple((address, on_link.get(address, NOT_KNOWN)) for address in asked)
    verdict = Verdict(lease, claim.invalid) if claim.invalid else _verdict(lease, reaches)
    is_peer = lease is not node.lease and not _is_own(node, lease)
    return _Facts(lease, claim, tuple(found for _, found in reaches), links, verdict, is_peer)


def _verdict(lease: Lease, reaches: list[tuple[int, Reach]]) -> Verdict:
    ways = dict.fromkeys(found.way for _, found in reaches if found.way)
    reasons = {version: found.reason for version, found in reaches if found.reason}
    if ways:
        reason = "; ".join(f"IPv{version}: {text}" for version, text in reasons.items())
    else:
        reason = "; ".join(dict.fromkeys(reasons.values()))
    return Verdict(lease, reason, " / ".join(ways))


def _outcome(node: Node, facts: Iterable[_Facts], refused: Mapping[int, str]) -> Outcome:
    peers = [item for item in facts if item.is_peer]
    reaches = [found for item in peers if id(item) not in refused for found in item.reaches]
    used = [found for found in reaches if found.way]
    own = node.conf.backend.encapsulation
    verdicts = tuple([
        Verdict(item.lease, refused[id(item)]) if id(item) in refused else item.verdict for item in peers
    ])  # fmt: skip
    return Outcome(
        ForwardingState(node.conf.backend.vni, _vteps(node), tuple([found.peer for found in used if found.peer])),
        KernelState(devices_of(node, used)),
        verdicts,
        formats_needed=frozenset().union({own} if own else (), *{found.formats for found in reaches}),
        asked=frozenset(found.asked for found in reaches if found.asked),
        extension=tuple(_extension(verdict.lease) for verdict in verdicts if verdict.way == "extension"),
    )


def _extension(lease: Lease) -> ExtensionPeer:
    return ExtensionPeer(
        lease.key, lease.subnet, lease.ipv6_subnet, lease.public_ip, lease.public_ipv6, lease.backend_data or ""
    )


def _vteps(node: Node) -> tuple[LocalVtep, ...]:
    if node.conf.backend.type == "alloc":
        return ()
    return tuple(
        LocalVtep(own, own_mac(node.lease, version), (subnet,))
        for version, subnet in node.subnets(node.lease)
        for own in node.underlay
        if own.version == version
    )
