"""The node port's device: made by us, or left by an earlier run with what has arrived in its queues since."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fabric.model import DataplaneSettings
from tun.device import Device, Kind, adopt, create
from tun.errors import DeviceError
from tun.offload import allowed_features


def make(settings: DataplaneSettings) -> Device:
    """A new device, up. Raises DeviceError, and leaves nothing then."""
    device = create(
        settings.device, queues=settings.workers, allowed=allowed_features(settings.offload), mtu=settings.mtu,
        txqueuelen=settings.txqueuelen, up=True,
    )  # fmt: skip
    try:
        device.probe()
    except BaseException:
        device.close()  # or its name would stay taken
        raise
    return device


def take_back(fds: Sequence[int], settings: DataplaneSettings) -> Device | None:
    """The device behind kept queues, with the present settings; None when it is not the one that is wanted.

    A device of another name or number of queues is closed, and thereby deleted. The caller gives `fds` away.
    """
    if not fds:
        return None
    try:
        device = adopt(fds, allowed_features(settings.offload))
    except DeviceError:
        for fd in fds:
            os.close(fd)
        return None
    try:
        if device.name == settings.device and len(fds) == settings.workers and device.kind is Kind.TUN:
            device.mtu = settings.mtu
            device.txqueuelen = settings.txqueuelen
            device.up = True
            device.probe()
            return device
    except DeviceError:
        pass
    device.close()
    return None
