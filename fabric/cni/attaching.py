"""ADD, DEL and CHECK of one attachment by ourselves: the order of the steps, and how they are taken back.

Reserve addresses, plan, remember, make, answer: whatever fails, also the answer, is undone in reverse. Removing goes
the other way: the address is free only when nothing uses it any more, the record goes last.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fabric.boot import boot_id
from fabric.cni import endpoints, hostside, kinds, links
from fabric.cni.attachment import Attachment, Record
from fabric.cni.config import Conf, wanted_mac
from fabric.cni.errors import INTERFACE_EXISTS, INVALID_CONFIG, CniError
from fabric.cni.identity import identity
from fabric.cni.ipam import Ipam, delete_all
from fabric.cni.kinds.common import Expected
from fabric.cni.logs import log
from fabric.cni.mappings import wanted
from fabric.cni.pod import Pod
from fabric.cni.protocol import Request
from fabric.cni.result import Result, parse
from routes.netlink import Netlink

Answer = Callable[[Result], None]


class Keeper(NamedTuple):
    """Where an attachment is remembered: `begin` before there is an address, `save` before anything else is made.

    `postpone` is for a record of which the daemon has to be told yet.
    """

    begin: Callable[[], None]
    save: Callable[[Record], None]
    forget: Callable[[Record], None]
    postpone: Callable[[Record], None]


class _Progress(NamedTuple):
    """How far an ADD came."""

    reserved: bool = False
    making: bool = False


def attach(request: Request, conf: Conf, kind: str, mtu: int, pod: Pod, keeper: Keeper, answer: Answer) -> None:
    """ADD. `conf` has its `ipam` section filled in, `answer` sends the result. Raises CniError, with nothing left."""
    ipam, maker = Ipam(conf, request), kinds.load(kind)
    attachment = Attachment(conf.name, request.container_id, request.ifname)
    previous = parse(conf.folded["prevresult"]) if conf.folded.get("prevresult") else Result()
    mac, asked = wanted_mac(conf, request.args), wanted(conf)
    named = identity(conf, request)
    record = Record(attachment, kind, request.netns, conf.document, mtu=mtu, mac=mac)
    record = record._replace(pod=named.pod, labels=named.labels, boot_id=boot_id())
    progress = _Progress()
    try:
        keeper.begin()
        given = ipam.add()
        progress = _Progress(reserved=True)
        planned = maker.plan(conf, given, mac)
        record = record._replace(ips=planned.ips, routes=planned.routes)
        keeper.save(record)
        progress = _Progress(reserved=True, making=True)
        interfaces = maker.attach(record, pod)
        hostside.attach(asked, record, given)
        endpoints.announce(record)
        ips = tuple(ip._replace(interface=len(interfaces) - 1) for ip in planned.ips)
        made = Result(interfaces, ips, planned.routes, conf.section("dns") or planned.dns)
        answer(made.after(previous))
    except BaseException:
        _take_back(record, pod, progress, ipam, keeper)
        raise


def detach(request: Request, record: Record, conf: Conf, pod: Pod | None, keeper: Keeper) -> None:
    """DEL of what the record describes; what is gone already is passed over. Raises CniError for what stays."""
    hostside.detach(record)  # first: nobody is led to an address that may be another's soon
    told = kinds.load(record.kind).detach(record, pod)
    Ipam(conf, request).delete(record.attachment)
    endpoints.withdraw(record)
    _forget(record, told, keeper)


def detach_all(leaving: Sequence[tuple[Record, Conf]], keeper: Keeper) -> dict[Attachment, CniError]:
    """`detach` of many whose containers are gone: each step for all of them, since reservations are looked at whole.

    Those of which something stays, the record among it, and why. The caller holds their locks.
    """
    failed: dict[Attachment, CniError] = {}
    for record, _ in leaving:
        try:
            hostside.detach(record)
            kinds.load(record.kind).detach(record, None)
        except CniError as error:
            failed[record.attachment] = error
    unused = [(record, conf) for record, conf in leaving if record.attachment not in failed]
    failed |= delete_all((Ipam(conf, _request(record)), record.attachment) for record, conf in unused)
    for record, _ in unused:
        try:
            if record.attachment not in failed:
                endpoints.withdraw(record)
                keeper.forget(record)
        except CniError as error:
            failed[record.attachment] = error
    return failed


def check(request: Request, record: Record, conf: Conf, pod: Pod) -> None:
    """CHECK against `prevResult`, all of it when the record is lost. Raises CniError."""
    if not conf.folded.get("prevresult"):
        raise CniError(INVALID_CONFIG, "Required prevResult missing")
    expected = _expected(record, parse(conf.folded["prevresult"]))
    Ipam(conf, request).check(record.attachment)
    kinds.load(record.kind).check(record, expected, pod)
    hostside.check(record)


def refuse_existing(pod: Pod, ifname: str) -> None:
    """Raise CniError (110) when the container has an interface of this name: it is somebody's, and stays."""

    def inside() -> bool:
        with Netlink() as netlink:
            return links.find(netlink, ifname) is not None

    if pod.run(inside):
        raise CniError(INTERFACE_EXISTS, f"interface {ifname} already exists in {pod.path}")


def _take_back(record: Record, pod: Pod, progress: _Progress, ipam: Ipam, keeper: Keeper) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the undoing is short, and half of it would be worth nothing
    try:
        if progress.making:
            hostside.detach(record)
        told = not progress.making or kinds.load(record.kind).detach(record, pod)
        if progress.making:
            endpoints.withdraw(record)
        if progress.reserved:
            ipam.delete(record.attachment)
        _forget(record, told, keeper)
    except Exception as error:
        log(f"{record.attachment.key}: undoing the failed ADD is left to DEL: {error}")


def _forget(record: Record, told: bool, keeper: Keeper) -> None:
    if not told:
        keeper.postpone(record)
    keeper.forget(record)


def _request(record: Record) -> Request:
    """That of a container that is gone."""
    return Request("DEL", record.attachment.container_id, "", record.attachment.ifname)


def _expected(record: Record, previous: Result) -> Expected:
    """Ours that a later plugin of the chain has left in the result."""
    index = _index(record, previous)
    if index is None:
        raise CniError(INVALID_CONFIG, f"prevResult has no interface {record.attachment.ifname}")
    addresses = tuple(ip.address for ip in previous.ips if ip.interface == index)
    routes = previous.routes
    if record.ips:
        addresses = tuple(address for address in addresses if address in record.addresses)
        dsts = {route.dst for route in record.routes}
        routes = tuple(route for route in routes if route.dst in dsts)
    return Expected(addresses, routes, previous.interfaces[index].mac, previous.interfaces[index].mtu)


def _index(record: Record, previous: Result) -> int | None:
    """The container's interface in a result."""
    for index, interface in enumerate(previous.interfaces):
        if interface.name == record.attachment.ifname and interface.sandbox:
            return index
    return None
