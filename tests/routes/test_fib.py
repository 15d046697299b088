"""The prefix table against a naive longest-prefix match, and its refusals."""

import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routes.fib import Fib
from routes.prefixes import PrefixSet

Network = IPv4Network | IPv6Network


def naive_lookup(entries: dict[Network, int], address: IPv4Address | IPv6Address) -> int | None:
    covering = [network for network in entries if network.version == address.version and address in network]
    return entries[max(covering, key=lambda network: network.prefixlen)] if covering else None


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Networks that overlap often: few address bits vary, lengths from the default route to host routes."""
    if draw(st.booleans()):
        length = draw(st.integers(0, 32))
        number = draw(st.sampled_from([0, 10 << 24, 0xC0000200, 0xFFFFFF00])) | draw(st.integers(0, 0xFF))
        return IPv4Network((number >> (32 - length) << (32 - length), length))
    length = draw(st.integers(0, 128))
    number = draw(st.sampled_from([0, 0x20010DB8 << 96, (0x20010DB8 << 96) | (1 << 64), (1 << 128) - 256]))
    number |= draw(st.integers(0, 0xFF)) << draw(st.sampled_from([0, 60]))
    return IPv6Network((number >> (128 - length) << (128 - length), length))


def edges(network: Network) -> list[IPv4Address | IPv6Address]:
    """First and last address of a network and their outer neighbours, where an off-by-one would show."""
    first, last = int(network.network_address), int(network.broadcast_address)
    top = (1 << network.max_prefixlen) - 1
    make = IPv4Address if network.version == 4 else IPv6Address
    return [make(number) for number in {first, last, max(first - 1, 0), min(last + 1, top), (first + last) // 2}]


@given(
    entries=st.dictionaries(networks(), st.integers(0, 0xFFFFFFFE), max_size=24),
    more=st.lists(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), max_size=8),
)
def test_agrees_with_naive_longest_prefix_match(
    entries: dict[Network, int], more: list[IPv4Address | IPv6Address]
) -> None:
    fib = Fib(entries.items())

    for address in [*(edge for network in entries for edge in edges(network)), *more]:
        assert fib.lookup(address) == naive_lookup(entries, address), address
    assert len(fib) == len(entries)


@pytest.mark.slow
@given(
    before=st.dictionaries(networks(), st.integers(0, 3), max_size=16),
    changes=st.lists(st.tuples(networks(), st.none() | st.integers(0, 3)), max_size=16),
    at_once=st.booleans(),
)
def test_a_patched_table_is_the_compiled_one(
    before: dict[Network, int], changes: list[tuple[Network, int | None]], at_once: bool
) -> None:
    """Byte for byte, whatever the path: few values, so that intervals merge and part all the time."""
    entries, known, fib = dict(before), PrefixSet(before.items()), Fib(before.items())
    for network, value in changes:
        if value is None:
            entries.pop(network, None)
            known.remove(network)
        else:
            entries[network] = value
            known.set(network, value)
        if not at_once:
            fib = fib.patched(known.window(network))
            assert fib == Fib(entries.items())
            assert len(fib) == len(entries)
    for network, _ in changes:
        fib = fib.patched(known.window(network))
    assert fib == Fib(entries.items())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.244.3.4", 3),  # inside the lease
        ("10.244.3.9", 30),  # host route inside the lease
        ("10.244.4.1", 2),  # only the cluster network
        ("192.0.2.1", 1),  # only the default route
        ("2001:db8:1::1", 6),
        ("2001:db9::", None),  # no IPv6 default route
        ("::ffff:10.244.3.4", None),  # a mapped address is an IPv6 address
    ],
)
def test_longest_prefix_wins(address: str, expected: int | None) -> None:
    fib = Fib(
        [
            ("0.0.0.0/0", 1),
            ("10.244.0.0/16", 2),
            ("10.244.3.0/24", 3),
            ("10.244.3.9/32", 30),
            ("2001:db8:1::/48", 6),
        ]
    )

    assert fib.lookup(address) == expected


def test_empty_table_has_no_routes() -> None:
    fib = Fib([])

    assert (fib.lookup("192.0.2.1"), fib.lookup("2001:db8::1"), len(fib)) == (None, None, 0)
    assert fib.intervals == (1, 1)


def test_adjacent_prefixes_with_one_value_share_an_interval() -> None:
    fib = Fib([("192.0.2.0/25", 7), ("192.0.2.128/25", 7)])

    assert fib.intervals == (3, 1)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("192.0.2.0/24", 1), ("192.0.2.0/24", 2)], r"192\.0\.2\.0/24 is given twice; the later entry \(value 2\)"),
        ([("192.0.2.0/24", 0xFFFFFFFF)], "value 4294967295 is not in"),
        ([("192.0.2.0/24", -1)], "value -1 is not in"),
        ([("192.0.2.1/24", 1)], r"192\.0\.2\.1/24 has host bits set"),
        ([("here", 1)], "'here' does not appear to be an IPv4 or IPv6 network"),
    ],
)
def test_refused_entries_are_named(entries: list[tuple[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fib(entries)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 128])
def test_compiling_ten_thousand_prefixes_is_quick(bits: int) -> None:
    random = Random(bits)
    make = IPv4Network if bits == 32 else IPv6Network
    lengths = [random.randint(12, bits) for _ in range(12_000)]
    drawn = {make((random.getrandbits(bits) >> (bits - n) << (bits - n), n)): n for n in lengths}
    entries = list(drawn.items())[:10_000]
    assert len(entries) == 10_000

    elapsed = []
    for _ in range(3):
        start = time.thread_time()  # our own time: the machine may be busy with something else
        fib = Fib(entries)
        elapsed.append(time.thread_time() - start)

    assert len(fib) == 10_000
    assert min(elapsed) < 0.5  # 0.05 usually; a table that is built in quadratic time takes many seconds


def test_networks_and_their_text_mean_the_same() -> None:
    fib = Fib([(ip_network("198.51.100.0/24"), 5)])

    assert fib.lookup("198.51.100.77") == fib.lookup(ip_address("198.51.100.77")) == 5
