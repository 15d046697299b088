"""Captures as others write them: every byte order and link type, and files that are none."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, PcapWriter

from fabric.capture import pcapng
from fabric.explain.files import CaptureError, network_packet, packet_at

PACKETS = [bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(dport=port)) for port in (1, 2, 3)]


def pcap(link: int, frames: list[bytes], order: str = "<", magic: int = 0xA1B2C3D4) -> bytes:
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65_535, link)
    return head + b"".join(struct.pack(f"{order}IIII", 1, 2, len(each), len(each) + 5) + each for each in frames)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
def test_pcap(order: str, magic: int) -> None:
    data = pcap(101, PACKETS, order, magic)
    for number, wanted in enumerate(PACKETS, 1):
        captured = packet_at(io.BytesIO(data), number)
        assert (network_packet(captured), captured.length) == ((wanted, False), len(wanted) + 5)
    with pytest.raises(CaptureError, match="there is no packet 4: the file has 3"):
        packet_at(io.BytesIO(data), 4)


@pytest.mark.parametrize(
    ("link", "before"), [(1, b""), (0, b"\2\0\0\0"), (113, bytes(16)), (276, bytes(20)), (12, b"")]
)
def test_links(link: int, before: bytes) -> None:
    frame = (
        bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")) + PACKETS[0]
        if link == 1
        else before + PACKETS[0]
    )
    found = network_packet(packet_at(io.BytesIO(pcap(link, [frame])), 1))
    assert found == ((frame, True) if link == 1 else (PACKETS[0], False))


def test_a_link_that_is_none_of_ours() -> None:
    with pytest.raises(CaptureError, match="link type 105"):
        network_packet(packet_at(io.BytesIO(pcap(105, [b"x"])), 1))


def test_files_of_others(tmp_path: Path) -> None:
    frames = [Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(each) for each in PACKETS]
    for writer, name in ((PcapWriter, "a.pcap"), (PcapNgWriter, "a.pcapng")):
        with writer(str(tmp_path / name)) as out:
            out.write(frames)
        with (tmp_path / name).open("rb") as file:
            assert network_packet(packet_at(file, 2)) == (bytes(frames[1]), True)


def test_what_fabricctl_capture_writes() -> None:
    data = pcapng.section("x") + pcapng.interface("eth0", 1, 96, "it", "udp") + pcapng.interface("pod", 101, 96)
    data += pcapng.packet(1, 5, PACKETS[0][:20], len(PACKETS[0]), "verdict: dropped") + pcapng.statistics(0, 1, 2, 3)
    data += pcapng.section("again") + pcapng.interface("other", 101, 96) + pcapng.packet(0, 6, PACKETS[1], 28)
    first, second = (packet_at(io.BytesIO(data), number) for number in (1, 2))
    assert first == (101, PACKETS[0][:20], 28, "pod")
    assert second == (101, PACKETS[1], 28, "other")


@pytest.mark.parametrize("data", [b"", b"no capture", pcap(101, [])[:10], pcap(101, []), pcap(101, PACKETS)[:-1],
                                  pcapng.section("x")[:-5],
                                  pcapng.section("x") + pcapng.packet(0, 1, b"x", 1)])  # fmt: skip
def test_damaged_files_are_refused(data: bytes) -> None:
    with pytest.raises(CaptureError):
        packet_at(io.BytesIO(data), 3)


def test_any_bytes_are_a_packet_or_refused() -> None:
    """Flipped bytes of good files: nothing else is ever raised."""
    chance = random.Random(7)
    good = [pcap(101, PACKETS), pcapng.section("x") + pcapng.interface("a", 1, 9) + pcapng.packet(0, 1, PACKETS[0], 28)]
    refused = 0
    for _ in range(3000):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            network_packet(packet_at(io.BytesIO(data), 1))
        except CaptureError:
            refused += 1
    assert 0 < refused < 3000
