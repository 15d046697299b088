"""The layer of ranges, the sorted points and the pool of sequences against what they stand for."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.policy.addresses import Layer, Points
from fabric.policy.pool import Pool
from fabric.policy.ranges import Range, joined
from fabric.policy.sets import LAST

RANGE = st.tuples(st.integers(0, 30), st.integers(0, 10)).map(lambda pair: (pair[0], pair[0] + pair[1]))
CHANGES = st.lists(st.tuples(st.integers(1, 4), st.lists(RANGE, max_size=4)), max_size=12)


@pytest.mark.slow
@given(changes=CHANGES, family=st.sampled_from([4, 6]), far=st.booleans())
def test_the_layer_says_where_each_set_lies(changes: list[tuple[int, list[Range]]], family: int, far: bool) -> None:
    """`far`: at the end of all addresses instead of the beginning."""
    offset = LAST[family] - 40 if far else 0
    layer, lies = Layer(family), dict[int, list[Range]]()
    for number, given_ranges in changes:
        ranges = joined((first + offset, last + offset) for first, last in given_ranges)
        before = {address: layer.at(address) for address in range(offset, offset + 41)}
        told = layer.change(number, lies.get(number, []), ranges)
        lies[number] = ranges
        for address in range(offset, offset + 41):
            wanted = [0, *(n for n in sorted(lies) if any(first <= address <= last for first, last in lies[n]))]
            assert layer.at(address) == tuple(wanted)
            assert (before[address] != layer.at(address)) == any(first <= address <= last for first, last in told)
        pairs = list(zip(layer.starts, layer.starts[1:], strict=False))
        assert all(layer.sets[one] != layer.sets[other] for one, other in pairs)
        assert list(layer.starts) == sorted(layer.sets)
        assert not layer.changed & layer.gone


@given(many=st.lists(st.integers(0, LAST[6]), unique=True), few=st.lists(st.integers(0, 9), unique=True))
def test_points_stay_sorted(many: list[int], few: list[int]) -> None:
    points = Points(6)
    slots = {address: i for i, address in enumerate(many)}
    points.put(slots, [])
    gone = many[::2]
    points.put({address: 1000 + address for address in few if address not in slots}, gone)
    wanted = {a: s for a, s in slots.items() if a not in gone} | {a: 1000 + a for a in few if a not in slots}
    high, low, entries = (array(kind, data) for kind, data in zip("QQI", points.pack(), strict=True))
    assert [(h << 64 | lo) for h, lo in zip(high, low, strict=True)] == sorted(wanted)
    assert list(entries) == [wanted[address] for address in sorted(wanted)]


@pytest.mark.slow
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 3), max_size=3).map(tuple)), max_size=60))
def test_a_pool_uses_what_it_has(steps: list[tuple[bool, tuple[int, ...]]]) -> None:
    pool: Pool[int] = Pool([])
    held: dict[tuple[int, ...], int] = {}
    for take, sequence in steps:
        if take:
            place = pool.take(sequence)
            held[sequence] = held.get(sequence, 0) + 1
            assert tuple(pool.items[place : place + len(sequence)]) == sequence
        elif held.get(sequence):
            pool.release(sequence)
            held[sequence] -= 1
        live = sum(len(sequence) for sequence, uses in held.items() if uses)
        assert (pool.live, pool.live + pool.free) == (live, len(pool.items))
