"""Which leases are valid, and which of two that claim the same thing has it. The same answer on every node.

Nothing here looks at how this node could reach a lease, at its addresses or at its own type: a lease that we cannot
use still holds what it claims, as it does elsewhere. Only our own lease is special: on this node it yields to nobody.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from fabric import jsonsafe
from fabric.calc.words import Node, data_of, public_of
from fabric.leases import parse_mac
from fabric.model import Lease, Network

MAX_PEERS = 65_000
OURS = "our own lease"


Span = tuple[int, int, int, Network]
"""IP version, first and last address, and the prefix that they are of."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one lease claims. `invalid` says why it claims nothing; `spans` are its subnets, disjoint from all others',
    and `identities` what must be unique besides, each with words for people."""

    invalid: str
    spans: tuple[Span, ...]
    identities: tuple[tuple[object, str], ...]


def claim_of(node: Node, lease: Lease) -> Claim:
    """What `lease` claims in the networks that this cluster has; of `node` only the configuration counts."""
    spans = tuple(span_of(subnet) for _, subnet in node.subnets(lease))
    return Claim(_invalid(node, lease), spans, _identities(node, lease))


def span_of(prefix: Network) -> Span:
    """The prefix as a range of addresses."""
    first = int(prefix.network_address)
    return prefix.version, first, first + (1 << prefix.max_prefixlen - prefix.prefixlen) - 1, prefix


class Claims:
    """What leases hold already: subnets, public addresses, MACs. Feed it the oldest first."""

    def __init__(self, ours: Claim) -> None:
        self._ours = _Holdings()
        self._ours.take(ours, OURS)
        self._held = _Holdings()
        self._count = 0

    def own(self, ours: Claim) -> None:
        """Our own lease's turn by age: an older one may have what it claims, elsewhere."""
        if not ours.invalid and not self._held.clash(ours):
            self._held.take(ours, OURS)
            self._count += 1

    def judge(self, lease: Lease, claim: Claim) -> str:
        """Why `lease` does not get what it claims; empty when it does."""
        if claim.invalid:
            return claim.invalid
        elsewhere = self._held.clash(claim)
        if not elsewhere and self._count >= MAX_PEERS:
            elsewhere = f"more than {MAX_PEERS} peers"
        if not elsewhere:
            self._held.take(claim, f"lease {lease.key}")
            self._count += 1
        return self._ours.clash(claim) or elsewhere

    def exchange(self, gone: Iterable[Claim], come: Iterable[tuple[Lease, Claim]]) -> bool:
        """Let go what the leases of `gone` claim and take what `come` claim, where no two of those judged clash.

        Then age plays no part, and one lease that changes costs one. False when one of `come` clashes or is too many:
        who has what follows from age again, and this object is of no more use.
        """
        for claim in gone:
            if not claim.invalid:
                self._held.release(claim)
                self._count -= 1
        return all(self.judge(lease, claim) == claim.invalid for lease, claim in come)


class Spans:
    """Disjoint prefixes with their holders, in address order."""

    def __init__(self) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._ends: dict[int, list[tuple[int, str]]] = {4: [], 6: []}

    def add(self, span: Span, holder: str) -> None:
        """`span` overlaps none that is there."""
        version, first, last, _ = span
        index = bisect_left(self._starts[version], first)
        self._starts[version].insert(index, first)
        self._ends[version].insert(index, (last, holder))

    def remove(self, span: Span) -> None:
        """`span` was added."""
        version, first, _, _ = span
        index = bisect_left(self._starts[version], first)
        del self._starts[version][index], self._ends[version][index]

    def overlap(self, span: Span) -> str:
        """Who holds a part of `span`, or what it lies in; empty when nobody does."""
        version, first, last, _ = span
        starts, ends = self._starts[version], self._ends[version]
        index = bisect_left(starts, first)
        if index and ends[index - 1][0] >= first:
            return ends[index - 1][1]
        if index < len(starts) and starts[index] <= last:
            return ends[index][1]
        return ""


class _Holdings:
    """Who holds what."""

    def __init__(self) -> None:
        self._holders: dict[object, str] = {}
        self._spans = Spans()

    def take(self, claim: Claim, holder: str) -> None:
        for span in claim.spans:
            self._spans.add(span, holder)
        for thing, _ in claim.identities:
            self._holders[thing] = holder

    def release(self, claim: Claim) -> None:
        for span in claim.spans:
            self._spans.remove(span)
        for thing, _ in claim.identities:
            self._holders.pop(thing, None)

    def clash(self, claim: Claim) -> str:
        """What is held already, and by whom; empty when nothing is."""
        for span in claim.spans:
            holder = self._spans.overlap(span)
            if holder:
                return f"{span[3]} overlaps {holder}"
        for thing, text in claim.identities:
            if thing in self._holders:
                return f"{text} is taken by {self._holders[thing]}"
        return ""


def _identities(node: Node, lease: Lease) -> tuple[tuple[object, str], ...]:
    found: list[tuple[object, str]] = []
    for version, _ in node.subnets(lease):
        address = public_of(lease, version)
        if address is not None:
            found.append(((version, int(address)), f"public address {address}"))
        data = data_of(lease, version)
        mac = parse_mac(data) if lease.backend_type == "vxlan" else None
        if mac is not None:
            found.append(((vni_of(data), mac), f"MAC {mac.hex(':')}"))
    return tuple(found)


def vni_of(data: object) -> int | None:
    """The `VNI` in a vxlan backend's data, None when there is no number."""
    vni = jsonsafe.fold_keys(data).get("vni") if isinstance(data, dict) else None
    return vni if isinstance(vni, int) and not isinstance(vni, bool) else None


def _invalid(node: Node, lease: Lease) -> str:
    """Why nobody can use this lease, whatever the others say; empty when it is fine."""
    if lease.backend_type == "" and lease.expires is None and not lease.node:
        return "reserved, its node has not joined"
    subnets = node.subnets(lease)
    if not subnets:
        return "no subnet of a family that is enabled here"
    for version, subnet in subnets:
        reason = _bad_subnet(node, subnet) or _bad_endpoint(node, lease, version) or _bad_data(lease, version)
        if reason:
            return reason
    return ""


def _bad_subnet(node: Node, subnet: Network) -> str:
    for network in node.conf.networks:
        if network.version == subnet.version:
            inside = network.prefixlen <= subnet.prefixlen and subnet.network_address in network
            if not inside:
                return f"{subnet} is outside the network {network}"
            if network.prefixlen == subnet.prefixlen:
                return f"{subnet} is the whole network"
    return ""


def _bad_endpoint(node: Node, lease: Lease, version: int) -> str:
    address = public_of(lease, version)
    name = public_name(version)
    if address is None:
        return f"{name} is missing"
    broadcast = version == 4 and int(address) >= 0xF0000000
    if address.is_multicast or address.is_loopback or address.is_unspecified or broadcast:
        return f"{name} {address} is no unicast address of a node"
    if any(network.version == version and address in network for network in node.conf.networks):
        return f"{name} {address} lies inside the pod network"
    return ""


def _bad_data(lease: Lease, version: int) -> str:
    data = data_of(lease, version)
    name = "BackendData" if version == 4 else "BackendV6Data"
    if lease.backend_type == "vxlan":
        if not isinstance(data, dict):
            return f"{name} is missing"
        return "" if parse_mac(data) else f"{name} has no valid unicast VtepMAC"
    if lease.backend_type == "extension" and not isinstance(lease.backend_data, str | None):
        return "BackendData is not a string"
    return ""


def public_name(version: int) -> str:
    """The field's name in a lease."""
    return "PublicIP" if version == 4 else "PublicIPv6"
