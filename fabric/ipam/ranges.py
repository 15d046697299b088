"""Which addresses may be handed out, and in which order. Pure. Source: host-local `backend/allocator/range.go`,
`range_set.go` and `allocator.go` (RangeIter).

A *range* is a run of addresses of one subnet; a *range set* is a list of ranges of one family, from which one address
is taken per attachment. Addresses go round: the search begins behind the last one handed out, so that an address rests
as long as possible before it is used again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, NamedTuple

from fabric.jsonsafe import fold_keys

Address = IPv4Address | IPv6Address  # as in fabric.model, whose import would cost the plugin some milliseconds
Network = IPv4Network | IPv6Network
_LENGTH = re.compile(r"[0-9]{1,4}")


class Range(NamedTuple):
    """Addresses `start` to `end`, both included. The gateway is never handed out, wherever it lies."""

    subnet: Network
    start: Address
    end: Address
    gateway: Address

    def holds(self, address: Address) -> bool:
        return address in self.subnet and int(self.start) <= int(address) <= int(self.end)

    def overlaps(self, other: Range) -> bool:
        """Whether an address lies in both."""
        same_family = self.subnet.version == other.subnet.version
        return same_family and int(self.start) <= int(other.end) and int(other.start) <= int(self.end)

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


class RangeSet(NamedTuple):
    """Ranges of one family that do not overlap; at least one."""

    ranges: tuple[Range, ...]

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.ranges[0].subnet.version

    def holds(self, address: Address) -> bool:
        return any(item.holds(address) for item in self.ranges)

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))

    def range_of(self, address: Address) -> Range | None:
        """The range that holds `address`."""
        return next((item for item in self.ranges if item.holds(address)), None)

    def overlaps(self, other: RangeSet) -> bool:
        """Whether an address lies in both."""
        return any(one.overlaps(two) for one in self.ranges for two in other.ranges)

    def candidates(self, last: Address | None) -> Iterator[tuple[Address, Range]]:
        """Every address but the gateways, once each, in the order in which they are tried.

        The walk begins behind `last` and wraps; with no `last`, or one outside the set, at the first range's start.
        """
        first = next((index for index, item in enumerate(self.ranges) if last is not None and item.holds(last)), None)
        if last is None or first is None:
            for item in self.ranges:
                yield from _walk(item, int(item.start), int(item.end))
            return
        begun = self.ranges[first]
        yield from _walk(begun, int(last) + 1, int(begun.end))
        for item in (*self.ranges[first + 1 :], *self.ranges[:first]):
            yield from _walk(item, int(item.start), int(item.end))
        yield from _walk(begun, int(begun.start), int(last))


def _walk(item: Range, first: int, last: int) -> Iterator[tuple[Address, Range]]:
    make = IPv4Address if item.subnet.version == 4 else IPv6Address
    for number in range(first, last + 1):
        address = make(number)
        if address != item.gateway:
            yield address, item


def parse_address(text: str) -> Address:
    """An address as Go's `net.ParseIP` takes it: no zone, and an IPv4 address in IPv6 form is the IPv4 address.

    Raises ValueError.
    """
    try:
        address = ip_address(str(text))  # a number in JSON is not an address
    except ValueError:
        raise ValueError(f"invalid IP address: {ascii(text)[:60]}") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"invalid IP address: {ascii(text)[:60]}")
        return address.ipv4_mapped or address
    return address


def parse_requested(text: str) -> Address:
    """`ADDRESS` or `ADDRESS/LENGTH`; the length must be possible and is not used. Raises ValueError."""
    host, slash, length = text.partition("/")
    longest = 128 if ":" in host else 32
    if slash and not (_LENGTH.fullmatch(length) and int(length) <= longest):
        raise ValueError(f"invalid CIDR address: {ascii(text)[:60]}")
    return parse_address(host)


def parse_prefix(text: str) -> tuple[Address, int]:
    """`ADDRESS/LENGTH`, the address with its host bits. Raises ValueError, also for a netmask or a missing length."""
    host, slash, length = text.partition("/")
    address = parse_requested(text)
    if not slash or (address.version == 4 and ":" in host):
        raise ValueError(f"invalid CIDR address: {ascii(text)[:60]}")
    return address, int(length)


def parse_range_set(items: Any) -> RangeSet:
    """A list of ranges as in the configuration's `ranges`. Raises ValueError with one line."""
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        raise ValueError("empty range set")
    ranges = tuple(parse_range(item) for item in items)
    if len({item.subnet.version for item in ranges}) > 1:
        raise ValueError("mixed address families")
    for index, one in enumerate(ranges):
        for two in ranges[index + 1 :]:
            if one.overlaps(two):
                raise ValueError(f"subnets {one} and {two} overlap")
    return RangeSet(ranges)


def parse_range(item: Any) -> Range:
    """One range: `subnet`, and optionally `rangeStart`, `rangeEnd`, `gateway`. Raises ValueError with one line.

    By default a range is the whole subnet without the network address and, for IPv4, the broadcast address, and the
    gateway is the first address. Ends that are given may include those two, as in the reference plugin.
    """
    if not isinstance(item, Mapping):
        raise ValueError("a range is not a JSON object")
    fields = fold_keys(dict(item))
    subnet = _parse_subnet(fields.get("subnet"))
    gateway = _optional(fields, "gateway") or subnet[1]
    start = _optional(fields, "rangestart") or subnet[1]
    if start not in subnet:
        raise ValueError(f"RangeStart {start} not in network {subnet}")
    end = _optional(fields, "rangeend") or subnet[-2 if subnet.version == 4 else -1]
    if end not in subnet or int(end) < int(start):
        raise ValueError(f"RangeEnd {end} not in network {subnet} from {start} on")
    return Range(subnet, start, end, gateway)


def _parse_subnet(value: Any) -> Network:
    if not isinstance(value, str):
        raise ValueError("a range has no subnet")
    address, length = parse_prefix(value)
    if length > address.max_prefixlen - 2:
        raise ValueError(f"Network {value} too small to allocate from")
    make = IPv4Network if address.version == 4 else IPv6Network
    subnet = make((int(address), length), strict=False)
    if subnet.network_address != address:
        network = subnet.network_address
        raise ValueError(
            f"Network has host bits set. For a subnet mask of length {length} the network address is {network}"
        )
    return subnet


def _optional(fields: Mapping[str, Any], name: str) -> Address | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a text")
    return parse_address(value)
