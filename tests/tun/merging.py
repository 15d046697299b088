"""What the tests of merging share: chains of packets, merging them, and undoing it."""

from __future__ import annotations

import os

from tests.tun.packets import Packet
from tun.batch import ALL_FEATURES, MergeCounters, merge, write_merged
from tun.checksum import finish
from tun.split import split
from tun.vnet import GSO_NONE, VNET_NEEDS_CSUM, VnetHeader


def chain(first: Packet, count: int) -> list[Packet]:
    packets = [first]
    while len(packets) < count:
        packets.append(packets[-1].next())
    return packets


def merged(*packets: Packet, features: int = ALL_FEATURES) -> list[tuple[VnetHeader, bytes]]:
    return merge([packet.build() for packet in packets], features=features)


def counted(*packets: Packet, features: int = ALL_FEATURES) -> MergeCounters:
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        return write_merged(sink, [packet.build() for packet in packets], features=features)
    finally:
        os.close(sink)


def restore(written: list[tuple[VnetHeader, bytes]]) -> list[bytes]:
    """Packets that a receiver sees: superframes cut, partial checksums finished."""
    packets = []
    for header, frame in written:
        if header.gso_type != GSO_NONE:
            packets += split(frame, header)
        elif header.flags & VNET_NEEDS_CSUM:
            packets.append(finish(frame, header.csum_start, header.csum_offset))
        else:
            packets.append(frame)
    return packets


def normal(frame: bytes) -> bytes:
    """Without the IPv4 identification and header checksum where DF makes the former meaningless."""
    if frame[0] >> 4 == 4 and frame[6] & 0x40:
        return frame[:4] + frame[6:10] + frame[12:]
    return frame
