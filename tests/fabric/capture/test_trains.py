"""Trains taken apart: what comes out is what was put together, and nothing else is touched."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from fabric.capture import pcapng
from fabric.capture.trains import split

PORTS = {"vxlan": 8472, "udp": 8285}
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
OUTERS = {4: IP(src="192.0.2.1", dst="192.0.2.2"), 6: IPv6(src="2001:db8::1", dst="2001:db8::2")}


def inner(size: int, six: bool, mark: int) -> bytes:
    head = IPv6(src="2001:db8:42::1", dst="2001:db8:43::1") if six else IP(src="10.244.1.2", dst="10.244.2.2")
    return bytes(head / TCP(dport=80, seq=mark) / bytes(size))


def datagram(outer: int, payload: bytes, port: int = 8472) -> bytes:
    return bytes(ETHER / OUTERS[outer] / UDP(sport=50000, dport=port, chksum=0) / payload)


def train(outer: int, packets: list[bytes], form: str) -> tuple[bytes, list[bytes]]:
    """As the kernel has it, and as the wire does."""
    tunnel = bytes(VXLAN(vni=1, flags=8) / Ether(src="02:00:00:00:00:03", dst="02:00:00:00:00:04", type=0x800))
    bodies = [(tunnel if form == "vxlan" else b"") + packet for packet in packets]
    return datagram(outer, b"".join(bodies), PORTS[form]), [datagram(outer, body, PORTS[form]) for body in bodies]


@pytest.mark.parametrize("form", ["vxlan", "udp"])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("six", [False, True])
def test_a_train(form: str, outer: int, six: bool) -> None:
    packets = [inner(500, six, number) for number in range(5)] + [inner(20, six, 9)]
    whole, single = train(outer, packets, form)
    pieces = split(whole, len(whole), pcapng.ETHERNET, PORTS)
    assert [piece.data for piece in pieces] == single
    assert [piece.length for piece in pieces] == [len(frame) for frame in single]


def test_only_its_beginning_was_captured() -> None:
    whole, single = train(4, [inner(500, False, number) for number in range(4)], "vxlan")
    pieces = split(whole[:1000], len(whole), pcapng.ETHERNET, PORTS)
    assert [piece.length for piece in pieces] == [len(frame) for frame in single]
    assert pieces[0].data == single[0]
    assert single[1].startswith(pieces[1].data)
    assert len(pieces[3].data) == 42


@pytest.mark.parametrize(
    "frame",
    [
        train(4, [inner(500, False, 1)], "vxlan")[0],
        datagram(4, bytes(VXLAN(vni=1, flags=8) / ETHER / inner(100, False, 1)) + bytes(300)),  # no second header
        datagram(4, bytes(3000), 53),
        bytes(ETHER / OUTERS[4] / TCP(dport=8472) / bytes(500)),
        datagram(4, b"\x08" + bytes(2000)),
        datagram(4, inner(100, False, 1) + bytes(300), 8285),
    ],
)
def test_anything_else_stays(frame: bytes) -> None:
    assert [tuple(piece) for piece in split(frame, len(frame), pcapng.ETHERNET, PORTS)] == [(frame, len(frame))]


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([pcapng.ETHERNET, pcapng.RAW]))
def test_no_frame_is_too_strange(data: bytes, link: int) -> None:
    assert split(data, len(data), link, PORTS)
    tunnelled = datagram(4, b"\x08\0\0\0\0\0\x01\0" + data)
    pieces = split(tunnelled, len(tunnelled), pcapng.ETHERNET, PORTS)
    assert len(pieces) <= 1 + len(data) // 20
    for piece in pieces:
        assert struct.unpack_from(">H", piece.data, 16)[0] == piece.length - 14
