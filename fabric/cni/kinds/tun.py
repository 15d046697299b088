"""Kind `tun`: a port of the daemon. No host interface, no bridge: the daemon carries the pod's packets itself.

The plugin makes the device and hands its queue to the daemon (SCM_RIGHTS), by which every packet of the pod goes to it.
A daemon that takes none makes the device itself, which is then gone when the daemon ends. Addresses and routes are the
plugin's either way. The host reaches the pod by a route to the node port. Limits: one address of each family, no MAC,
nothing for the `bandwidth` plugin to shape.
"""

from __future__ import annotations

from collections.abc import Iterable

from fabric.cni import addressing, endpoints
from fabric.cni.attachment import Record
from fabric.cni.config import Conf
from fabric.cni.errors import CHECK_FAILED, INVALID_CONFIG, UNSUPPORTED_FIELD, CniError
from fabric.cni.kinds import common
from fabric.cni.kinds.daemon import Status, connect, delete_port, node_port, ready, status, translated
from fabric.cni.logs import log
from fabric.cni.pod import Pod
from fabric.cni.result import Interface, IPConfig, Result, default_route
from fabric.control_client import DEFAULT_RUN_DIR, ControlClient, DaemonRefusedError, DaemonUnavailableError
from routes.netlink import Netlink

__all__ = ["attach", "check", "detach", "plan", "ready"]
NAME = "tun"
NO_MAC = "00:00:00:00:00:00"
"""In results: a TUN has no MAC, but podman takes no interface without one ("invalid MAC address")."""
FAILED = "failed to add port"


def plan(conf: Conf, ipam: Result, mac: str) -> Result:
    """Host addresses and routes without next hop: layer 3 has no gateway. Raises CniError (2, 7)."""
    if mac:
        advice = "kind tun has no MAC: use tap, veth or bridge"
        raise CniError(UNSUPPORTED_FIELD, f"unsupported field mac={mac}", advice)
    ips = one_of_each_version(conf, ipam, NAME)
    routes = tuple(route._replace(gateway=None) for route in ipam.routes)
    return Result((), ips, routes or tuple(default_route(ip.address.version, None) for ip in ips), ipam.dns)


def one_of_each_version(conf: Conf, ipam: Result, kind: str) -> tuple[IPConfig, ...]:
    """Host addresses. Raises CniError (7)."""
    conf.path("rundir", DEFAULT_RUN_DIR)
    ips = common.host_addresses(ipam, kind)
    if len({ip.address.version for ip in ips}) != len(ips):
        texts = ", ".join(str(ip.address) for ip in ips)
        raise CniError(INVALID_CONFIG, f"kind {kind} takes one address of each family, not {texts}")
    return ips


def attach(record: Record, pod: Pod) -> tuple[Interface, ...]:
    """Make the port, and configure it. Raises CniError (11 while no daemon answers, 111, 112)."""
    with connect(record) as daemon:
        with translated(FAILED):
            found = status(daemon)
            delete_port(daemon, record.attachment.port)  # ours from a killed call: no interface has its name
        mtu = _hand_over(daemon, record, pod, found) or _have_made(daemon, record, pod)
    lead_host_to_pod(record, found.device)
    return (Interface(record.attachment.ifname, NO_MAC, mtu, record.netns),)


def detach(record: Record, pod: Pod | None) -> bool:
    """Remove port, device and host routes; False when the daemon could not be told, which has to be done later."""
    addresses = list(record.addresses)
    with connect(record) as daemon:
        try:
            if not addresses:  # the record is lost: the daemon knows, and nobody else has them while it does
                addresses += status(daemon).ports.get(record.attachment.port, [])
            delete_port(daemon, record.attachment.port)
            told = True
        except (DaemonUnavailableError, DaemonRefusedError) as error:
            log(f"{record.attachment.key}: its port is left to a later call: {error}")
            told = False
    from fabric.cni.kinds import queue

    queue.delete(record, pod)
    with Netlink() as netlink:
        common.forget_pod(netlink, addresses)
    return told


def check(record: Record, expected: common.Expected, pod: Pod) -> None:
    """Raise CniError (113) unless port, interface, addresses, routes and the host's route are there."""
    check_port(record, expected._replace(mac=""), pod)


def check_port(record: Record, expected: common.Expected, pod: Pod) -> None:
    """The same for both kinds of ports."""
    link = common.check_inside(record, expected, pod, NAME)
    with connect(record) as daemon:
        try:
            found = status(daemon)
        except (DaemonUnavailableError, DaemonRefusedError) as error:
            raise CniError(CHECK_FAILED, f"the daemon of {link.name} does not serve it: {error}") from None
    addresses = found.ports.get(record.attachment.port)
    if addresses is None:
        raise CniError(CHECK_FAILED, f"fabricd has no port {record.attachment.port}: was it restarted?")
    served = {address.ip for address in addresses}
    missing = [str(ip.ip) for ip in record.addresses if ip.ip not in served]
    if missing:
        raise CniError(CHECK_FAILED, f"port {record.attachment.port} does not have {', '.join(missing)}")
    with Netlink() as netlink:
        device = node_port(netlink, found.device)
        common.check_host_route(netlink, record, device.ifindex, device.name)


def lead_host_to_pod(record: Record, device: str) -> None:
    """Host routes to the pod through the node port. Raises CniError (111, 112)."""
    with Netlink() as netlink:
        addressing.set_sysctls(addressing.forwarding(record.versions))
        common.route_to_pod(netlink, node_port(netlink, device), record.addresses)


def hand_over(daemon: ControlClient, record: Record, fds: Iterable[int]) -> None:
    """Raises the errors of `ControlClient.ask`."""
    daemon.ask("port.add", endpoints.described(record), tuple(fds))


def _hand_over(daemon: ControlClient, record: Record, pod: Pod, found: Status) -> int:
    """The device's MTU; 0 when the daemon did not take its queue, and there is none."""
    from fabric.cni.kinds import queue
    from tun.device import Kind

    mtu = record.mtu or found.mtu
    with translated(FAILED), queue.make(record, pod, Kind.TUN, mtu, found.queue) as device:
        common.configure(record, pod, record.routes)
        try:
            hand_over(daemon, record, device.fds)
        except DaemonRefusedError as error:
            # Perhaps it knows of no queues and finds its own device in the way of its name. If not, it says so again.
            log(f"{record.attachment.key}: fabricd does not take the device ({error}): leaving it to fabricd")
            device.persist(False)
            return 0
        return device.mtu


def _have_made(daemon: ControlClient, record: Record, pod: Pod) -> int:
    with translated(FAILED):
        made = daemon.ask("port.add", endpoints.described(record))
    common.configure(record, pod, record.routes)
    return int(made["mtu"])
