"""Everything put together: claims and ways of all leases into one outcome."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter, itemgetter
from types import MappingProxyType

from fabric.calc.claims import OURS, Claim, Claims, claim_of
from fabric.calc.devices import devices_of, own_mac
from fabric.calc.parts import Part, Stretches, joined, part_of
from fabric.calc.reach import Reach, reach
from fabric.calc.words import Node, OnLink, Outcome, Verdict
from fabric.identity import differing, ends
from fabric.model import Address, ExtensionPeer, ForwardingState, KernelState, Lease, LocalVtep

NOTHING: OnLink = MappingProxyType({})
NOT_KNOWN = object()
NOT_REFUSED: Mapping[int, str] = MappingProxyType({})


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
    and parts are kept only while no two leases clash: what follows from a clash depends on the age of all.
    """

    def __init__(self) -> None:
        self._node: Node | None = None
        self._on_link: OnLink = NOTHING
        self._known: dict[Address, str | None] = {}  # its content
        self._asking: dict[Address, set[str]] = {}  # keys of the leases whose facts depend on what is known there
        self._leases: tuple[Lease, ...] = ()  # in key order, no key twice
        self._facts: tuple[_Facts, ...] = ()  # of these leases
        self._stretches: Stretches[_Facts, Part] = Stretches(_part)
        self._judged: tuple[_Facts, ...] = ()
        self._claims: Claims | None = None

    def facts(self, node: Node, leases: Iterable[Lease], on_link: OnLink) -> tuple[_Facts, ...]:
        """The facts of each lease, in key order; what is not asked for again is forgotten."""
        if node != self._node:
            self._node, self._leases, self._facts, self._claims = node, (), (), None
            self._stretches, self._asking = Stretches(_part), {}
        if on_link is not self._on_link:
            before, self._on_link = self._known, on_link
            self._known = on_link if isinstance(on_link, dict) else dict(on_link)
            self._look_at_links(node, before)
        given = leases if isinstance(leases, tuple) else ordered(leases)
        front, back = ends(self._leases, given)
        if not _ascending(given[max(0, front - 1) : len(given) - back + 1]):
            given = ordered(given)
            front, back = ends(self._leases, given)
        old = self._facts[front : len(self._facts) - back]
        held = {item.lease.key: item for item in old}
        new = [_again(node, lease, held.get(lease.key), on_link) for lease in given[front : len(given) - back]]
        self._take(front, len(old), new)
        self._leases = given
        return self._facts

    def _look_at_links(self, node: Node, before: Mapping[Address, str | None]) -> None:
        """Something else may be on link now."""
        for address in _touched(before, self._known):
            for key in sorted(self._asking.get(address, ())):
                place = bisect_left(self._leases, key, key=attrgetter("key"))
                if not _still(self._facts[place], self._on_link):
                    self._take(place, 1, [_facts(node, self._leases[place], self._on_link)])

    def _take(self, place: int, count: int, new: Sequence[_Facts]) -> None:
        if not count and not new:
            return
        for item in self._facts[place : place + count]:
            for address, _ in item.links:
                self._asking[address].discard(item.lease.key)
                if not self._asking[address]:
                    del self._asking[address]
        for item in new:
            for address, _ in item.links:
                self._asking.setdefault(address, set()).add(item.lease.key)
        self._facts = (*self._facts[:place], *new, *self._facts[place + count :])
        self._stretches.replace(place, count, new)

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

    def whole(self, facts: tuple[_Facts, ...], refused: Mapping[int, str]) -> Part:
        """What all leases add to the outcome together."""
        return _part(facts, refused) if refused else joined(self._stretches.sums)


def calculate(node: Node, leases: Iterable[Lease], memo: Memo | None = None, on_link: OnLink = NOTHING) -> Outcome:
    """The desired state for `leases` (any order, of two with one key the later; our own may be among them)."""
    memo = memo or Memo()
    facts = memo.facts(node, leases, on_link)
    return _outcome(node, memo.whole(facts, memo.refusals(node, facts)))


def ordered(leases: Iterable[Lease]) -> tuple[Lease, ...]:
    """By key, the last one of each."""
    return tuple(sorted({lease.key: lease for lease in leases}.values(), key=attrgetter("key")))


def _touched(before: Mapping[Address, str | None], after: Mapping[Address, str | None]) -> set[Address]:
    """The addresses of which something else is known. Both are plain dicts: what they have in common is then neither
    hashed nor compared object by object in Python, which among 1,000 addresses would take a millisecond."""
    differs = set(after).difference(before) | set(before).difference(after)
    old, new = dict(before), dict(after)
    for address in differs:
        old.pop(address, None)
        new.pop(address, None)
    return differs if old == new else differs | {address for address in old if old[address] != new[address]}


def _ascending(leases: Sequence[Lease]) -> bool:
    return all(before.key < after.key for before, after in pairwise(leases))


def _judge(node: Node, facts: Iterable[_Facts]) -> tuple[Claims, dict[int, str]]:
    """Who holds what, and who does not get it. Clashes go to the older lease: revision, then key."""
    ours = claim_of(node, node.lease)
    claims = Claims(ours)
    refused = {}
    others = [(item.lease.revision, item.lease.key, item) for item in facts if item.lease.key != node.lease.key]
    for _, _, item in sorted([*others, (node.lease.revision, node.lease.key, None)], key=itemgetter(0, 1)):
        if item is None:
            claims.own(ours)
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


def _again(node: Node, lease: Lease, held: _Facts | None, on_link: OnLink) -> _Facts:
    """The facts of `lease`; what it had before under its key is kept as far as it holds."""
    if held is None or (held.links and not _still(held, on_link)):
        return _facts(node, lease, on_link)
    if held.lease is lease:
        return held
    was_limited, is_limited = held.lease.expires is not None, lease.expires is not None
    # Renewed; a lease without a limit that gets one may be a reservation that its node took up (flannel's udp).
    if was_limited == is_limited and replace(lease, expires=held.lease.expires) == held.lease:
        return replace(held, lease=lease, verdict=replace(held.verdict, lease=lease))
    return _facts(node, lease, on_link)


def _facts(node: Node, lease: Lease, on_link: OnLink) -> _Facts:
    claim = claim_of(node, lease)
    subnets = [] if claim.invalid else node.subnets(lease)
    reaches = [(version, reach(node, lease, version, subnet, on_link)) for version, subnet in subnets]
    asked = [found.asked for _, found in reaches if found.asked]
    links = tuple((address, on_link.get(address, NOT_KNOWN)) for address in asked)
    verdict = Verdict(lease, claim.invalid) if claim.invalid else _verdict(lease, reaches)
    is_peer = lease.key != node.lease.key and not _is_own(node, lease)
    return _Facts(lease, claim, tuple(found for _, found in reaches), links, verdict, is_peer)


def _verdict(lease: Lease, reaches: list[tuple[int, Reach]]) -> Verdict:
    ways = dict.fromkeys(found.way for _, found in reaches if found.way)
    reasons = {version: found.reason for version, found in reaches if found.reason}
    if ways:
        reason = "; ".join(f"IPv{version}: {text}" for version, text in reasons.items())
    else:
        reason = "; ".join(dict.fromkeys(reasons.values()))
    return Verdict(lease, reason, " / ".join(ways))


def _part(facts: Iterable[_Facts], refused: Mapping[int, str] = NOT_REFUSED) -> Part:
    """What these leases add to the outcome where `refused` do not get what they claim."""
    peers = [item for item in facts if item.is_peer]
    return part_of(
        [Verdict(item.lease, refused[id(item)]) if id(item) in refused else item.verdict for item in peers],
        [found for item in peers if id(item) not in refused for found in item.reaches],
    )


def _outcome(node: Node, whole: Part) -> Outcome:
    own = node.conf.backend.encapsulation
    extension = node.conf.backend.type == "extension"
    return Outcome(
        ForwardingState(node.conf.backend.vni, _vteps(node), whole.peers),
        KernelState(devices_of(node, whole)),
        whole.verdicts,
        formats_needed=whole.formats | ({own} if own else frozenset()),
        asked=whole.asked,
        extension=tuple(
            _extension(verdict.lease) for verdict in whole.verdicts if extension and verdict.way == "extension"
        ),
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
