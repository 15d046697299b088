"""Underlay sockets: one receive socket per family on the tunnel port, transmit sockets on a spread of source ports.

Receive: UDP_GRO, forced 16 MB buffer (a 208 KB default costs a third of the throughput, and more under loss), TOS and
queue overflows reported per message, IPv6 sockets for IPv6 only. Transmit: forced 8 MB buffer, DF not set as Linux
VXLAN and flannel leave it, source ports from 49152 to 65535 (RFC 7348 section 5).
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

RECEIVE_BUFFER = 16 << 20
SEND_BUFFER = 8 << 20
SOURCE_PORTS = range(49152, 65536)

SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32
SO_RXQ_OVFL = 40
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
IP_RECVTOS = 13


def family_of(address: Address) -> socket.AddressFamily:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _force_buffer(sock: socket.socket, forced: int, plain: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except PermissionError:
        # Without CAP_NET_ADMIN the kernel grants at most net.core.[rw]mem_max.
        sock.setsockopt(socket.SOL_SOCKET, plain, size)


def open_receive_socket(address: Address, port: int, *, gro: bool = True, shared: bool = False) -> socket.socket:
    """Socket bound to our underlay address; `shared` lets several workers bind it (SO_REUSEPORT).

    Raises OSError: EADDRINUSE when somebody holds the port, EADDRNOTAVAIL when the address is not ours.
    """
    sock = socket.socket(family_of(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _force_buffer(sock, SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        if address.version == 4:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        if gro:
            set_gro(sock, True)
        sock.bind((str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock


def is_receive_socket(sock: socket.socket, address: Address, port: int, *, shared: bool) -> bool:
    """Whether a socket of an earlier run is what `open_receive_socket` would give, but for GRO. Never raises."""
    try:
        bound = sock.getsockname()
        reuse = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))
        kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    except OSError:
        return False
    return (sock.family, kind, reuse) == (family_of(address), socket.SOCK_DGRAM, shared) and bound[:2] == (
        str(address), port,
    )  # fmt: skip


def set_gro(sock: socket.socket, on: bool) -> None:
    """UDP_GRO on or off; off also where the kernel does not know it. Raises OSError."""
    if on or sock.getsockopt(SOL_UDP, UDP_GRO):
        sock.setsockopt(SOL_UDP, UDP_GRO, int(on))


def open_transmit_sockets(address: Address, count: int) -> list[socket.socket]:
    """`count` sockets bound to our underlay address on distinct random source ports. Raises OSError."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            sockets.append(_open_transmit_socket(address))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _open_transmit_socket(address: Address) -> socket.socket:
    sock = socket.socket(family_of(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _force_buffer(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER)
        if address.version == 4:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, 0)
        _bind_source_port(sock, address, random.sample(SOURCE_PORTS, 32))
        # Nobody speaks to a source port: a one-page queue keeps strays from holding memory.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_source_port(sock: socket.socket, address: Address, ports: Iterable[int]) -> None:
    for port in ports:
        try:
            sock.bind((str(address), port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    sock.bind((str(address), 0))


def probe_segmentation() -> bool:
    """Whether UDP_SEGMENT works here: a three-segment train over loopback arrives as three datagrams of its sizes."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        receiver.settimeout(0.2)
        try:
            receiver.bind(("127.0.0.1", 0))
            sender.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)
            sender.sendto(bytes(2500), receiver.getsockname())
            return [len(receiver.recv(4096)) for _ in range(3)] == [1000, 1000, 500]
        except OSError:
            return False


def probe_gro() -> bool:
    """Whether a socket takes UDP_GRO (Linux 5.0)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        except OSError:
            return False
        return True
