"""Which subnet this node takes: flannel's rules as a pure function of the leases that exist.

Source: flannel `pkg/subnet/etcd/local_manager.go` (tryAcquireLease, allocateSubnet). Order: the lease that already has
our public IP, else the subnet we had before (subnet.env), else a random one of the first 100 that are free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from fabric.config import NetConf, SubnetRange
from fabric.errors import LeaseError
from fabric.model import Address, Lease, Network

CANDIDATES = 100
Choose = Callable[[Sequence[Network]], Network]


@dataclass(frozen=True, slots=True)
class Choice:
    """The subnets to take. `existing` is our lease when it can go on; `obsolete` are our leases that have to go."""

    subnet: IPv4Network | None
    ipv6_subnet: IPv6Network | None
    existing: Lease | None = None
    obsolete: tuple[Lease, ...] = ()


def owned(leases: Iterable[Lease], public: Sequence[Address]) -> list[Lease]:
    """The leases that carry one of our public addresses, oldest first. A lease with our PublicIP is ours."""
    mine = [lease for lease in leases if lease.public_ip in public or lease.public_ipv6 in public]
    return sorted(mine, key=lambda lease: (lease.revision, lease.key))


def choose(
    conf: NetConf, leases: Sequence[Lease], public: Sequence[Address], previous: Sequence[Network], pick: Choose
) -> Choice:
    """Decide which subnets to take; `pick` chooses one of the candidates (random in the daemon).

    Raises LeaseError `out of subnets` when nothing is free between SubnetMin and SubnetMax.
    """
    mine = owned(leases, public)
    fitting = [lease for lease in mine if fits(conf, lease)]
    if fitting:
        keep = fitting[0]
        return Choice(keep.subnet, keep.ipv6_subnet, keep, tuple(lease for lease in mine if lease is not keep))
    others = [lease for lease in leases if lease not in mine]
    subnet = _take(conf.ipv4, [lease.subnet for lease in others], previous, pick)
    ipv6_subnet = _take(conf.ipv6, [lease.ipv6_subnet for lease in others], previous, pick)
    assert subnet is None or isinstance(subnet, IPv4Network)
    assert ipv6_subnet is None or isinstance(ipv6_subnet, IPv6Network)
    return Choice(subnet, ipv6_subnet, None, tuple(mine))


def fits(conf: NetConf, lease: Lease) -> bool:
    """Whether the lease's subnets are ones that `conf` would hand out."""
    pairs: tuple[tuple[SubnetRange | None, Network | None], ...] = (
        (conf.ipv4, lease.subnet),
        (conf.ipv6, lease.ipv6_subnet),
    )
    return all(subnet is None if limits is None else subnet and limits.holds(subnet) for limits, subnet in pairs)


def _take(
    limits: SubnetRange | None, taken: Iterable[Network | None], previous: Sequence[Network], pick: Choose
) -> Network | None:
    if limits is None:
        return None
    busy = _Busy(limits, taken)
    for subnet in previous:
        if limits.holds(subnet) and not busy.covers(int(subnet.network_address)):
            return subnet
    free = busy.first_free(CANDIDATES)
    if not free:
        raise LeaseError(
            f"out of subnets: every /{limits.subnet_len} of {limits.network} is leased; "
            "make Network larger or SubnetLen longer, or remove leases of dead nodes"
        )
    return pick(free)


class _Busy:
    """The taken slots of one range, as slot numbers; leases of other lengths cover every slot they touch."""

    def __init__(self, limits: SubnetRange, taken: Iterable[Network | None]) -> None:
        self._limits = limits
        self._ranges: list[tuple[int, int]] = []
        self._slots: set[int] = set()
        for network in taken:
            if network is None or network.version != limits.network.version:
                continue
            first = int(network.network_address)
            if network.prefixlen == limits.subnet_len:
                self._slots.add(first)
            else:
                self._ranges.append((first, first + network.num_addresses - 1))

    def covers(self, start: int) -> bool:
        """Whether the subnet that begins at `start` overlaps something taken."""
        end = start + self._limits.step - 1
        return start in self._slots or any(first <= end and start <= last for first, last in self._ranges)

    def first_free(self, count: int) -> list[Network]:
        """Up to `count` free subnets in address order. The walk is bounded by the leases, not by the range."""
        result: list[Network] = []
        make = IPv6Network if self._limits.network.version == 6 else IPv4Network
        start = self._limits.minimum
        while start <= self._limits.maximum and len(result) < count:
            if not self.covers(start):
                result.append(make((start, self._limits.subnet_len)))
                start += self._limits.step
            else:
                start = self._after(start)
        return result

    def _after(self, start: int) -> int:
        # A lease wider than a slot is left in one step: a stray huge one must not make the walk long.
        end = start + self._limits.step - 1
        ends = [last for first, last in self._ranges if first <= end and start <= last]
        behind = max([end, *ends]) + 1
        return -(-behind // self._limits.step) * self._limits.step
