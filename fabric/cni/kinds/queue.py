"""The container's TUN or TAP device, made here, whose queue goes to the daemon. It outlives both (TUNSETPERSIST).

The device is made on the host under a temporary name and moved: `tun.device` says why. It has the attachment's name as
its alias before it is moved, and becomes persistent last, so that a call that is killed leaves either nothing or a
device that is known by its alias.
"""

from __future__ import annotations

from fabric.cni import links, pod
from fabric.cni.attachment import Record
from fabric.cni.errors import KERNEL_REFUSED, CniError
from fabric.cni.logs import log
from fabric.cni.protocol import Request
from routes.netlink import Netlink
from tun.device import DEFAULT_TXQUEUELEN, Device, Kind, create
from tun.errors import DeviceError

KERNELS_KIND = "tun"
"""IFLA_INFO_KIND of both."""


def make(record: Record, inside: pod.Pod, kind: Kind, mtu: int, queue: int) -> Device:
    """The device, down, with a queue of that many packets (0: as many as usual). Raises CniError (112)."""
    try:
        name = record.attachment.host_interface.replace("veth", "ftmp")
        device = create(name, kind, mtu=mtu, txqueuelen=queue or DEFAULT_TXQUEUELEN)
        try:
            with Netlink() as netlink:
                links.name_it(netlink, links.must_find(netlink, device.name), record.alias, record.mac)
            device.move(inside.fd, record.attachment.ifname)
            device.persist(True)
        except BaseException:
            device.close()
            raise
        return device
    except DeviceError as error:
        what = f"failed to make {record.attachment.ifname} for {inside.path}"
        raise CniError(KERNEL_REFUSED, what, str(error)) from None


def delete(record: Record, inside: pod.Pod | None) -> None:
    """Delete the device, if it is there. Raises CniError (112).

    Without `inside` (GC) the namespace is that of the record, whose path may lead to another container's by now: there
    the device has to be known by its alias.
    """
    if inside is not None:
        inside.run(lambda: _delete(record, named=False))
    elif record.netns:
        request = Request("DEL", record.attachment.container_id, record.netns, record.attachment.ifname)
        try:
            with pod.opened_if_there(request) as there:
                if there is not None:
                    there.run(lambda: _delete(record, named=True))
        except CniError as error:
            log(f"{record.attachment.key}: {error}")  # it is the plugin's own namespace


def _delete(record: Record, named: bool) -> None:
    with Netlink() as netlink:
        if named:
            link = links.find(netlink, record.attachment.ifname)
            if link is None or link.alias != record.alias[: links.MAX_ALIAS]:
                return
        links.delete(netlink, record.attachment.ifname, (KERNELS_KIND,))
