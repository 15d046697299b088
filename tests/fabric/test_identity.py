"""What differs between two tuples, by identity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.identity import differing, ends

POOL = [[number // 2] for number in range(10)]  # equal in pairs, never the same
tuples = st.lists(st.sampled_from(range(10))).map(lambda numbers: tuple(POOL[number] for number in numbers))


@pytest.mark.slow
@given(tuples, tuples)
def test_twin(old: tuple[list[int], ...], new: tuple[list[int], ...]) -> None:
    gone, come = differing(old, new)
    front, back = ends(old, new)
    middle_old, middle_new = old[front : len(old) - back], new[front : len(new) - back]
    assert list(map(id, gone)) == [id(item) for item in middle_old if id(item) not in set(map(id, middle_new))]
    assert list(map(id, come)) == [id(item) for item in middle_new if id(item) not in set(map(id, middle_old))]
    assert all(a is b for a, b in zip(old[:front], new[:front], strict=True))
    assert back == 0 or all(a is b for a, b in zip(old[-back:], new[-back:], strict=True))


@given(tuples, st.integers(0, 30), st.integers(0, 5), st.lists(st.integers()))
def test_one_change_is_found_in_its_place(
    base: tuple[list[int], ...], place: int, count: int, values: list[int]
) -> None:
    new = (*base[:place], *([value] for value in values), *base[place + count :])
    front, back = ends(base, new)
    assert front >= min(place, len(base))
    assert len(new) - front - back <= len(values)
