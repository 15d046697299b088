"""Ingress: VTEP by outer address, header checks, and the whole path of a datagram to the port."""

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from bench import cases, data, hot
from encap.vxlan import encapsulate

PEERS = [1, 10, 100, 1_000]
DATAGRAM = encapsulate(
    data.udp_packet(IPv4Address("10.244.1.2"), data.OWN_POD),
    vni=data.VNI,
    destination=data.OWN_MAC,
    source=data.peer_mac(1),
)


@pytest.mark.benchmark(group="decapsulate")
@pytest.mark.parametrize("peers", PEERS)
def test_find_vtep(measure: Callable[..., None], peers: int) -> None:
    table, addresses = data.table(peers), data.underlay_addresses(peers)
    measure(lambda n: hot.loop_vtep(table, addresses, n))


@pytest.mark.benchmark(group="decapsulate")
def test_check_headers(measure: Callable[..., None]) -> None:
    assert hot.loop_check(DATAGRAM, data.OWN_MAC, data.peer_mac(1), data.VNI, 10) == 0
    measure(lambda n: hot.loop_check(DATAGRAM, data.OWN_MAC, data.peer_mac(1), data.VNI, n))


@pytest.mark.benchmark(group="decapsulate")
@pytest.mark.parametrize("peers", PEERS)
def test_ingress(measure: Callable[..., None], peers: int) -> None:
    """Merged as far as possible: one peer is one flow, many peers are many flows."""
    measure(cases.ingress(peers)())


@pytest.mark.benchmark(group="decapsulate")
@pytest.mark.parametrize("peers", PEERS)
def test_ingress_alone(measure: Callable[..., None], peers: int) -> None:
    """One write per packet: what is left are the tables."""
    measure(cases.ingress_alone(peers)())


def test_every_packet_is_handed_over() -> None:
    assert cases.ingress(100)()(2 * data.FRAMES) == 2 * data.FRAMES
