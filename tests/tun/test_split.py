import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from tests.tun.fuzz import fuzz_split, split_cases
from tests.tun.packets import (
    ACK,
    CWR,
    ECE,
    FIN,
    MF,
    PSH,
    TCP,
    UDP,
    Packet,
    destination_options,
    naive_split,
    superframe_header,
)
from tun.split import headers, split
from tun.vnet import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHeader

BOTH = [(4, TCP), (4, UDP), (6, TCP), (6, UDP)]


def superframe(**fields: object) -> Packet:
    return replace(Packet(payload=bytes(range(256)) * 20, check="partial"), **fields)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "protocol"), BOTH)
@pytest.mark.parametrize("gso_size", [1, 7, 536, 1398, 5119, 5120, 5121])
def test_segments_equal_the_twin(family: int, protocol: int, gso_size: int) -> None:
    packet = superframe(family=family, protocol=protocol, flags=ACK | PSH | FIN | CWR | ECE)
    assert split(packet.build(), superframe_header(packet, gso_size)) == naive_split(packet, gso_size)


@pytest.mark.slow
@given(
    kind=st.sampled_from(BOTH),
    payload=st.binary(min_size=1, max_size=400),
    gso_size=st.integers(1, 200),
    seq=st.integers(0, 2**32 - 1),
    ident=st.integers(0, 0xFFFF),
    flags=st.integers(0, 0xFF),
    options=st.integers(0, 10).map(lambda words: b"\x01" * 4 * words),
    ip_options=st.integers(0, 10).map(lambda words: b"\x01" * 4 * words),
    tos=st.integers(0, 255),
)
@settings(max_examples=300)
def test_split_equals_its_twin(kind: tuple[int, int], gso_size: int, **fields: object) -> None:
    packet = superframe(family=kind[0], protocol=kind[1], **fields)
    assert split(packet.build(), superframe_header(packet, gso_size)) == naive_split(packet, gso_size)


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_scapy_agrees_on_every_field(family: int, protocol: int) -> None:
    packet = superframe(family=family, protocol=protocol, flags=ACK | PSH, seq=2**32 - 700, ident=0xFFFE)
    segments = split(packet.build(), superframe_header(packet, 1000))
    assert len(segments) == 6
    for i, segment in enumerate(segments):
        layers = (IP if family == 4 else IPv6)(segment)
        transport = layers.payload
        assert bytes(transport.payload) == packet.payload[i * 1000 : (i + 1) * 1000]
        if protocol == TCP:
            assert transport.seq == (2**32 - 700 + i * 1000) % 2**32
            assert ("P" in transport.flags) == (i == 5)
        else:
            assert transport.len == 8 + len(transport.payload)
            del transport.len
        if family == 4:
            assert layers.id == (0xFFFE + i) & 0xFFFF
            del layers.chksum, layers.len
        else:
            del layers.plen
        del transport.chksum
        assert bytes(layers) == segment


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_extension_headers_stay_in_front(protocol: int) -> None:
    chain = destination_options(43, 1) + bytes([protocol, 0, 4, 0, 0, 0, 0, 0])
    packet = superframe(family=6, protocol=protocol, extension=chain, options=b"", payload=bytes(100))
    assert split(packet.build(), superframe_header(packet, 30)) == naive_split(packet, 30)


def test_routing_header_keeps_the_final_destination_in_the_sum() -> None:
    # A segment routing header with segments left: the sum counts an address that the fixed header does not hold.
    chain = bytes([UDP, 0, 4, 1, 0, 0, 0, 0])
    sent = superframe(family=6, protocol=UDP, payload=bytes(100), destination="2001:db8::99")
    field = sent.build()[46:48]
    routed = replace(sent, destination="", extension=chain, extension_type=43)
    frame = routed.build()
    first = split(frame[:54] + field + frame[56:], superframe_header(routed, 60))[0]
    assert first[54:56] == replace(sent, payload=bytes(60), check="full").build()[46:48]


def test_header_checksum_and_header_length_of_the_superframe_do_not_matter() -> None:
    packet = superframe()
    frame = bytearray(packet.build())
    frame[10:12] = b"\xde\xad"
    header = superframe_header(packet, 1398)._replace(hdr_len=3)
    assert split(bytes(frame), header) == naive_split(packet, 1398)


def test_udp_sum_of_zero_becomes_ffff() -> None:
    packet = superframe(protocol=UDP, payload=bytes(4))
    low = int.from_bytes(replace(packet, payload=bytes(2), check="full").build()[26:28], "big")
    packet = replace(packet, payload=struct.pack("!H", low) * 2)
    segments = split(packet.build(), superframe_header(packet, 2))
    assert [segment[26:28] for segment in segments] == [b"\xff\xff"] * 2


def test_ecn_bit_of_the_type_is_accepted_for_tcp_only() -> None:
    packet = superframe(flags=ACK | CWR)
    header = superframe_header(packet, 1398)
    assert split(packet.build(), header._replace(gso_type=GSO_TCPV4 | GSO_ECN)) == naive_split(packet, 1398)
    datagram = superframe(protocol=UDP)
    with pytest.raises(ValueError, match="superframe"):
        split(datagram.build(), superframe_header(datagram, 1398)._replace(gso_type=GSO_UDP_L4 | GSO_ECN))


def test_headers_are_those_of_the_segments() -> None:
    packet = superframe()
    header = superframe_header(packet, 1398)
    size = packet.header_length
    assert headers(packet.build(), header) == b"".join(s[:size] for s in split(packet.build(), header))


WRONG_HEADERS = [
    {"flags": 0},
    {"gso_type": 0},
    {"gso_type": 3},
    {"gso_type": GSO_TCPV6},
    {"gso_type": GSO_UDP_L4},
    {"gso_size": 0},
    {"csum_start": 0},
    {"csum_start": 16},
    {"csum_start": 24},
    {"csum_start": 0xFFFF},
    {"csum_offset": 6},
]


@pytest.mark.parametrize("change", WRONG_HEADERS)
def test_wrong_virtio_header_is_refused(change: dict[str, int]) -> None:
    packet = superframe()
    with pytest.raises(ValueError, match="not a well-formed superframe"):
        split(packet.build(), superframe_header(packet, 1398)._replace(**change))


WRONG_FRAMES = {
    "version": (0, b"\x55"),
    "header length": (0, b"\x46"),
    "total length": (2, b"\x00\x40"),
    "more fragments": (6, struct.pack("!H", MF)),
    "fragment offset": (6, b"\x00\x01"),
    "protocol": (9, b"\x11"),
    "short data offset": (32, b"\x40"),
}


@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_malformed_frame_is_refused(name: str) -> None:
    offset, value = WRONG_FRAMES[name]
    packet = superframe()
    frame = bytearray(packet.build())
    frame[offset : offset + len(value)] = value
    with pytest.raises(ValueError, match="not a well-formed superframe"):
        split(bytes(frame), superframe_header(packet, 1398))


@pytest.mark.parametrize("extension", [bytes(8), b"\x2c" + bytes(7), b"\x06\xff" + bytes(6), destination_options(UDP)])
def test_wrong_extension_chain_is_refused(extension: bytes) -> None:
    packet = superframe(family=6, extension=extension, options=b"")
    with pytest.raises(ValueError, match="not a well-formed superframe"):
        split(packet.build(), superframe_header(packet, 1398))


def test_long_extension_headers_fit() -> None:
    packet = superframe(family=6, extension=destination_options(TCP, 16), payload=bytes(100))
    assert split(packet.build(), superframe_header(packet, 30)) == naive_split(packet, 30)


def test_headers_beyond_the_limit_are_refused() -> None:
    packet = superframe(family=6, extension=destination_options(TCP, 30), options=b"")
    with pytest.raises(ValueError, match="not a well-formed superframe"):
        split(packet.build(), superframe_header(packet, 1398))


@pytest.mark.parametrize(("family", "protocol"), BOTH)
def test_frame_without_payload_is_refused(family: int, protocol: int) -> None:
    packet = superframe(family=family, protocol=protocol, payload=b"")
    with pytest.raises(ValueError, match="not a well-formed superframe"):
        split(packet.build(), superframe_header(packet, 1398))


@pytest.mark.parametrize("length", [0, 1, 19, 27, 39, 51])
def test_truncated_frame_is_refused(length: int) -> None:
    packet = superframe()
    with pytest.raises(ValueError, match="not a well-formed superframe"):
        split(packet.build()[:length], superframe_header(packet, 1398))


def test_frame_longer_than_ip_is_refused() -> None:
    with pytest.raises(ValueError, match="not a well-formed superframe"):
        split(bytes(65536), VnetHeader(1, 1, 0, 1398, 20, 16))


def test_malformed_input_never_crashes() -> None:
    for case in split_cases(seed=1, count=20_000):
        fuzz_split(case)
