"""Egress: the tunnel header alone, and the whole path of a packet from the port to the send queue."""

from collections.abc import Callable

import pytest

from bench import cases, data, hot

PEERS = [1, 10, 100, 1_000]


@pytest.mark.benchmark(group="encapsulate")
@pytest.mark.parametrize("peers", PEERS)
def test_stamp(measure: Callable[..., None], peers: int) -> None:
    table = data.table(peers)
    measure(lambda n: hot.loop_stamp(table, n))


@pytest.mark.benchmark(group="encapsulate")
@pytest.mark.parametrize("peers", PEERS)
def test_egress(measure: Callable[..., None], peers: int) -> None:
    """Every packet goes to another peer."""
    measure(cases.egress(peers)())


@pytest.mark.benchmark(group="encapsulate")
@pytest.mark.parametrize("peers", PEERS)
def test_egress_sent(measure: Callable[..., None], peers: int) -> None:
    """With its sendmmsg() over loopback, without trains."""
    measure(cases.egress_sent(peers)(), 4 * data.FRAMES)


def test_every_packet_is_queued() -> None:
    assert cases.egress(100)()(3 * data.FRAMES) == 3 * data.FRAMES
