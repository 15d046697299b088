"""What attachments that are gone for certain have left, removed by the daemon at its start: no DEL comes.

Certain is: the record is of another boot of the machine, or the daemon has lost the pod by its own evidence (`Lost`).
Each attachment is removed as DEL does it, under its lock, so an address is free only when nothing leads to it any more.
One that another call works on is left to that call. Files of type `flannel` do not say of which boot they are. Their
containers are gone when the machine was rebooted and there has been no subnet.env since: without it no ADD of that type
is served, by either plugin. Reservations with neither record nor file stay: nothing tells whose they are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fabric.cni import flannel, links, native
from fabric.cni.attachment import Attachment, Record, parse_any_port
from fabric.cni.config import Conf, load
from fabric.cni.endpoints import KINDS
from fabric.cni.errors import CniError
from fabric.cni.protocol import is_name
from fabric.cni.state import Store
from routes.netlink import Netlink

AT_ONCE = 64
"""Attachments that are removed together. Removing one by one reads all reservations for each."""


class Lost(NamedTuple):
    """A pod that the daemon has dropped: its port's name and the path of its namespace; `rebooted` is why."""

    name: str
    netns: str
    rebooted: bool


class Outcome(NamedTuple):
    """How many attachments were removed, and what could not be."""

    removed: int = 0
    problems: tuple[str, ...] = ()

    def __add__(self, other: object) -> Outcome:
        assert isinstance(other, Outcome)
        return Outcome(self.removed + other.removed, self.problems + other.problems)


def lost(data_dir: Path, pods: Iterable[Lost], boot_id: str) -> Outcome:
    """Remove the attachments of these pods, where the record still is that pod's."""
    found = {attachment: pod for pod in pods if (attachment := parse_any_port(pod.name)) is not None}
    networks: dict[str, list[Attachment]] = {}
    for attachment in found:
        networks.setdefault(attachment.network, []).append(attachment)
    stores = ((Store(data_dir / network, network), attachments) for network, attachments in networks.items())
    gone = partial(_is_lost, found, boot_id)
    return sum((_remove(store, attachments, gone) for store, attachments in stores), Outcome())


def rebooted(data_dir: Path, boot_id: str) -> Outcome:
    """Remove every attachment whose record is of another boot. A record that does not say stays."""
    found = Outcome()
    for network in _directories(data_dir):
        store = Store(data_dir / network, network)
        try:
            found += _remove(store, store.all(), lambda record: record.boot_id not in ("", boot_id))
        except CniError as error:
            found += Outcome(0, (str(error),))
    return found


def flannels(data_dir: Path) -> Outcome:
    """Free what containers of type `flannel` have; the caller knows that all of before this boot are gone."""
    booted = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    found = Outcome()
    try:
        containers = flannel.containers(data_dir)
    except CniError as error:
        return Outcome(0, (str(error),))
    for container_id in containers:
        try:
            found += Outcome(int(flannel.forget(data_dir, container_id, booted)))
        except (CniError, OSError, ValueError, AttributeError) as error:
            found += Outcome(0, (f"{container_id}: {error}",))
    return found


def _remove(store: Store, attachments: Sequence[Attachment], gone: Callable[[Record], bool]) -> Outcome:
    found = Outcome()
    for first in range(0, len(attachments), AT_ONCE):
        found += _remove_some(store, attachments[first : first + AT_ONCE], gone)
    return found


def _remove_some(store: Store, attachments: Iterable[Attachment], gone: Callable[[Record], bool]) -> Outcome:
    """Under the locks of all of them, each of which is a descriptor."""
    leaving: list[tuple[Record, Conf]] = []
    failed: dict[Attachment, Exception] = {}
    with ExitStack() as stack:
        for attachment in attachments:
            try:
                record = store.load(attachment) if stack.enter_context(store.claimed(attachment)) else None
                if record is not None and gone(record):
                    leaving.append((record, load(dict(record.document))))
            except (CniError, OSError) as error:
                failed[attachment] = error
        failed |= native.remove_all(store, leaving)
    removed = sum(record.attachment not in failed for record, _ in leaving)
    return Outcome(removed, tuple(f"{attachment.key}: {error}" for attachment, error in failed.items()))


def _is_lost(pods: Mapping[Attachment, Lost], boot_id: str, record: Record) -> bool:
    """A pod that was added again since, with its old id and path, has a record of this boot, or its host interface."""
    pod = pods[record.attachment]
    if record.netns != pod.netns or (pod.rebooted and record.boot_id == boot_id):
        return False
    if record.kind not in KINDS:
        return True
    with Netlink() as netlink:
        return links.find(netlink, record.attachment.host_interface) is None


def _directories(data_dir: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(data_dir) if is_name(name) and (data_dir / name).is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
