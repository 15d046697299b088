"""Neighbours and forwarding entries of a VXLAN device: who has a peer's overlay address, and where its VTEP is.

Both are neighbour messages of the kernel's with the same three facts, address, MAC and device. A neighbour binds an
overlay address to a MAC, a forwarding entry a MAC to an underlay address (AF_BRIDGE). The device is ours alone, so
every permanent entry on it is ours: what nobody asked for is removed, also where another process left it. Entries that
the kernel learned or probed are not permanent; they are passed over unless they sit in the place of one of ours.

An entry that exists with another value is replaced in one step, so that packets in between find the old one or the new.
"""

import errno
import socket
from abc import ABC, abstractmethod
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from routes.delta import DeltaTracker
from routes.netlink import NLM_F_CREATE, NLM_F_REPLACE, RTM_DELNEIGH, RTM_NEWNEIGH, Netlink, Request
from routes.observe import (
    AF_BRIDGE,
    FAMILIES,
    NDA_DST,
    NDA_LLADDR,
    NUD_PERMANENT,
    KernelNeighbour,
    read_neighbours,
)
from routes.state import DeviceState, FdbEntry, IPAddress, Neighbour
from routes.wire import NEIGHBOUR, attribute
from routes.work import Operation, Work

NTF_SELF = 0x02
Entry = TypeVar("Entry", Neighbour, FdbEntry)
Key = TypeVar("Key")
Value = TypeVar("Value")


class Binding(NamedTuple, Generic[Value]):
    """What a key is bound to; `plain` is False when the entry says more than ours would, or is not permanent."""

    value: Value
    plain: bool


class EntryTable(ABC, Generic[Entry, Key, Value]):
    """Desired and observed entries of one kind on one device."""

    families: tuple[int, ...] = FAMILIES

    def __init__(self) -> None:
        self._tracker: DeltaTracker[Key, Binding[Value | None]] = DeltaTracker()
        self._desired: frozenset[Entry] = frozenset()

    def desire(self, state: DeviceState) -> None:
        """Take over what `state` lists, at the cost of what is new in it; a device that should be down has none."""
        entries = self.wanted(state) if state.up is not False else frozenset[Entry]()
        for entry in self._desired - entries:
            self._tracker.undesire(self.split(entry)[0])
        for entry in entries - self._desired:
            key, value = self.split(entry)
            self._tracker.desire(key, Binding(value, plain=True))
        self._desired = entries

    def forget_all(self) -> None:
        self._tracker.replace_observed({})

    def observe(self, netlink: Netlink, index: int) -> None:
        found: dict[Key, Binding[Value | None]] = {}
        for entry in read_neighbours(netlink, index, self.families):
            key, value = self.split_observed(entry)
            if key is not None and (entry.permanent or key in self._tracker.desired):
                found[key] = Binding(value, entry.plain and key not in found)
        self._tracker.replace_observed(found)

    def add(self, netlink: Netlink, work: Work, device: str, index: int) -> None:
        """Make what is missing and replace what differs."""
        operations = []
        for key, binding, observed in self._tracker.pending_updates():
            if observed is not None and not observed.plain:  # an entry of another make may refuse to be replaced
                operations.append(self._deletion(device, index, key))
            operations.append(self._addition(device, index, key, binding))
        work.perform(netlink, operations)

    def remove(self, netlink: Netlink, work: Work, device: str, index: int) -> None:
        """Remove what nobody asked for."""
        deletions = self._tracker.pending_deletions()
        work.perform(netlink, [self._deletion(device, index, key) for key, _ in deletions])

    def _addition(self, device: str, index: int, key: Key, binding: Binding[Value | None]) -> Operation:
        request = partial(add_request, self.message(index, key, binding.value))
        observe = partial(self._tracker.observe, key, binding)
        return Operation(self.label(key, device), f"set to {text(binding.value)}", request, observe)

    def _deletion(self, device: str, index: int, key: Key) -> Operation:
        request = partial(delete_request, self.message(index, key, None))
        forget = partial(self._tracker.forget, key)
        return Operation(self.label(key, device), "removed", request, forget, gone=(errno.ENOENT,))

    @abstractmethod
    def wanted(self, state: DeviceState) -> frozenset[Entry]: ...

    @abstractmethod
    def split(self, entry: Entry) -> tuple[Key, Value]: ...

    @abstractmethod
    def split_observed(self, entry: KernelNeighbour) -> tuple[Key | None, Value | None]: ...

    @abstractmethod
    def label(self, key: Key, device: str) -> str: ...

    @abstractmethod
    def message(self, index: int, key: Key, value: Value | None) -> bytes: ...


class NeighbourTable(EntryTable[Neighbour, IPAddress, bytes]):
    """Overlay address to MAC: answers that ARP and ND would otherwise look for."""

    def wanted(self, state: DeviceState) -> frozenset[Neighbour]:
        return state.neighbours

    def split(self, entry: Neighbour) -> tuple[IPAddress, bytes]:
        return entry.address, entry.mac

    def split_observed(self, entry: KernelNeighbour) -> tuple[IPAddress | None, bytes]:
        return entry.address, entry.mac

    def label(self, key: IPAddress, device: str) -> str:
        return f"neighbour {key} dev {device}"

    def message(self, index: int, key: IPAddress, value: bytes | None) -> bytes:
        family = socket.AF_INET if key.version == 4 else socket.AF_INET6
        return NEIGHBOUR.pack(family, index, NUD_PERMANENT, 0, 0) + pair(key, value)


class FdbTable(EntryTable[FdbEntry, bytes, IPAddress]):
    """MAC to the underlay address of its VTEP."""

    families = (AF_BRIDGE,)

    def wanted(self, state: DeviceState) -> frozenset[FdbEntry]:
        return state.fdb

    def split(self, entry: FdbEntry) -> tuple[bytes, IPAddress]:
        return entry.mac, entry.destination

    def split_observed(self, entry: KernelNeighbour) -> tuple[bytes, IPAddress | None]:
        return entry.mac, entry.address

    def label(self, key: bytes, device: str) -> str:
        return f"fdb {key.hex(':')} dev {device}"

    def message(self, index: int, key: bytes, value: IPAddress | None) -> bytes:
        return NEIGHBOUR.pack(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0) + pair(value, key)


def pair(address: IPAddress | None, mac: bytes | None) -> bytes:
    """The attributes of an entry; to delete one, its key alone is enough."""
    parts = b"" if address is None else attribute(NDA_DST, address.packed)
    return parts if mac is None else parts + attribute(NDA_LLADDR, mac)


def add_request(message: bytes) -> Request:
    return RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, message


def delete_request(message: bytes) -> Request:
    return RTM_DELNEIGH, 0, message


def text(value: bytes | IPAddress | object) -> str:
    return value.hex(":") if isinstance(value, bytes) else str(value)
