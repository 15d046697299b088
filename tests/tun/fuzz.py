"""Fuzz entry points: functions that take bytes, check invariants and must never crash, and generators of inputs.

`fuzz_split` reads 10 bytes of virtio-net header and then a frame. `fuzz_merge` reads one byte of features and then
records `u16 length, u16 gso_size, frame`, big-endian; the last frame may be cut short. The generators start from good
packets and damage a few bytes, which gets further than noise does.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator

from tests.tun.packets import ACK, PSH, TCP, UDP, Packet, destination_options, superframe_header
from tun.batch import write_merged
from tun.split import split
from tun.vnet import VnetHeader

_SINK = os.open(os.devnull, os.O_WRONLY)


def fuzz_split(data: bytes) -> None:
    if len(data) < 10:
        return
    header, frame = VnetHeader.parse(data), data[10:]
    try:
        segments = split(frame, header)
    except ValueError:
        return
    size = min(len(segment) for segment in segments[:-1]) - header.gso_size if len(segments) > 1 else 0
    assert all(len(segment) <= len(frame) for segment in segments)
    if size:
        assert b"".join(segment[size:] for segment in segments) == frame[size:]


def records(data: bytes) -> list[bytes | tuple[bytes, int]]:
    found: list[bytes | tuple[bytes, int]] = []
    position = 0
    while position + 4 <= len(data):
        length, gso_size = struct.unpack_from("!HH", data, position)
        frame = data[position + 4 : position + 4 + length]
        found.append((frame, gso_size) if gso_size else frame)
        position += 4 + length
    return found


def fuzz_merge(data: bytes) -> None:
    frames = records(data[1:])
    counters = write_merged(_SINK, frames, features=data[0] & 7 if data else 7)
    assert counters.frames == len(frames)
    assert counters.errors_again == counters.errors_down == counters.errors_gone == counters.errors_other == 0
    if not any(isinstance(frame, tuple) for frame in frames):
        assert counters.writes <= counters.frames
        assert counters.merged <= counters.frames
        if not counters.merged:
            assert counters.writes == counters.frames


def _templates() -> list[Packet]:
    plain = [Packet(family, protocol, bytes(60)) for family in (4, 6) for protocol in (TCP, UDP)]
    odd = [
        Packet(4, TCP, bytes(60), ip_options=b"\x01" * 8),
        Packet(6, UDP, bytes(60), extension=destination_options(UDP)),
        Packet(6, TCP, bytes(60), extension=destination_options(43) + bytes([TCP, 0, 4, 0, 0, 0, 0, 0])),
        Packet(4, TCP, bytes(60), fragment=0x2001),
        Packet(4, TCP, bytes(60), flags=ACK | PSH),
        Packet(4, UDP, bytes(60), check="zero"),
    ]
    return plain + odd


def _damage(frame: bytes, source: random.Random) -> bytes:
    out = bytearray(frame)
    for _ in range(source.choice((0, 1, 1, 2, 4))):
        if out:
            out[source.randrange(min(len(out), 80))] = source.choice((0, 1, 0x40, 0x7F, 0xFF, source.randrange(256)))
    if source.random() < 0.2:
        del out[source.randrange(len(out) + 1) :]
    return bytes(out)


def split_cases(seed: int, count: int) -> Iterator[bytes]:
    """`count` inputs for fuzz_split, the same for the same seed."""
    source = random.Random(seed)
    templates = [(superframe_header(p, 20).emit(), p.build()) for p in _templates()]
    for _ in range(count):
        header, frame = source.choice(templates)
        if source.random() < 0.4:
            header = _damage(header, source).ljust(10, b"\0")
        yield header + _damage(frame, source)


def merge_cases(seed: int, count: int) -> Iterator[bytes]:
    """`count` inputs for fuzz_merge, the same for the same seed."""
    source = random.Random(seed)
    templates = _templates()
    for _ in range(count):
        parts = [bytes([source.choice((7, 7, 7, source.randrange(256)))])]
        packet = source.choice(templates)
        for _ in range(source.randrange(1, 8)):
            frame = packet.build()
            if source.random() < 0.5:
                frame = _damage(frame, source)
            gso_size = source.choice((1, 20, 60, 65535)) if source.random() < 0.2 else 0
            parts.append(struct.pack("!HH", len(frame), gso_size) + frame)
            packet = packet.next() if source.random() < 0.8 else source.choice(templates)
        yield b"".join(parts)
