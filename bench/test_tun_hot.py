"""Hot functions of `tun`: one superframe of 46 x 1398 bytes down to packets and back up, and the sums below both."""

import os
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tun.batch import write_merged
from tun.checksum import checksum
from tun.split import headers, split
from tun.vnet import GSO_TCPV4, GSO_UDP_L4, VNET_NEEDS_CSUM, VnetHeader

SEGMENTS, SIZE = 46, 1398
TIMESTAMP = bytes.fromhex("0101080a0000000100000002")


def tcp_superframe() -> tuple[bytes, VnetHeader]:
    total = 52 + SEGMENTS * SIZE
    ip = b"\x45\0" + total.to_bytes(2, "big") + bytes.fromhex("0001 4000 4006 0000 c0000201 c0000202")
    tcp = bytes.fromhex("9c40 0050 00000001 00000002 8010 0200 0000 0000") + TIMESTAMP
    return ip + tcp + os.urandom(SEGMENTS * SIZE), VnetHeader(VNET_NEEDS_CSUM, GSO_TCPV4, 52, SIZE, 20, 16)


def udp_superframe(count: int, size: int) -> tuple[bytes, VnetHeader]:
    total = 28 + count * size
    ip = b"\x45\0" + total.to_bytes(2, "big") + bytes.fromhex("0001 4000 4011 0000 c0000201 c0000202")
    udp = bytes.fromhex("9c40 0050") + (8 + count * size).to_bytes(2, "big") + b"\0\0"
    return ip + udp + os.urandom(count * size), VnetHeader(VNET_NEEDS_CSUM, GSO_UDP_L4, 28, size, 20, 6)


@pytest.fixture
def sink() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_WRONLY)
    yield fd
    os.close(fd)


@pytest.mark.benchmark(group="checksum")
@pytest.mark.parametrize("size", [64, SIZE, 64 * 1024])
def test_payload_sum(benchmark: BenchmarkFixture, size: int) -> None:
    data = os.urandom(size)
    benchmark(checksum, data)


@pytest.mark.benchmark(group="split")
def test_split_headers_46x1398(benchmark: BenchmarkFixture) -> None:
    """What the data path pays: headers and sums, payload left where it is."""
    assert len(benchmark(headers, *tcp_superframe())) == SEGMENTS * 52


@pytest.mark.benchmark(group="split")
def test_split_packets_46x1398(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(split, *tcp_superframe())) == SEGMENTS


@pytest.mark.benchmark(group="merge")
@pytest.mark.parametrize("kind", ["tcp 46x1398", "udp 46x64", "tcp 46x1398 alone"])
def test_merge_46_frames(benchmark: BenchmarkFixture, sink: int, kind: str) -> None:
    """One call merges the batch ROUNDS times; the sink costs one cheap system call per write."""
    rounds = 20
    frames = split(*(udp_superframe(46, 64) if kind.startswith("udp") else tcp_superframe()))
    features = 0 if kind.endswith("alone") else 7
    counters = benchmark(write_merged, sink, frames, features=features, rounds=rounds)
    benchmark.extra_info["ns_per_frame"] = benchmark.stats["median"] / rounds / 46 * 1e9 if benchmark.stats else None
    assert counters.writes == rounds * (1 if features else 46)
