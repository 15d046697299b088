"""Packet sockets (packet(7)): what an interface receives and sends, with the kernel's time and whole length."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from fabric.capture.bpf import Program
from fabric.capture.pcapng import ETHERNET, RAW
from fabric.errors import FabricError
from tun.errors import DeviceError
from tun.netns import run_in_netns

SOL_PACKET, PACKET_STATISTICS, PACKET_AUXDATA = 263, 6, 8
SO_ATTACH_FILTER, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 26, 33, 35
ETH_P_ALL, ARPHRD_ETHER, ARPHRD_LOOPBACK, PACKET_OUTGOING = 3, 1, 772, 4
CSUM_NOT_READY = 1 << 3  # TP_STATUS_CSUMNOTREADY
RECEIVE_BUFFER = 4 << 20
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_TIMESPEC = struct.Struct("=qq")
_CONTROL = socket.CMSG_SPACE(_AUXDATA.size) + socket.CMSG_SPACE(_TIMESPEC.size)


class Frame(NamedTuple):
    """One packet: Unix time in nanoseconds, its bytes, its whole length, whether the interface sent it, and
    whether its checksum is still to be computed."""

    time: int
    data: bytes
    length: int
    outgoing: bool
    unfinished: bool = False


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class Tap:
    """An interface that is listened to from now on.

    `program` makes the filter out of the link's type (ETHERNET or RAW); None takes everything. Raises FabricError.
    """

    def __init__(
        self, name: str, interface: str, netns: str, snaplen: int, program: Callable[[int], Program | None]
    ) -> None:
        self.name = name
        self._snaplen = snaplen
        try:
            self.socket = run_in_netns(netns, _unbound) if netns else _unbound()
        except (OSError, DeviceError) as error:
            raise FabricError(f"{name} cannot be captured: {getattr(error, 'strerror', None) or error}") from None
        try:
            self.link = self._open(interface, program)
        except OSError as error:
            self.socket.close()
            raise FabricError(f"{name} cannot be captured: interface {interface}: {error.strerror}") from None

    def _open(self, interface: str, program: Callable[[int], Program | None]) -> int:
        """Filter first: nothing comes before the socket is bound to a protocol."""
        sock = self.socket
        sock.setblocking(False)
        sock.bind((interface, 0))
        kind = sock.getsockname()[3]
        link = ETHERNET if kind in (ARPHRD_ETHER, ARPHRD_LOOPBACK) else RAW
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        made = program(link)
        if made is not None:
            attach(sock, made)
        sock.bind((interface, ETH_P_ALL))
        return link

    def read(self) -> Frame | None:
        """The next packet, None when there is none. Raises OSError when the interface is gone."""
        try:
            data, ancillary, _, address = self.socket.recvmsg(self._snaplen, _CONTROL)
        except BlockingIOError:
            return None
        time, length, state = 0, len(data), 0
        for level, kind, value in ancillary:
            if level == SOL_PACKET and kind == PACKET_AUXDATA:
                state, length = _AUXDATA.unpack_from(value)[:2]
            elif level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack_from(value)
                time = seconds * 1_000_000_000 + nanoseconds
        return Frame(time, data, length, address[2] == PACKET_OUTGOING, bool(state & CSUM_NOT_READY))

    def statistics(self) -> tuple[int, int]:
        """Packets that passed the filter, and those of them that were lost for want of room, since the last call."""
        received, lost = struct.unpack("=II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        return received, lost

    def close(self) -> None:
        """Idempotent."""
        self.socket.close()


def _unbound() -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)


def attach(sock: socket.socket, program: Program) -> None:
    """SO_ATTACH_FILTER. Raises OSError."""
    packed = b"".join(struct.pack("=HBBI", *item) for item in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    head = _SockFprog(len(program), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(head))
