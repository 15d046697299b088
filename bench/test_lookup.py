"""Longest prefix match, from one peer to 10,000 prefixes; addresses in an order that no cache can guess."""

from collections.abc import Callable

import pytest

from bench import data, hot

SIZES = [1, 10, 100, 1_000, 10_000]


@pytest.mark.benchmark(group="lookup")
@pytest.mark.parametrize("prefixes", SIZES)
def test_lookup_ipv4(measure: Callable[..., None], prefixes: int) -> None:
    fib, addresses = data.prefixes(prefixes), data.addresses4(prefixes)
    measure(lambda n: hot.loop_lookup4(fib, addresses, n))


@pytest.mark.benchmark(group="lookup")
@pytest.mark.parametrize("prefixes", SIZES)
def test_lookup_ipv6(measure: Callable[..., None], prefixes: int) -> None:
    fib, addresses = data.prefixes6(prefixes), data.addresses6(prefixes)
    measure(lambda n: hot.loop_lookup6(fib, addresses, n))
