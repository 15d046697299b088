"""What every port does, on a real TUN and in memory; the worker relies on it at fd level."""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.tun.conftest import Namespace, PacketPeer, tcp_superframe, udp_frame, wait_for
from tun.device import create
from tun.errors import DeviceError, PortGone
from tun.memory import MemoryPeer, MemoryPort
from tun.offload import Features
from tun.port import DevicePort, Frame, Port
from tun.vnet import VnetHeader


@dataclass
class Pair:
    port: Port
    peer: PacketPeer | MemoryPeer

    def taken(self) -> Frame:
        frame = self.peer.take(5.0)
        assert frame is not None
        return frame


@pytest.fixture(params=[pytest.param("tun", marks=pytest.mark.root), "memory"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param == "memory":
        memory = MemoryPort(mtu=65535)
        yield Pair(memory, memory.peer)
        memory.close()
        return
    namespace: Namespace = request.getfixturevalue("namespace")
    with (
        namespace.run(lambda: create("flannel.1", mtu=65535, up=True)) as device,
        PacketPeer(namespace, device) as peer,
    ):
        yield Pair(DevicePort(device), peer)


def test_is_a_port(pair: Pair) -> None:
    assert isinstance(pair.port, Port)
    assert pair.port.mtu == 65535
    assert pair.port.features == Features.ALL
    assert pair.port.name


def test_fd_does_not_block_and_is_not_inherited(pair: Pair) -> None:
    assert not os.get_blocking(pair.port.fd)
    assert fcntl.fcntl(pair.port.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_empty_is_again(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        os.read(pair.port.fd, 65545)
    assert pair.port.read_batch(8) == []


def test_readable_when_a_frame_waits(pair: Pair) -> None:
    poll = select.poll()
    poll.register(pair.port.fd, select.POLLIN)
    assert not poll.poll(0)
    pair.peer.inject(udp_frame(b"x"))
    assert poll.poll(5000) == [(pair.port.fd, select.POLLIN)]


def test_message_is_header_then_frame(pair: Pair) -> None:
    frame = udp_frame(b"hello")
    pair.peer.inject(frame)
    assert os.read(pair.port.fd, 65545) == bytes(10) + frame
    os.write(pair.port.fd, bytes(10) + frame)
    assert pair.taken() == (VnetHeader(), frame)


@pytest.mark.parametrize("gso_size", [1000, 1398])
def test_reads_a_superframe_whole(pair: Pair, gso_size: int) -> None:
    header, frame = tcp_superframe(bytes(range(250)) * 200, gso_size)
    pair.peer.inject(frame, header)
    [(got_header, got_frame)] = pair.port.read_batch(8)
    assert got_frame == frame
    # hdr_len is the kernel's business (its linear length), the rest must be what the sender said.
    assert got_header._replace(hdr_len=40) == header


@pytest.mark.parametrize("gso_size", [1000, 1398])
def test_writes_a_superframe_whole(pair: Pair, gso_size: int) -> None:
    header, frame = tcp_superframe(bytes(range(250)) * 200, gso_size)
    assert pair.port.write_batch([(header, frame)]) == 1
    got_header, got_frame = pair.taken()
    assert got_frame == frame
    assert got_header._replace(hdr_len=40) == header


@pytest.mark.parametrize("frame", [b"\x45", udp_frame(bytes(65535 - 28))], ids=["1 byte", "65535 bytes"])
def test_sizes_from_smallest_to_largest(pair: Pair, frame: bytes) -> None:
    pair.peer.inject(frame)
    assert [got for _, got in pair.port.read_batch(8)] == [frame]
    assert pair.port.write_batch([(VnetHeader(), frame)]) == 1
    assert pair.taken()[1] == frame


def test_order_is_kept_and_a_batch_is_bounded(pair: Pair) -> None:
    frames = [udp_frame(bytes([i])) for i in range(100)]
    for frame in frames:
        pair.peer.inject(frame)
    batches = [pair.port.read_batch(64), pair.port.read_batch(64), pair.port.read_batch(64)]
    assert [len(batch) for batch in batches] == [64, 36, 0]
    assert [frame for batch in batches for _, frame in batch] == frames
    assert pair.port.write_batch((VnetHeader(), frame) for frame in frames) == 100
    assert [pair.taken()[1] for _ in frames] == frames


def test_short_read_buffer_cuts_one_frame_only(pair: Pair) -> None:
    frames = [udp_frame(b"first" * 10), udp_frame(b"second")]
    for frame in frames:
        pair.peer.inject(frame)
    assert os.read(pair.port.fd, 20) == bytes(10) + frames[0][:10]
    assert os.read(pair.port.fd, 65545) == bytes(10) + frames[1]


def test_gone_when_the_other_side_goes(pair: Pair) -> None:
    pair.peer.close()

    def gone() -> bool:
        try:
            return pair.port.read_batch(1) != []
        except PortGone:
            return True

    wait_for(gone)
    with pytest.raises(PortGone):
        pair.port.write_batch([(VnetHeader(), udp_frame(b""))])
    assert select.select([pair.port.fd], [], [], 0)[0]  # poll tells too


def test_close_ends_it_and_may_be_repeated(pair: Pair) -> None:
    pair.port.close()
    pair.port.close()
    with pytest.raises(PortGone, match="closed"):
        pair.port.read_batch(1)
    with pytest.raises(PortGone, match="closed"):
        pair.port.write_batch([(VnetHeader(), udp_frame(b""))])
    with pytest.raises(PortGone, match="closed"):
        _ = pair.port.fd


REFUSED = [
    pytest.param(VnetHeader(), b"\x15" + bytes(40), id="not IP"),
    pytest.param(VnetHeader(1, 1, 40, 0, 20, 16), udp_frame(bytes(100)), id="gso_size 0"),
    pytest.param(VnetHeader(0, 5, 28, 10, 0, 0), udp_frame(bytes(100)), id="USO without checksum"),
    pytest.param(VnetHeader(1, 0, 0, 0, 200, 16), udp_frame(bytes(10)), id="checksum beyond"),
]


@pytest.mark.parametrize(("header", "frame"), REFUSED)
def test_bad_header_is_refused(pair: Pair, header: VnetHeader, frame: bytes) -> None:
    good = udp_frame(b"good")
    if isinstance(pair.peer, MemoryPeer):  # the kernel's side is the peer
        pair.port.write_batch([(header, frame)])
        with pytest.raises(ValueError, match="would refuse"):
            pair.peer.take()
        return
    with pytest.raises(DeviceError, match="refuses the frame"):
        pair.port.write_batch([(VnetHeader(), good), (header, frame)])
    assert pair.taken()[1] == good


def test_memory_full_is_again() -> None:
    port = MemoryPort()
    frames = [(VnetHeader(), bytes([0x45]) + bytes(65534))] * 1000
    written = port.write_batch(frames)
    assert 16 <= written < 1000
    assert port.peer.take() == frames[0]
    assert port.write_batch(frames) >= 1
    port.close()
