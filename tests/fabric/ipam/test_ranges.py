"""Which addresses may be handed out, and in which order."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.ipam.ranges import (
    Address,
    Range,
    RangeSet,
    parse_address,
    parse_prefix,
    parse_range,
    parse_range_set,
    parse_requested,
)
from tests.fabric.ipam.calm import CALM

FILLED_IN = [
    ({"subnet": "10.244.1.0/24"}, "10.244.1.1", "10.244.1.254", "10.244.1.1"),
    ({"subnet": "10.244.1.0/30"}, "10.244.1.1", "10.244.1.2", "10.244.1.1"),
    ({"subnet": "10.0.0.0/8"}, "10.0.0.1", "10.255.255.254", "10.0.0.1"),
    ({"subnet": "2001:db8::/64"}, "2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", "2001:db8::1"),
    ({"subnet": "2001:db8::/126"}, "2001:db8::1", "2001:db8::3", "2001:db8::1"),
    ({"subnet": "10.244.1.0/24", "gateway": "10.244.1.254"}, "10.244.1.1", "10.244.1.254", "10.244.1.254"),
    ({"subnet": "10.244.1.0/24", "gateway": "192.0.2.1"}, "10.244.1.1", "10.244.1.254", "192.0.2.1"),
    ({"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9"}, "10.244.1.9", "10.244.1.254", "10.244.1.1"),
    ({"subnet": "10.244.1.0/24", "rangeEnd": "10.244.1.9"}, "10.244.1.1", "10.244.1.9", "10.244.1.1"),
    ({"subnet": "10.244.1.0/24", "rangeStart": "", "gateway": None}, "10.244.1.1", "10.244.1.254", "10.244.1.1"),
    ({"SUBNET": "10.244.1.0/24", "RangeStart": "10.244.1.9"}, "10.244.1.9", "10.244.1.254", "10.244.1.1"),
    # Ends that are given may be the network and the broadcast address.
    (
        {"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.0", "rangeEnd": "10.244.1.255"},
        *("10.244.1.0", "10.244.1.255", "10.244.1.1"),
    ),
    ({"subnet": "10.244.1.0/24", "rangeStart": "::ffff:10.244.1.9"}, "10.244.1.9", "10.244.1.254", "10.244.1.1"),
]


@pytest.mark.parametrize(("item", "start", "end", "gateway"), FILLED_IN)
def test_a_range_is_filled_in(item: dict[str, Any], start: str, end: str, gateway: str) -> None:
    found = parse_range(item)
    assert (str(found.start), str(found.end), str(found.gateway)) == (start, end, gateway)


REFUSED = [
    ({}, "a range has no subnet"),
    ({"subnet": None}, "a range has no subnet"),
    ({"subnet": 5}, "a range has no subnet"),
    (5, "a range is not a JSON object"),
    ("10.244.1.0/24", "a range is not a JSON object"),
    ({"subnet": ""}, "invalid IP address: ''"),
    ({"subnet": "10.244.1.0"}, "invalid CIDR address: '10.244.1.0'"),
    ({"subnet": "10.244.1.0/33"}, "invalid CIDR address: '10.244.1.0/33'"),
    ({"subnet": "10.244.1.0/255.255.255.0"}, "invalid CIDR address: '10.244.1.0/255.255.255.0'"),
    ({"subnet": "::ffff:10.244.1.0/120"}, "invalid CIDR address: '::ffff:10.244.1.0/120'"),
    ({"subnet": "10.244.1.0/31"}, "Network 10.244.1.0/31 too small to allocate from"),
    ({"subnet": "10.244.1.0/32"}, "Network 10.244.1.0/32 too small to allocate from"),
    ({"subnet": "2001:db8::/127"}, "Network 2001:db8::/127 too small to allocate from"),
    ({"subnet": "2001:db8::/128"}, "Network 2001:db8::/128 too small to allocate from"),
    (
        {"subnet": "10.244.1.5/24"},
        "Network has host bits set. For a subnet mask of length 24 the network address is 10.244.1.0",
    ),
    ({"subnet": "10.244.1.0/24", "rangeStart": "10.244.2.1"}, "RangeStart 10.244.2.1 not in network 10.244.1.0/24"),
    ({"subnet": "10.244.1.0/24", "rangeStart": "2001:db8::1"}, "RangeStart 2001:db8::1 not in network 10.244.1.0/24"),
    (
        {"subnet": "10.244.1.0/24", "rangeEnd": "10.244.2.1"},
        "RangeEnd 10.244.2.1 not in network 10.244.1.0/24 from 10.244.1.1 on",
    ),
    (
        {"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9", "rangeEnd": "10.244.1.8"},
        "RangeEnd 10.244.1.8 not in network 10.244.1.0/24 from 10.244.1.9 on",
    ),
    ({"subnet": "10.244.1.0/24", "gateway": "fe80::1%eth0"}, "invalid IP address: 'fe80::1%eth0'"),
    ({"subnet": "10.244.1.0/24", "gateway": "one\nline"}, r"invalid IP address: 'one\nline'"),
    ({"subnet": "10.244.1.0/24", "gateway": 7}, "gateway is not a text"),
]


@pytest.mark.parametrize(("item", "reason"), REFUSED)
def test_a_bad_range_is_refused_with_one_line(item: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_range(item)
    assert str(error.value) == reason


REFUSED_SETS = [
    ([], "empty range set"),
    (None, "empty range set"),
    ("pods", "empty range set"),
    ([{"subnet": "10.244.1.0/24"}, {"subnet": "2001:db8::/64"}], "mixed address families"),
    (
        [{"subnet": "10.244.0.0/16"}, {"subnet": "10.244.1.0/24"}],
        "subnets 10.244.0.1-10.244.255.254 and 10.244.1.1-10.244.1.254 overlap",
    ),
    (
        [
            {"subnet": "10.244.1.0/24", "rangeEnd": "10.244.1.9"},
            {"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9"},
        ],
        "subnets 10.244.1.1-10.244.1.9 and 10.244.1.9-10.244.1.254 overlap",
    ),
]


@pytest.mark.parametrize(("items", "reason"), REFUSED_SETS)
def test_a_bad_range_set_is_refused_with_one_line(items: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_range_set(items)
    assert str(error.value) == reason


def test_ranges_of_one_subnet_may_follow_each_other() -> None:
    first = {"subnet": "10.244.1.0/24", "rangeEnd": "10.244.1.9"}
    second = {"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.10"}
    assert str(parse_range_set([first, second])) == "10.244.1.1-10.244.1.9,10.244.1.10-10.244.1.254"


TWO = parse_range_set([{"subnet": "10.244.1.0/29", "gateway": "10.244.1.3"}, {"subnet": "10.244.9.0/30"}])
ORDERS = [
    (None, "1.1 1.2 1.4 1.5 1.6 9.2"),
    ("192.0.2.1", "1.1 1.2 1.4 1.5 1.6 9.2"),  # a hint of another configuration
    ("2001:db8::1", "1.1 1.2 1.4 1.5 1.6 9.2"),
    ("10.244.1.1", "1.2 1.4 1.5 1.6 9.2 1.1"),
    ("10.244.1.2", "1.4 1.5 1.6 9.2 1.1 1.2"),
    ("10.244.1.3", "1.4 1.5 1.6 9.2 1.1 1.2"),
    ("10.244.1.6", "9.2 1.1 1.2 1.4 1.5 1.6"),
    ("10.244.9.2", "1.1 1.2 1.4 1.5 1.6 9.2"),
    ("10.244.9.1", "9.2 1.1 1.2 1.4 1.5 1.6"),
]


@pytest.mark.parametrize(("last", "order"), ORDERS)
def test_candidates_go_round(last: str | None, order: str) -> None:
    found = [address for address, _ in TWO.candidates(ip_address(last) if last else None)]
    assert found == [ip_address(f"10.244.{item}") for item in order.split()]


def test_a_range_of_only_the_gateway_has_no_candidates() -> None:
    only = parse_range_set([{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.1", "rangeEnd": "10.244.1.1"}])
    assert list(only.candidates(None)) == list(only.candidates(ip_address("10.244.1.1"))) == []


def test_a_huge_range_is_walked_lazily() -> None:
    large = parse_range_set([{"subnet": "2001:db8::/64"}])
    last = ip_address("2001:db8::ffff:ffff:ffff:fffe")
    walk = large.candidates(last)
    assert [str(next(walk)[0]) for _ in range(3)] == ["2001:db8::ffff:ffff:ffff:ffff", "2001:db8::2", "2001:db8::3"]


@st.composite
def range_sets(draw: st.DrawFn) -> RangeSet:
    """Ranges in subnets next to each other, with any ends and any gateway."""
    ranges = []
    for number in range(draw(st.integers(1, 3))):
        subnet = ip_network(f"10.244.1.{number * 16}/28")
        ends = sorted(draw(st.lists(st.integers(0, 15), min_size=2, max_size=2)))
        ranges.append(Range(subnet, subnet[ends[0]], subnet[ends[1]], subnet[draw(st.integers(0, 15))]))
    return RangeSet(tuple(ranges))


@CALM
@given(range_sets(), st.integers(0, 47).map(lambda number: ip_network("10.244.1.0/24")[number]))
def test_candidates_agree_with_a_naive_twin(ranges: RangeSet, last: Address) -> None:
    """The twin steps an index through a list of all addresses."""
    everything = [(item.subnet[0] + offset, item) for item in ranges.ranges for offset in range(16)]
    usable = [(address, item) for address, item in everything if item.start <= address <= item.end]  # type: ignore[operator]
    places = [index for index, (address, _) in enumerate(usable) if address == last]
    begin = places[0] + 1 if places else 0
    naive = [usable[(begin + step) % len(usable)] for step in range(len(usable))]
    expected = [(address, item) for address, item in naive if address != item.gateway]
    assert list(ranges.candidates(last)) == expected
    assert ranges.holds(last) == bool(places)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10.244.1.5", "10.244.1.5"), ("2001:DB8:0::5", "2001:db8::5"), ("::ffff:10.244.1.5", "10.244.1.5"), ("::", "::")],
)
def test_addresses_are_parsed_as_go_does(text: str, expected: str) -> None:
    assert str(parse_address(text)) == expected


@pytest.mark.parametrize("text", ["", "10.244.1.05", "10.244.1", "5", "fe80::1%lo", " ::1", "::1\n", "\u0661.1.1.1"])
def test_no_other_addresses_are_parsed(text: str) -> None:
    with pytest.raises(ValueError, match=r"^invalid IP address: "):
        parse_address(text)


def test_requested_addresses_may_carry_a_length() -> None:
    assert str(parse_requested("::ffff:10.244.1.5/100")) == "10.244.1.5"
    assert parse_prefix("10.244.1.5/16") == (ip_address("10.244.1.5"), 16)
    for text in ("10.244.1.5/33", "10.244.1.5/", "10.244.1.5/-1", "2001:db8::/129", "10.244.1.5/99999999999"):
        with pytest.raises(ValueError, match=r"^invalid CIDR address: "):
            parse_requested(text)
