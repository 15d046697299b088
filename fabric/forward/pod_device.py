"""The devices of pod ports: made by us, handed over by whoever made them, or left by an earlier run.

All are persistent in the pod's namespace: they outlive the daemon, so that a pod keeps its addresses, routes and
connections while there is none. Errors are DataplaneErrors that name the port.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence

from fabric.errors import DataplaneError, PortLostError
from fabric.model import DataplaneSettings, Endpoint, EndpointKind
from tun import device as devices
from tun.device import Device, Kind
from tun.errors import DeviceError
from tun.offload import allowed_features

CARRIED: Mapping[EndpointKind, Kind] = {"tun": Kind.TUN, "tap": Kind.TAP}
"""The kinds of pod ports whose frames the workers understand."""
GATEWAY_MAC = b"\xee" * 6
"""What a pod on a TAP gets for whatever address it asks; as Calico's, and that of the plugin's kind `veth`."""


def ethernet(device: Device) -> tuple[bytes, bytes] | None:
    """The MACs of the pod and of its only neighbour; None for a TUN, which has none."""
    return (device.mac, GATEWAY_MAC) if device.kind is Kind.TAP else None


def create(endpoint: Endpoint, settings: DataplaneSettings, mtu: int) -> Device:
    """A new device in the pod's namespace. Nothing is left when this raises or is killed: persistence comes last."""
    if endpoint.kind == "tap":
        raise DataplaneError(f"port {endpoint.name}: a tap device is made by whoever adds it: pass its queue")
    with _errors(endpoint):
        device = devices.create_in_netns(
            endpoint.netns, endpoint.ifname, CARRIED[endpoint.kind], allowed=allowed_features(settings.offload),
            mtu=mtu, txqueuelen=settings.txqueuelen, up=True,
        )
        with _closed_on_errors(device):
            device.probe()
            device.persist(True)
    return device


def adopt(endpoint: Endpoint, fds: Sequence[int], settings: DataplaneSettings, mtu: int) -> Device:
    """The device behind passed queues, which stay the caller's when this raises. It gets the settings of our own.

    Where we may not enter the pod's namespace (CAP_SYS_ADMIN) it keeps those of its maker, who has to bring it up.
    """
    with _errors(endpoint):
        device = devices.adopt(fds, allowed_features(settings.offload))
        if device.name != endpoint.ifname or not device.in_netns(endpoint.netns):
            what = f"the passed queue is that of {device.name}, not of {endpoint.ifname} in {endpoint.netns}"
            raise DataplaneError(f"port {endpoint.name}: {what}")
        if device.kind is not CARRIED[endpoint.kind]:
            raise DataplaneError(f"port {endpoint.name}: the passed queue is not that of a {endpoint.kind} device")
        try:
            device.txqueuelen = settings.txqueuelen
            if device.mtu != mtu:
                device.mtu = mtu
            device.up = True
        except DeviceError as error:
            if error.errno != errno.EPERM:
                raise
        device.probe()
        device.persist(True)
    return device


def take_back(endpoint: Endpoint, fds: Sequence[int], settings: DataplaneSettings) -> Device | None:
    """The device behind kept queues, as it is; None when they are not this port's. The caller gives `fds` away.

    Raises PortLostError when the device is gone: somebody deleted it, or it went with its namespace.
    """
    with contextlib.ExitStack() as stack, _errors(endpoint):
        for fd in fds:
            stack.callback(os.close, fd)
        device = devices.adopt(fds, allowed_features(settings.offload))
        if (device.name, device.kind) != (endpoint.ifname, CARRIED[endpoint.kind]):
            return None
        if not device.in_netns(endpoint.netns):
            return None
        device.probe()
        stack.pop_all()
    return device


def attach(endpoint: Endpoint, settings: DataplaneSettings) -> Device:
    """The device that an earlier run has left. Raises PortLostError when it is not there any more.

    The descriptor keeps the pod's namespace alive (`tun.device` says why): close it when the pod is gone.
    """
    with _errors(endpoint):
        device = devices.attach_in_netns(endpoint.netns, endpoint.ifname, allowed=allowed_features(settings.offload))
        with _closed_on_errors(device):
            if device.kind is not CARRIED[endpoint.kind]:
                raise PortLostError(f"port {endpoint.name}: {endpoint.ifname} is another device now")
            device.probe()
    return device


def mtu_of(device: Device, settings: DataplaneSettings) -> int:
    """The device's MTU; that of new ports where it cannot be read."""
    try:
        return device.mtu
    except DeviceError:
        return settings.mtu


@contextlib.contextmanager
def _closed_on_errors(device: Device) -> Iterator[None]:
    try:
        yield
    except BaseException:
        device.close()
        raise


@contextlib.contextmanager
def _errors(endpoint: Endpoint) -> Iterator[None]:
    try:
        yield
    except DeviceError as error:
        if error.errno == errno.EPERM:
            todo = "fabricd may not enter pods: pass its queue, or run fabricd with CAP_SYS_ADMIN"
            what = f"cannot {error.what} {error.which}: {error.why}"
            raise DataplaneError(f"port {endpoint.name}: {what}; {todo}") from None
        lost = error.errno in (errno.ENODEV, errno.ENOENT, errno.EBADFD)
        raise (PortLostError if lost else DataplaneError)(f"port {endpoint.name}: {error}") from None
