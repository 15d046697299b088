"""Ports: what a worker reads frames from and writes frames to. One message on the fd is one frame with its header.

The compiled worker uses the fd directly; the methods here are for slow paths and tests. Every port's fd behaves alike:
non-blocking, each read(2) gives one [virtio-net header][frame] (EAGAIN when there is none), each write(2) takes one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from tun.device import Device
from tun.errors import DeviceError, PortGone
from tun.offload import Features
from tun.virtio import MAX_FRAME
from tun.vnet import VnetHeader

Frame = tuple[VnetHeader, bytes]

# Errors of read(2)/write(2) that mean "not now"; a frame refused with one of them is lost only if the caller lets it.
_AGAIN = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
_GONE = (errno.EBADFD, errno.EPIPE, errno.ENODEV)


@runtime_checkable
class Port(Protocol):
    """A queue of a device, or its stand-in in memory. `features`: what may be written (tun.offload.Features)."""

    @property
    def fd(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def mtu(self) -> int: ...
    @property
    def features(self) -> Features: ...
    def read_batch(self, limit: int) -> list[Frame]:
        """Up to `limit` waiting frames, oldest first, [] when none. Raises PortGone after close or deletion."""

    def write_batch(self, frames: Iterable[Frame]) -> int:
        """Writes in order and returns how many were taken; fewer only when the port is full. Raises DeviceError for a
        frame the port refuses (those before it are written), PortGone after close or deletion."""

    def close(self) -> None: ...


class DevicePort:
    """One queue of a Device. Closing the port closes the whole device."""

    def __init__(self, device: Device, queue: int = 0) -> None:
        self.device = device
        self.queue = queue

    @property
    def fd(self) -> int:
        if not self.device.fds:
            raise PortGone("use port", self.device.name, "it is closed", errno=errno.EBADF)
        return self.device.fds[self.queue]

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def mtu(self) -> int:
        return self.device.mtu

    @property
    def features(self) -> Features:
        return self.device.features

    def read_batch(self, limit: int) -> list[Frame]:
        return read_frames(self.fd, self.name, limit, self.device.header_size)

    def write_batch(self, frames: Iterable[Frame]) -> int:
        return write_frames(self.fd, self.name, frames, self.device.header_size)

    def close(self) -> None:
        self.device.close()


def read_frames(fd: int, name: str, limit: int, header_size: int) -> list[Frame]:
    """`Port.read_batch` on a bare fd."""
    frames: list[Frame] = []
    while len(frames) < limit:
        try:
            data = os.read(fd, header_size + MAX_FRAME)
        except OSError as error:
            if error.errno in _AGAIN or (frames and error.errno in _GONE):
                break
            raise _failed("read from", name, error) from None
        if not data:  # the other end of a socket pair closed
            if frames:
                break
            raise PortGone("read from", name, "the device is gone", errno=errno.EBADFD)
        frames.append((VnetHeader.parse(data), data[header_size:]))
    return frames


def write_frames(fd: int, name: str, frames: Iterable[Frame], header_size: int) -> int:
    """`Port.write_batch` on a bare fd."""
    written = 0
    for header, frame in frames:
        try:
            os.write(fd, header.emit().ljust(header_size, b"\0") + frame)
        except OSError as error:
            if error.errno in _AGAIN:
                break
            raise _failed("write to", name, error) from None
        written += 1
    return written


def _failed(what: str, name: str, error: OSError) -> DeviceError:
    number = error.errno or 0
    if number in _GONE:
        return PortGone(what, name, "the device is gone", errno=number)
    if number == errno.EIO:
        return DeviceError(what, name, "the device is down", "bring it up", number)
    if number == errno.EINVAL:
        return DeviceError(what, name, "the kernel refuses the frame or its virtio-net header", errno=number)
    return DeviceError(what, name, error.strerror or str(error), errno=number)
