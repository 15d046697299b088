import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.utils import checksum as scapy_checksum

from tests.tun.packets import ACK, PSH, TCP, UDP, Packet, destination_options, inet_sum
from tun.checksum import checksum, finish, state

BOTH = [(4, TCP), (4, UDP), (6, TCP), (6, UDP)]
DATA = st.one_of(st.binary(max_size=80), st.binary(min_size=1390, max_size=1410))


@pytest.mark.slow
@given(DATA)
def test_checksum_agrees_with_scapy_and_the_definition(data: bytes) -> None:
    assert checksum(data) == scapy_checksum(data) == inet_sum(data) ^ 0xFFFF


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 9, 1398, 65534, 65535])
@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"\x80"])
def test_extreme_words_do_not_overflow(size: int, fill: bytes) -> None:
    assert checksum(fill * size) == inet_sum(fill * size) ^ 0xFFFF


@given(st.binary(min_size=1, max_size=300), st.integers(0, 15))
def test_alignment_does_not_matter(data: bytes, shift: int) -> None:
    buffer = bytearray(shift) + data
    assert checksum(memoryview(buffer)[shift:]) == checksum(data)


@pytest.mark.parametrize(("family", "protocol"), BOTH)
@pytest.mark.parametrize("size", [0, 1, 5, 1398])
def test_packets_of_the_tests_agree_with_scapy(family: int, protocol: int, size: int) -> None:
    frame = Packet(family, protocol, bytes(range(256)) * 6)
    frame = replace(frame, payload=frame.payload[:size])
    layers = (IP if family == 4 else IPv6)(frame.build())
    transport = layers.payload
    del transport.chksum
    if family == 4:
        del layers.chksum
    assert bytes(layers) == frame.build()


@pytest.mark.parametrize(("family", "protocol"), BOTH)
@pytest.mark.parametrize(("check", "expected"), [("full", "good"), ("bad", "bad"), ("partial", "partial")])
def test_state_of_each_kind(family: int, protocol: int, check: str, expected: str) -> None:
    frame = Packet(family, protocol, b"payload", check=check)
    assert state(frame.build(), frame.l4) == expected


def test_udp_without_checksum() -> None:
    assert state(Packet(4, UDP, b"x", check="zero").build(), 20) == "none"
    assert state(Packet(6, UDP, b"x", check="zero").build(), 40) == "bad"


def test_state_behind_options_and_extension_headers() -> None:
    assert state(Packet(4, TCP, b"x", ip_options=b"\x01\x01\x01\x00").build(), 24) == "good"
    # The protocol is read from the fixed header, so only the C core verifies behind extension headers.
    behind = Packet(6, UDP, b"x", extension=destination_options(UDP))
    with pytest.raises(ValueError, match="neither TCP"):
        state(behind.build(), behind.l4)


@pytest.mark.parametrize(
    ("packet", "l4"),
    [(b"", 20), (b"\x45" + bytes(10), 20), (b"\x60" + bytes(30), 40), (b"\x35" + bytes(40), 20), (bytes(60), 20)],
)
def test_state_refuses_what_is_no_packet(packet: bytes, l4: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        state(packet, l4)


@pytest.mark.parametrize("udp_length", [0, 7, 17, 0xFFFF])
def test_udp_length_beyond_the_packet_is_bad(udp_length: int) -> None:
    frame = Packet(4, UDP, b"12345678").build()
    frame = frame[:24] + struct.pack("!H", udp_length) + frame[26:]
    assert state(frame, 20) == "bad"


@given(st.sampled_from(BOTH), st.binary(max_size=64), st.integers(0, 2**32 - 1))
def test_finish_makes_a_partial_packet_good(kind: tuple[int, int], payload: bytes, seq: int) -> None:
    frame = Packet(*kind, payload, seq=seq, flags=ACK | PSH)
    partial = replace(frame, check="partial").build()
    assert finish(partial, frame.l4, 16 if kind[1] == TCP else 6) == frame.build()


def test_finish_stores_ffff_for_a_udp_sum_of_zero() -> None:
    frame = Packet(4, UDP, b"\0\0")
    missing = inet_sum(b"".join(frame.addresses()) + struct.pack("!II", UDP, 10) + frame.build()[20:26])
    frame = replace(frame, payload=struct.pack("!H", missing ^ 0xFFFF))
    assert finish(replace(frame, check="partial").build(), 20, 6)[26:28] == b"\xff\xff"
    assert state(frame.build(), 20) == "good"


@pytest.mark.parametrize(("start", "offset"), [(0, 59), (59, 0), (60, 16), (70000, 6), (-1, 6), (20, -1)])
def test_finish_never_writes_outside(start: int, offset: int) -> None:
    assert finish(bytes(60), start, offset) == bytes(60)
