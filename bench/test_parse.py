"""The inner parser: every packet goes through it once per node."""

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from bench import data, hot

POD = IPv4Address("10.244.1.2")
PACKETS = {
    "udp4": data.udp_packet(data.OWN_POD, POD),
    "tcp4": data.tcp_packet(data.OWN_POD, POD, 1398),
    "udp6": data.udp6_packet(),
}


@pytest.mark.benchmark(group="parse")
@pytest.mark.parametrize("kind", PACKETS)
def test_parse(measure: Callable[..., None], kind: str) -> None:
    measure(lambda n: hot.loop_parse(PACKETS[kind], n))


def test_packets_are_accepted() -> None:
    for packet in PACKETS.values():
        l4 = 40 if packet[0] >> 4 == 6 else 20
        assert hot.loop_parse(packet, 10) == 10 * l4
