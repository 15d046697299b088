"""Compile-time half of the prefix table: overlapping prefixes to disjoint intervals. Pure, any family, plain integers.

A prefix here is `(first address, prefix length, last address, value)`. Sorted ascending, a covering prefix comes before
the prefixes inside it; prefixes nest or are disjoint, they never cross, so a stack of open prefixes is enough.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

NO_VALUE = 0xFFFFFFFF
"""The value of an interval that no prefix covers (NO_ROUTE in fib.pxd); not a legal value of an entry."""

Prefix = tuple[int, int, int, int]
Entry = tuple[IPv4Network | IPv6Network | str, int]


def read_entries(entries: Iterable[Entry]) -> tuple[list[Prefix], list[Prefix]]:
    """Sorted prefixes of both families, (IPv4, IPv6). Raises ValueError naming the entry that cannot be used."""
    families: dict[int, dict[tuple[int, int], int]] = {4: {}, 6: {}}
    for given, value in entries:
        network = ip_network(given) if isinstance(given, str) else given
        if not 0 <= value < NO_VALUE:
            raise ValueError(f"{network}: value {value} is not in 0..0xfffffffe")
        family = families[network.version]
        key = (int(network.network_address), network.prefixlen)
        if key in family:
            raise ValueError(f"{network} is given twice; the later entry (value {value}) is refused")
        family[key] = value
    return list(sorted_prefixes(families[4], 32)), list(sorted_prefixes(families[6], 128))


def sorted_prefixes(family: dict[tuple[int, int], int], bits: int) -> Iterator[Prefix]:
    for (first, length), value in sorted(family.items()):
        yield first, length, first + (1 << (bits - length)) - 1, value


def flatten(
    prefixes: Iterable[Prefix], last_address: int, first_address: int = 0, outside: int = NO_VALUE
) -> tuple[list[int], list[int]]:
    """Intervals (starts, values) covering `first_address`..`last_address`: starts ascend, equal neighbours are merged.

    `prefixes` are sorted and lie in there; what none of them covers has the value `outside`. `open_prefixes` is the
    chain of (last address, value) that cover the current address, innermost at the end; where the innermost one ends,
    the next outer one is in force again.
    """
    starts, values = [first_address], [outside]
    open_prefixes: list[tuple[int, int]] = []

    def begin(first: int, value: int) -> None:
        if starts[-1] == first:
            starts.pop()
            values.pop()
        if not values or values[-1] != value:
            starts.append(first)
            values.append(value)

    def close_innermost() -> None:
        last, _ = open_prefixes.pop()
        begin(last + 1, open_prefixes[-1][1] if open_prefixes else outside)

    for first, _, last, value in prefixes:
        while open_prefixes and open_prefixes[-1][0] < first:
            close_innermost()
        begin(first, value)
        open_prefixes.append((last, value))
    while open_prefixes and open_prefixes[-1][0] < last_address:
        close_innermost()
    return starts, values
