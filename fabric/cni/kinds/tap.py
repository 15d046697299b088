"""Kind `tap`: a port of the daemon like kind `tun`, for pods that need Ethernet.

The pod has a MAC, the one asked for or one that follows from the attachment's name. Its next hop is that of kind `veth`
(169.254.1.1, fe80::ecee:eeff:feee:eeee), for whose MAC the pod asks the daemon, the only one on its wire. Limits: those
of `tun`, but for the MAC; a daemon that knows no such ports refuses them.
"""

from __future__ import annotations

from fabric.cni.attachment import Record
from fabric.cni.config import Conf
from fabric.cni.errors import DAEMON_REFUSED, CniError
from fabric.cni.kinds import common, tun, veth
from fabric.cni.kinds.daemon import connect, delete_port, ready, status, translated
from fabric.cni.pod import Pod
from fabric.cni.result import Interface, Result
from fabric.control_client import DaemonRefusedError

__all__ = ["attach", "check", "detach", "plan", "ready"]
NAME = "tap"
detach = tun.detach


def plan(conf: Conf, ipam: Result, mac: str) -> Result:
    """Host addresses, a route to the IPv4 next hop, and the others through it. Raises CniError (7)."""
    tun.one_of_each_version(conf, ipam, NAME)
    return veth.plan(conf, ipam, mac)


def attach(record: Record, pod: Pod) -> tuple[Interface, ...]:
    """Make the device, configure it, hand it over. Raises CniError (11, 111, 112)."""
    from fabric.cni.kinds import queue
    from tun.device import Kind

    record = record._replace(mac=record.mac or derived_mac(record))
    with connect(record) as daemon, translated(tun.FAILED):
        found = status(daemon)
        delete_port(daemon, record.attachment.port)
        with queue.make(record, pod, Kind.TAP, record.mtu or found.mtu, found.queue) as device:
            link = common.configure(record, pod, record.routes)
            try:
                tun.hand_over(daemon, record, device.fds)
            except DaemonRefusedError as error:
                device.persist(False)
                text = "kind tap needs a fabricd that takes such ports; kinds tun, veth and bridge work without"
                raise CniError(DAEMON_REFUSED, f"{tun.FAILED} of kind tap: {error}", text) from None
    tun.lead_host_to_pod(record, found.device)
    return (Interface(record.attachment.ifname, link.mac, link.mtu, record.netns),)


def check(record: Record, expected: common.Expected, pod: Pod) -> None:
    """Raise CniError (113) unless port, interface, MAC, addresses, routes and the host's route are there."""
    tun.check_port(record, expected, pod)


def derived_mac(record: Record) -> str:
    """A locally administered MAC that is the attachment's in every life of it."""
    from hashlib import sha256

    digest = bytearray(sha256("\0".join(record.attachment).encode()).digest()[:6])
    digest[0] = (digest[0] & 0xFE) | 0x02
    return digest.hex(":")
