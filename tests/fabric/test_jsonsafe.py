"""The hardened loader agrees with `json` on good text and refuses what `json` lets through."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import jsonsafe

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=40,
)


@pytest.mark.slow
@given(VALUES)
def test_agrees_with_json_on_good_text(value: object) -> None:
    assert jsonsafe.loads(json.dumps(value)) == value
    assert jsonsafe.loads(jsonsafe.dumps(value)) == value


@given(st.binary(max_size=300) | st.text(alphabet='[]{}":,\\0e-1 ntf', max_size=300))
def test_anything_is_a_value_or_a_json_error(data: bytes | str) -> None:
    with contextlib.suppress(jsonsafe.JsonError):
        jsonsafe.loads(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 32"),
        ('{"a":' * 5_000, "nested deeper than 32"),
        ("NaN", "NaN is not a JSON number"),
        ("-Infinity", "-Infinity is not a JSON number"),
        ("1e999", "a number is too large"),
        ("[-1e999]", "a number is too large"),
        ("9" * 5_000, "an integer of 5000 digits is too large"),
        ('{"a":1,"a":2}', "key 'a' is given twice"),
        ('{"b":{"a":1,"a":2}}', "key 'a' is given twice"),
        (b"\xff", "not UTF-8 at byte 0"),
        (" " * 2_000_000, "2000000 bytes are more than the limit of 1048576"),
        ("", "Expecting value (line 1, column 1)"),
    ],
)
def test_refusals(text: str | bytes, message: str) -> None:
    with pytest.raises(jsonsafe.JsonError) as error:
        jsonsafe.loads(text)
    assert str(error.value) == message


def test_brackets_in_strings_are_not_nesting() -> None:
    text = json.dumps(["[" * 100, 'quote " and [[', "\\"])
    assert jsonsafe.loads(text) == json.loads(text)


def test_keys_are_folded_and_the_later_wins() -> None:
    assert jsonsafe.fold_keys({"Network": 1, "NETWORK": 2}) == {"network": 2}
