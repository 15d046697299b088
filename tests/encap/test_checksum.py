"""Internet checksum of short headers against a naive one and the examples of RFC 1071."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from encap.checksum import checksum
from tests.encap.naive_inner import ones_sum


def test_example_of_rfc_1071() -> None:
    """Section 3: the words 0001 f203 f4f5 f6f7 sum to ddf2."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2 ^ 0xFFFF


def test_edges() -> None:
    assert checksum(b"") == 0xFFFF
    assert checksum(b"\0" * 20) == 0xFFFF
    assert checksum(b"\xff" * 20) == 0
    assert checksum(b"\x01") == 0xFEFF


@given(st.binary(max_size=2000))
def test_twin(data: bytes) -> None:
    assert checksum(data) == ones_sum(data) ^ 0xFFFF
    assert checksum(bytearray(data)) == checksum(memoryview(data)) == checksum(data)


@given(st.binary(min_size=2, max_size=60).filter(lambda data: len(data) % 2 == 0))
def test_sealed_data_sums_to_zero(data: bytes) -> None:
    assert checksum(data + checksum(data).to_bytes(2, "big")) == 0
