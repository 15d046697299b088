"""Underlay sockets on loopback: options that have to be on, ports, refusals, probes."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest

from encap.sockets import (
    IP_RECVTOS,
    RECEIVE_BUFFER,
    SO_RXQ_OVFL,
    SOL_UDP,
    SOURCE_PORTS,
    UDP_GRO,
    open_receive_socket,
    open_transmit_sockets,
    probe_gro,
    probe_segmentation,
)

FOUR, SIX = ip_address("127.0.0.1"), ip_address("::1")
UDP_SEGMENT = 103


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("address", [FOUR, SIX], ids=str)
@pytest.mark.parametrize("gro", [True, False])
def test_receive_socket_options(stack: ExitStack, address: object, gro: bool) -> None:
    sock = stack.enter_context(open_receive_socket(address, 0, gro=gro))  # type: ignore[arg-type]
    assert sock.getsockopt(SOL_UDP, UDP_GRO) == gro
    assert sock.getsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL) == 1
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= min(RECEIVE_BUFFER, 2 * limit)
    if address == FOUR:
        assert sock.getsockopt(socket.IPPROTO_IP, IP_RECVTOS) == 1
    else:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS) == 1
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_port_in_use_is_said(stack: ExitStack) -> None:
    first = stack.enter_context(open_receive_socket(FOUR, 0))
    with pytest.raises(OSError, match="in use") as caught:
        open_receive_socket(FOUR, first.getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE


def test_families_share_a_port(stack: ExitStack) -> None:
    first = stack.enter_context(open_receive_socket(FOUR, 0))
    stack.enter_context(open_receive_socket(SIX, first.getsockname()[1]))


def test_shared_sockets_share_a_port(stack: ExitStack) -> None:
    first = stack.enter_context(open_receive_socket(FOUR, 0, shared=True))
    stack.enter_context(open_receive_socket(FOUR, first.getsockname()[1], shared=True))
    with pytest.raises(OSError, match="in use"):
        open_receive_socket(FOUR, first.getsockname()[1])


def test_address_that_is_not_ours() -> None:
    with pytest.raises(OSError, match="assign") as caught:
        open_receive_socket(ip_address("192.0.2.1"), 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    with pytest.raises(OSError, match="assign"):
        open_transmit_sockets(ip_address("192.0.2.1"), 2)


@pytest.mark.parametrize("address", [FOUR, SIX], ids=str)
def test_transmit_sockets_have_distinct_ports_of_the_range(stack: ExitStack, address: object) -> None:
    sockets = [stack.enter_context(sock) for sock in open_transmit_sockets(address, 16)]  # type: ignore[arg-type]
    ports = {sock.getsockname()[1] for sock in sockets}
    assert len(ports) == 16
    assert ports <= set(SOURCE_PORTS)
    assert {sock.getsockname()[0] for sock in sockets} == {str(address)}
    assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 16384 for sock in sockets)


def test_outer_df_is_not_set(stack: ExitStack) -> None:
    """As Linux VXLAN and flannel leave it: the underlay may fragment."""
    (sock,) = (stack.enter_context(sock) for sock in open_transmit_sockets(FOUR, 1))
    assert sock.getsockopt(socket.IPPROTO_IP, 10) == 0
    (sock,) = (stack.enter_context(sock) for sock in open_transmit_sockets(SIX, 1))
    assert sock.getsockopt(socket.IPPROTO_IPV6, 23) == 0


def test_probes_agree_with_the_kernel() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for option, answer in ((UDP_SEGMENT, probe_segmentation()), (UDP_GRO, probe_gro())):
            try:
                sock.setsockopt(SOL_UDP, option, 1)
                known = True
            except OSError:
                known = False
            assert answer == known
