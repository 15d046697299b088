import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tun.vnet import GSO_TCPV4, VNET_NEEDS_CSUM, VnetHeader

WORD = st.integers(0, 0xFFFF)
BYTE = st.integers(0, 0xFF)


def test_layout_is_ten_bytes_in_machine_order() -> None:
    header = VnetHeader(VNET_NEEDS_CSUM, GSO_TCPV4, 52, 1398, 20, 16)
    fields = [value.to_bytes(2, sys.byteorder) for value in (52, 1398, 20, 16)]
    assert header.emit() == b"\x01\x01" + b"".join(fields)


def test_default_is_a_plain_frame() -> None:
    assert VnetHeader().emit() == bytes(10)


@given(st.builds(VnetHeader, BYTE, BYTE, WORD, WORD, WORD, WORD))
def test_emit_and_parse_agree(header: VnetHeader) -> None:
    assert VnetHeader.parse(header.emit() + b"frame") == header


def test_short_header_is_refused() -> None:
    with pytest.raises(ValueError, match="10 bytes, got 9"):
        VnetHeader.parse(bytes(9))


def test_field_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="out of range"):
        VnetHeader(gso_size=0x10000).emit()
