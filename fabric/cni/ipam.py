"""Where addresses come from: `host-local` by ourselves (`fabric.ipam`), any other IPAM plugin by executing it.

Raises CniError throughout, with the code that the IPAM plugin gave.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fabric.cni import delegate
from fabric.cni.attachment import Attachment
from fabric.cni.config import Conf
from fabric.cni.errors import INVALID_CONFIG, NOT_AVAILABLE, CniError, shown
from fabric.cni.logs import log
from fabric.cni.protocol import NEWEST, Request
from fabric.cni.result import IPConfig, Result, parse, parse_routes
from fabric.cni.subnet_env import SubnetEnv
from fabric.ipam import allocator
from fabric.ipam import config as ranges
from fabric.ipam.errors import ALREADY_ALLOCATED, IPAMError
from fabric.ipam.names import Attachment as Owner
from fabric.ipam.result import render
from fabric.ipam.store import existing
from fabric.jsonsafe import fold_keys

OURS = "host-local"
OURSELVES = ("fabric-cni", "flannel")
"""Interface plugins: as an IPAM plugin they would execute themselves without end."""


class Ipam(NamedTuple):
    """The address management of one configuration, as the request wants it."""

    conf: Conf
    request: Request

    @property
    def type(self) -> str:
        """The IPAM plugin's name."""
        name = fold_keys(self.conf.section("ipam")).get("type") or OURS
        if not isinstance(name, str) or name in OURSELVES:
            raise CniError(INVALID_CONFIG, f"ipam.type {shown(name)} is no IPAM plugin")
        return name

    def add(self) -> Result:
        """Addresses, routes and DNS for a new attachment, which has no interface yet; nothing is kept when it fails."""
        if self.type == OURS:
            return _allocate(self.conf, self.request)
        try:
            return parse(delegate.run(self.type, self.request, self.conf.document, "ADD"), f"answer of {self.type}")
        except CniError:
            self._undo()
            raise

    def delete(self, attachment: Attachment) -> None:
        """Give back what the attachment has, if anything."""
        if self.type == OURS:
            with _translated():
                allocator.release(ranges.place(self.conf.document), _owner(attachment))
        else:
            delegate.run(self.type, self.request, self.conf.document, "DEL")

    def check(self, attachment: Attachment) -> None:
        """Raise CniError unless the attachment has its addresses."""
        if self.type == OURS:
            with _translated():
                allocator.check(ranges.place(self.conf.document), _owner(attachment))
        else:
            delegate.run(self.type, self.request, self.conf.document, "CHECK")

    def collect(self, valid: Collection[Attachment]) -> None:
        """Free what belongs to none of the `valid` attachments."""
        if self.type == OURS:
            with _translated():
                allocator.gc(ranges.load(self.conf.document), [_owner(attachment) for attachment in valid])
        elif delegate.speaks(self.type, self.request, self.conf.version):
            delegate.run(self.type, self.request, self.conf.document, "GC")
        else:
            log(f"IPAM plugin {self.type} has no GC in version {self.conf.version}: its addresses stay")

    def ready(self) -> None:
        """Raise CniError unless addresses can be had."""
        if self.type == OURS:
            _refuse_full(self.conf)
        elif delegate.speaks(self.type, self.request, self.conf.version):
            delegate.run(self.type, self.request, self.conf.document, "STATUS")

    def _undo(self) -> None:
        try:
            delegate.run(self.type, self.request, self.conf.document, "DEL")
        except CniError as error:
            log(f"DEL of IPAM plugin {self.type} after its failed ADD: {error}")


def delete_all(leaving: Iterable[tuple[Ipam, Attachment]]) -> dict[Attachment, CniError]:
    """`Ipam.delete` for many, with one look at each directory of reservations; those that kept something, and why."""
    failed: dict[Attachment, CniError] = {}
    together: dict[ranges.Place, list[Attachment]] = {}
    for ipam, attachment in leaving:
        try:
            if ipam.type != OURS:
                ipam.delete(attachment)
                continue
            with _translated():
                together.setdefault(ranges.place(ipam.conf.document), []).append(attachment)
        except CniError as error:
            failed[attachment] = error
    for place, attachments in together.items():
        try:
            with _translated():
                allocator.release_all(place, [_owner(attachment) for attachment in attachments])
        except CniError as error:
            failed |= dict.fromkeys(attachments, error)
    return failed


def is_complete(conf: Conf) -> bool:
    """Whether the configuration says itself where addresses come from, or the runtime does (`ipRanges`)."""
    fields = fold_keys(conf.section("ipam"))
    ranges = fields.get("ranges") or fields.get("subnet") or fold_keys(conf.section("runtimeconfig")).get("ipranges")
    return (fields.get("type") or OURS) != OURS or bool(ranges)


def owners(conf: Conf, container_id: str) -> list[tuple[str, str]]:
    """Container id and interface of this container's reservations. Raises CniError (7) for another IPAM plugin."""
    if Ipam(conf, Request("DEL")).type != OURS:
        raise CniError(INVALID_CONFIG, "its addresses are another IPAM plugin's")
    with _translated(), existing(ranges.place(conf.document)) as store:
        texts = {content.decode(errors="replace") for content in store.records().values()} if store else set()
    pairs = (text.partition("\r\n") for text in sorted(texts))
    return [(owner, ifname) for owner, _, ifname in pairs if owner == container_id and ifname]


def filled(section: dict[str, Any], env: SubnetEnv) -> dict[str, Any]:
    """The section with the node's subnets as its ranges, one range set for each family."""
    ranges = [[{"subnet": str(subnet.network)}] for subnet in env.subnets]
    kept = {key: value for key, value in section.items() if key.lower() != "ranges"}
    return {"type": OURS, **kept, "ranges": ranges}


def _allocate(conf: Conf, request: Request) -> Result:
    with _translated():
        loaded = ranges.load(conf.document)
        wanted = ranges.requested(conf.document, request.args)
        dns = allocator.read_dns(loaded.resolv_conf)
        owner = Owner(request.container_id, request.ifname)
        try:
            granted = allocator.allocate(loaded, owner, wanted)
        except IPAMError as error:
            if error.code != ALREADY_ALLOCATED:
                raise
            log(f"releasing what an ADD that was killed has reserved: {error}")
            allocator.release(loaded.place, owner)
            granted = allocator.allocate(loaded, owner, wanted)
        rendered = render(granted, loaded.routes, dns, NEWEST)
    return Result(
        (),
        tuple(IPConfig(item.address, item.gateway) for item in granted),
        parse_routes(rendered.get("routes")),
        rendered.get("dns") or {},
    )


def _refuse_full(conf: Conf) -> None:
    """Raise CniError (50) when a range set has no free address."""
    with _translated():
        loaded = ranges.load(conf.document)
        with existing(loaded.place) as store:
            taken = set(store.addresses()) if store else set()
    for ranges_of_set in loaded.range_sets:
        if all(address in taken for address, _ in ranges_of_set.candidates(None)):
            raise CniError(NOT_AVAILABLE, f"no IP addresses available in range set: {ranges_of_set}")


def _owner(attachment: Attachment) -> Owner:
    return Owner(attachment.container_id, attachment.ifname)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IPAMError as error:
        raise CniError(error.code, error.msg, error.details) from None
