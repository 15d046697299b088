"""The verbs: allocate, release, check, gc, reconcile. Each takes the network's lock once, `check` not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_interface

from fabric.ipam import ownership
from fabric.ipam.config import IPAMConf, Place
from fabric.ipam.errors import (
    ADDRESS_UNAVAILABLE,
    ALREADY_ALLOCATED,
    IO_FAILURE,
    NOT_ALLOCATED,
    TRY_AGAIN_LATER,
    IPAMError,
)
from fabric.ipam.names import Attachment
from fabric.ipam.ranges import Address, Range, RangeSet
from fabric.ipam.result import Dns, IPConfig, parse_resolv_conf
from fabric.ipam.store import Store, existing, opened

MAX_RESOLV_CONF = 1 << 20


def allocate(conf: IPAMConf, attachment: Attachment, requested: Sequence[Address] = ()) -> tuple[IPConfig, ...]:
    """Reserve one address of each range set; `requested` ones are taken from the sets that hold them.

    All or nothing. Raises IPAMError: 100 when the attachment has an address of a set already, 101 when a requested
    address cannot be had, 11 when a set is full, and those of `opened`.
    """
    with opened(conf.place) as store:
        store.prepare(attachment.record, len(conf.range_sets))
        with store.locked():
            return _reserve_all(store, conf.range_sets, attachment, requested)


def release(place: Place, attachment: Attachment) -> tuple[Address, ...]:
    """Free every address of the attachment, in whatever range; the addresses. None is no error.

    Raises IPAMError when a reservation is there and cannot be removed.
    """
    return release_all(place, (attachment,))


def release_all(place: Place, attachments: Collection[Attachment]) -> tuple[Address, ...]:
    """The same for many, with one look at all reservations."""
    with existing(place) as store:
        if store is None or store.is_empty():
            return ()
        with store.locked():
            return _free(store, ownership.owned_by_any(store.records(), attachments))


def check(place: Place, attachment: Attachment) -> None:
    """Raise IPAMError (102) unless the attachment holds an address, whichever."""
    with existing(place) as store:
        if store is not None and ownership.owned(store.records(), attachment):
            return
    raise IPAMError(NOT_ALLOCATED, f"Failed to find address added by container {attachment.container_id}")


def gc(conf: IPAMConf, valid: Collection[Attachment]) -> tuple[Address, ...]:
    """Free what belongs to none of the `valid` attachments; the addresses. Not to be run beside an ADD (CNI SPEC).

    Raises IPAMError (5) when some could not be removed, after trying all.
    """
    with existing(conf.place) as store:
        if store is None or store.is_empty():
            return ()
        with store.locked():
            return _free(store, ownership.stale(store.records(), valid, conf.range_sets))


def reconcile(conf: IPAMConf, live: Collection[Attachment], boot_id: str) -> tuple[Address, ...]:
    """Once per boot, before the first ADD is answered: free what is left of earlier boots; the addresses.

    `live` are the attachments that exist now, complete: they keep their addresses, also when the boot is not known to
    the directory because the reference plugin has served it so far. In the same boot nothing is freed. `boot_id` is
    the kernel's (`/proc/sys/kernel/random/boot_id`). Raises IPAMError (5) when some could not be removed; the next call
    tries again.
    """
    boot_id = boot_id.strip()
    with opened(conf.place) as store, store.locked():
        if store.boot_id() == boot_id:
            return ()
        freed = _free(store, ownership.stale(store.records(), live, conf.range_sets))
        store.set_boot_id(boot_id)
        return freed


def read_dns(path: str) -> Dns:
    """The content of the file named by `resolvConf`; nothing for an empty path. Raises IPAMError (5)."""
    if not path:
        return Dns()
    try:
        with open(path, "rb") as file:
            return parse_resolv_conf(file.read(MAX_RESOLV_CONF).decode("utf-8", "replace"))
    except (OSError, ValueError) as error:
        raise IPAMError(IO_FAILURE, f"resolvConf {ascii(path)[:200]} cannot be read: {error}") from None


def _reserve_all(
    store: Store, sets: Sequence[RangeSet], attachment: Attachment, requested: Sequence[Address]
) -> tuple[IPConfig, ...]:
    records = store.records()
    waiting = list(dict.fromkeys(requested))
    granted: list[IPConfig] = []
    try:
        for index, ranges in enumerate(sets):
            wanted = next((address for address in waiting if ranges.holds(address)), None)
            try:
                if wanted is None:
                    _refuse_second(records, ranges, attachment)
                    granted.append(_reserve_next(store, records, index, ranges))
                else:
                    waiting.remove(wanted)
                    granted.append(_reserve_requested(store, records, index, ranges, wanted))
            except IPAMError as error:
                msg = f"failed to allocate for range {index}: {error.msg}"
                raise IPAMError(error.code, msg, error.details) from None
        if waiting:
            texts = " ".join(map(str, waiting))
            raise IPAMError(ADDRESS_UNAVAILABLE, f"failed to allocate all requested IPs: {texts}")
    except BaseException:
        for item in granted:
            with contextlib.suppress(OSError):
                store.free(item.address.ip)
        raise
    return tuple(granted)


def _refuse_second(records: Mapping[Address, bytes], ranges: RangeSet, attachment: Attachment) -> None:
    for address, content in records.items():
        if content in (attachment.record, attachment.old_record) and ranges.holds(address):
            raise IPAMError(
                ALREADY_ALLOCATED,
                f"{address} has been allocated to {attachment.container_id}, duplicate allocation is not allowed",
            )


def _reserve_requested(
    store: Store, records: Mapping[Address, bytes], index: int, ranges: RangeSet, wanted: Address
) -> IPConfig:
    # As in the reference plugin, an attachment may ask for an address although it has one already.
    item = ranges.range_of(wanted)
    if item is None or wanted == item.gateway:
        raise IPAMError(ADDRESS_UNAVAILABLE, f"requested ip {wanted} is subnet's gateway")
    if wanted not in records:
        store.set_last_reserved(index, wanted)
        if store.reserve(wanted):
            return _granted(wanted, item)
    raise IPAMError(ADDRESS_UNAVAILABLE, f"requested IP address {wanted} is not available in range set {ranges}")


def _reserve_next(store: Store, records: Mapping[Address, bytes], index: int, ranges: RangeSet) -> IPConfig:
    for address, item in ranges.candidates(store.last_reserved(index)):
        if address in records:
            continue
        # Remembered first: where that fails nothing has been reserved yet; after a crash an address is skipped once.
        store.set_last_reserved(index, address)
        if store.reserve(address):
            return _granted(address, item)
    raise IPAMError(
        TRY_AGAIN_LATER,
        f"no IP addresses available in range set: {ranges}",
        "remove pods or widen the range; what belongs to pods that are gone is freed by CNI's GC and after a reboot",
    )


def _granted(address: Address, item: Range) -> IPConfig:
    return IPConfig(ip_interface((address, item.subnet.prefixlen)), item.gateway)


def _free(store: Store, addresses: Sequence[Address]) -> tuple[Address, ...]:
    failed: list[str] = []
    for address in addresses:
        try:
            store.free(address)
        except OSError as error:
            failed.append(f"{address} ({error.strerror})")
    if failed:
        raise IPAMError(IO_FAILURE, f"{len(failed)} reserved addresses cannot be freed: {', '.join(failed)[:500]}")
    return tuple(addresses)
