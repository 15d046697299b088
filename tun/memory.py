"""A port in memory: the fd behaviour of a TUN queue without a device, for tests and hosts without /dev/net/tun.

An AF_UNIX SOCK_SEQPACKET pair carries [10-byte virtio-net header][frame] messages. The worker gets one end's fd, the
`peer` plays the kernel on the other. Unlike a device, a full socket answers EAGAIN to writes, where a TUN never does,
and the kernel's checks of a written frame (EINVAL) are made by the peer when it takes the frame.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterable

from tun.errors import PortGone
from tun.offload import Features
from tun.port import Frame, read_frames, write_frames
from tun.virtio import refusal
from tun.vnet import VNET_HEADER_SIZE, VnetHeader

# A 64 KB message is one skb with all its overhead counted; some dozens should fit.
BUFFER_BYTES = 8 << 20


class MemoryPeer:
    """The kernel's side of a MemoryPort."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._socket = sock
        self._name = name

    def inject(self, frame: bytes, header: VnetHeader = VnetHeader()) -> None:  # noqa: B008 - immutable
        """Makes `frame` the next the port reads. BlockingIOError when the port's queue is full."""
        os.write(self._socket.fileno(), header.emit() + frame)

    def take(self, timeout: float = 0.0) -> Frame | None:
        """The oldest frame written to the port; None when none came within `timeout` seconds.

        Raises ValueError for a frame that a TUN device would have refused with EINVAL.
        """
        if not select.select([self._socket], [], [], timeout)[0]:
            return None
        frames = read_frames(self._socket.fileno(), self._name, 1, VNET_HEADER_SIZE)
        for header, frame in frames:
            why = refusal(header, frame)
            if why:
                raise ValueError(f"a device would refuse this frame: {why}: {header}, {len(frame)} bytes")
        return frames[0] if frames else None

    def close(self) -> None:
        """Like the deletion of the device: the port sees PortGone."""
        self._socket.close()


class MemoryPort:
    """See the top of this file. `peer` is closed with the port."""

    def __init__(self, name: str = "memory0", mtu: int = 1450, features: Features = Features.ALL) -> None:
        self.name = name
        self.mtu = mtu
        self.features = features
        self._socket, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer = MemoryPeer(peer, name)
        for end in (self._socket, peer):
            end.setblocking(False)
            _enlarge(end)

    @property
    def fd(self) -> int:
        if self._socket.fileno() < 0:
            raise PortGone("use port", self.name, "it is closed")
        return self._socket.fileno()

    def read_batch(self, limit: int) -> list[Frame]:
        return read_frames(self.fd, self.name, limit, VNET_HEADER_SIZE)

    def write_batch(self, frames: Iterable[Frame]) -> int:
        return write_frames(self.fd, self.name, frames, VNET_HEADER_SIZE)

    def close(self) -> None:
        self._socket.close()
        self.peer.close()


def _enlarge(end: socket.socket) -> None:
    force = 32  # SO_SNDBUFFORCE, beyond net.core.wmem_max; the socket module has no name for it
    try:
        end.setsockopt(socket.SOL_SOCKET, force, BUFFER_BYTES)
    except PermissionError:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
