"""Which subnet a node takes: flannel's rules, compared with a naive twin."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import allocation, config
from fabric.errors import LeaseError
from fabric.leases import key_of
from fabric.model import Lease, Network

CONF = config.parse(config.DEFAULT_TEXT)
SMALL = config.parse('{"Network":"10.244.0.0/24","SubnetLen":28,"Backend":{"Type":"vxlan"}}')
DUAL = config.parse(
    '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/56","Backend":{"Type":"vxlan"}}'
)
OURS = (ip_address("192.0.2.1"),)


def lease(subnet: str, public: str, revision: int = 1, v6: str = "") -> Lease:
    first, second = IPv4Network(subnet), IPv6Network(v6) if v6 else None
    return Lease(first, second, IPv4Address(public), None, "vxlan", revision=revision, key=key_of(first, second))


def first(candidates: Sequence[Network]) -> Network:
    return candidates[0]


def test_the_first_subnet_is_skipped() -> None:
    assert allocation.choose(CONF, [], OURS, (), first).subnet == IPv4Network("10.244.1.0/24")


def test_the_choice_is_among_the_first_hundred_that_are_free() -> None:
    seen: list[Network] = []

    def pick(candidates: Sequence[Network]) -> Network:
        seen.extend(candidates)
        return seen[-1]

    taken = [lease(f"10.244.{number}.0/24", f"192.0.2.{number}") for number in range(2, 12)]
    chosen = allocation.choose(CONF, taken, OURS, (), pick)
    assert len(seen) == 100
    assert str(seen[0]) == "10.244.1.0/24"
    assert str(seen[1]) == "10.244.12.0/24"
    assert chosen.subnet == IPv4Network("10.244.110.0/24")


def test_our_lease_is_kept_whoever_else_there_is() -> None:
    mine = lease("10.244.9.0/24", "192.0.2.1")
    choice = allocation.choose(CONF, [lease("10.244.1.0/24", "192.0.2.2"), mine], OURS, (), first)
    assert (choice.subnet, choice.existing, choice.obsolete) == (mine.subnet, mine, ())


def test_our_lease_outside_the_range_is_replaced() -> None:
    old = lease("10.9.9.0/24", "192.0.2.1")
    choice = allocation.choose(CONF, [old], OURS, (), first)
    assert (str(choice.subnet), choice.existing, choice.obsolete) == ("10.244.1.0/24", None, (old,))


def test_of_two_leases_of_ours_the_older_stays() -> None:
    young, old = lease("10.244.3.0/24", "192.0.2.1", 9), lease("10.244.4.0/24", "192.0.2.1", 2)
    choice = allocation.choose(CONF, [young, old], OURS, (), first)
    assert (choice.existing, choice.obsolete) == (old, (young,))


@pytest.mark.parametrize(
    ("previous", "taken", "expected"),
    [
        ("10.244.77.0/24", [], "10.244.77.0/24"),
        ("10.244.77.0/24", ["10.244.77.0/24"], "10.244.1.0/24"),
        ("10.244.77.0/24", ["10.244.76.0/22"], "10.244.1.0/24"),
        ("10.244.77.0/25", [], "10.244.1.0/24"),
        ("10.99.77.0/24", [], "10.244.1.0/24"),
        ("10.244.0.0/24", [], "10.244.1.0/24"),
    ],
)
def test_the_previous_subnet_is_taken_when_free_and_fitting(previous: str, taken: list[str], expected: str) -> None:
    others = [lease(subnet, f"198.51.100.{number}") for number, subnet in enumerate(taken, 1)]
    assert str(allocation.choose(CONF, others, OURS, (IPv4Network(previous),), first).subnet) == expected


def test_a_full_network_is_refused_with_one_line() -> None:
    taken = [lease(f"10.244.0.{number * 16}/28", f"198.51.100.{number}") for number in range(16)]
    with pytest.raises(LeaseError, match=r"^out of subnets: every /28 of 10\.244\.0\.0/24 is leased") as error:
        allocation.choose(SMALL, taken, OURS, (), first)
    assert "\n" not in str(error.value)


def test_dual_stack_takes_one_of_each() -> None:
    choice = allocation.choose(DUAL, [lease("10.244.1.0/24", "192.0.2.2", v6="fd00:0:0:1::/64")], OURS, (), first)
    assert (str(choice.subnet), str(choice.ipv6_subnet)) == ("10.244.2.0/24", "fd00:0:0:2::/64")
    single = lease("10.244.5.0/24", "192.0.2.1")
    assert allocation.choose(DUAL, [single], OURS, (), first).obsolete == (single,)


SUBNETS = st.integers(24, 32).flatmap(
    lambda length: st.integers(0, (1 << (length - 24)) - 1).map(
        lambda number: IPv4Network((int(IPv4Address("10.244.0.0")) + (number << (32 - length)), length))
    )
)


@given(st.lists(SUBNETS, max_size=20))
def test_free_subnets_agree_with_a_naive_twin(taken: list[IPv4Network]) -> None:
    others = [lease(str(subnet), "198.51.100.1") for subnet in taken]
    naive = [
        subnet
        for subnet in IPv4Network("10.244.0.0/24").subnets(new_prefix=28)
        if str(subnet) != "10.244.0.0/28" and not any(subnet.overlaps(other) for other in taken)
    ]
    seen: list[Network] = []

    def pick(candidates: Sequence[Network]) -> Network:
        seen.extend(candidates)
        return seen[0]

    if naive:
        allocation.choose(SMALL, others, OURS, (), pick)
        assert seen == naive
    else:
        with pytest.raises(LeaseError):
            allocation.choose(SMALL, others, OURS, (), pick)
