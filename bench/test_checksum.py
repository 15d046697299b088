"""Checksums: IPv4 headers, payload, and the state of a whole packet."""

import os
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from bench import data, hot

PACKET = data.tcp_packet(IPv4Address("10.244.1.2"), data.OWN_POD, 1398)


@pytest.mark.benchmark(group="checksum")
def test_header_sum(measure: Callable[..., None]) -> None:
    measure(lambda n: hot.loop_header_sum(PACKET[:20], n))


@pytest.mark.benchmark(group="checksum")
@pytest.mark.parametrize("size", [64, 1398, 65536])
def test_payload_sum(measure: Callable[..., None], size: int) -> None:
    payload = os.urandom(size)
    measure(lambda n: hot.loop_payload_sum(payload, n), max(200, 2_000_000 // size))


@pytest.mark.benchmark(group="checksum")
def test_verify(measure: Callable[..., None]) -> None:
    measure(lambda n: hot.loop_verify(PACKET, 20, n))


def test_packet_verifies() -> None:
    assert hot.loop_verify(PACKET, 20, 10) == 10
