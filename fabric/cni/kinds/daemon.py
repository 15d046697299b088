"""The daemon's part in kinds `tun` and `tap`: what it is asked, and what its refusals mean to a runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface
from typing import NamedTuple

from fabric.cni import links
from fabric.cni.attachment import Record, parse_port
from fabric.cni.config import Conf, load
from fabric.cni.errors import DAEMON_REFUSED, LIMITED_CONNECTIVITY, TRY_AGAIN_LATER, CniError
from fabric.cni.kinds import common
from fabric.cni.logs import log
from fabric.cni.result import AddressInterface
from fabric.control_client import (
    DEFAULT_RUN_DIR,
    ControlClient,
    DaemonGoneError,
    DaemonRefusedError,
    DaemonUnavailableError,
)
from routes.netlink import Netlink

PATIENCE = 10.0
"""Seconds for one answer when a pod waits for it: many pods may start at once, and the daemon takes one at a time."""


class Status(NamedTuple):
    """What the daemon says: whether it forwards, its node port, the pods' MTU, the addresses of each port by name, the
    length of its devices' queues in packets (0: it does not say)."""

    ready: bool
    device: str
    mtu: int
    ports: dict[str, list[AddressInterface]]
    queue: int


def connect(record: Record) -> ControlClient:
    """The daemon of the record's network; nothing is sent yet."""
    return ControlClient(load(dict(record.document)).path("rundir", DEFAULT_RUN_DIR), PATIENCE)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raises CniError: 11 while no daemon answers, 111 for a refusal."""
    try:
        yield
    except DaemonUnavailableError as error:
        raise CniError(TRY_AGAIN_LATER, f"{what}: {error}") from None
    except DaemonRefusedError as error:
        raise CniError(DAEMON_REFUSED, f"{what}: {error}") from None


def status(daemon: ControlClient) -> Status:
    """Raises the errors of `ControlClient.ask`."""
    answer = daemon.ask("status")
    try:
        ports = {
            str(port["name"]): [ip_interface(text) for text in port["addresses"]]
            for port in answer["dataplane"].get("ports", [])
        }
        queue = int(answer["dataplane"].get("txqueuelen", 0))
        return Status(bool(answer["ready"]), str(answer["device"]), int(answer["mtu"]), ports, queue)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DaemonUnavailableError(f"fabricd at {daemon.path} is of another version: upgrade both") from None


def delete_port(daemon: ControlClient, name: str) -> None:
    """Also when there is no such port. Raises the errors of `ControlClient.ask`."""
    try:
        daemon.ask("port.delete", {"name": name})
    except DaemonRefusedError as error:
        if str(error) != f"no port {name}":
            raise


def node_port(netlink: Netlink, name: str) -> links.Link:
    """The device by which the host reaches pods. Raises CniError (111)."""
    link = links.find(netlink, name)
    if link is None:
        text = f"there is no node port {name}: with this backend pods need kind veth or bridge"
        raise CniError(DAEMON_REFUSED, text)
    return link


def tell(record: Record) -> bool:
    """Have the daemon forget the port of a record that was postponed; False when none does."""
    with connect(record) as daemon:
        try:
            delete_port(daemon, record.attachment.port)
        except (DaemonUnavailableError, DaemonRefusedError):
            return False
    return True


def ready(conf: Conf) -> None:
    """Raise CniError (51) unless the daemon can take ports: without it pods that exist are cut off, too."""
    with ControlClient(conf.path("rundir", DEFAULT_RUN_DIR)) as daemon:
        try:
            found = status(daemon)
        except (DaemonUnavailableError, DaemonRefusedError) as error:
            raise CniError(LIMITED_CONNECTIVITY, str(error)) from None
    if not found.ready:
        raise CniError(LIMITED_CONNECTIVITY, "fabricd does not forward yet: see its log")


def sweep(conf: Conf, keys: set[str]) -> None:
    """Delete this network's ports whose attachment is not in `keys`, and the host's routes to them. For GC.

    Raises CniError (11, 111).
    """
    with ControlClient(conf.path("rundir", DEFAULT_RUN_DIR)) as daemon, translated("ports cannot be collected"):
        try:
            for name, addresses in status(daemon).ports.items():
                attachment = parse_port(name, conf.name)
                if attachment is not None and attachment.key not in keys:
                    log(f"GC: port {name} belongs to no valid attachment")
                    delete_port(daemon, name)
                    with Netlink() as netlink:
                        common.forget_pod(netlink, addresses)
        except DaemonGoneError:
            return  # its ports are gone with it
