"""The data plane's sockets on the underlay: receive sockets of each format in use, transmit sockets for all of them.

Our own backend type's format has to open. Further formats, for peers of other types, are opened when they are asked for
and as far as that is possible: a held port costs those peers, never the node. The addresses may change meanwhile.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping, Sequence

from encap.sockets import (
    is_receive_socket,
    open_receive_socket,
    open_transmit_sockets,
    probe_gro,
    probe_segmentation,
    set_gro,
)
from fabric.errors import DataplaneError
from fabric.forward import kept
from fabric.forward.holder import port_holder
from fabric.model import Address, DataplaneSettings, Encapsulation

log = logging.getLogger("fabric")
SOURCE_PORTS_PER_FAMILY = 8


Receive = list[dict[Address, socket.socket]]
"""Receive sockets of one format: by worker, then by our address."""


class Underlay:
    """One per data plane. Raises DataplaneError with a line for people. Receive sockets are `kept` for the next run."""

    def __init__(self, settings: DataplaneSettings, keeper: kept.Kept) -> None:
        self._settings = settings
        self._kept = keeper
        self._addresses = settings.underlay
        self._receive: dict[Encapsulation, Receive] = {}
        self._unavailable: dict[Encapsulation, str] = {}
        self.transmit: dict[int, list[socket.socket]] = {4: [], 6: []}
        self.segmentation = False
        self.gro = False

    def open(self) -> None:
        """Probe the offloads, bind our own format's sockets and the transmit sockets."""
        settings = self._settings
        self.segmentation = settings.offload.get("udp-gso", True) and probe_segmentation()
        self.gro = settings.offload.get("udp-gro", True) and probe_gro()
        if settings.encapsulation is not None:
            self._receive[settings.encapsulation] = self._open(settings.encapsulation, self._addresses)
        for address in self._addresses:
            self.transmit[address.version] = _open_transmit(address)

    def require(self, formats: Iterable[Encapsulation]) -> list[Encapsulation]:
        """Open what is not open yet; the formats that are new. `unavailable` has the others, each said once."""
        opened = []
        for form in sorted(set(formats) - self._receive.keys()):
            try:
                self._receive[form] = self._open(form, self._addresses)
            except DataplaneError as error:
                self._lose(form, str(error))
                continue
            self._unavailable.pop(form, None)
            opened.append(form)
        return opened

    def rebind(self, addresses: Sequence[Address]) -> list[socket.socket]:
        """Go over to other addresses; the sockets that are not ours any more, for the caller to close.

        Sockets of addresses that stay are kept. An error leaves everything as it was; a further format that has no
        place on the new addresses is lost and becomes unavailable.
        """
        before, before_names = self._all(), self._names()
        receive: dict[Encapsulation, Receive] = {}
        transmit: dict[int, list[socket.socket]] = {4: [], 6: []}
        lost: dict[Encapsulation, str] = {}
        try:
            for form, old in self._receive.items():
                try:
                    receive[form] = self._moved(form, old, addresses)
                except DataplaneError as error:
                    if form == self._settings.encapsulation:
                        raise
                    lost[form] = str(error)
            for address in addresses:
                kept = address in self._addresses
                transmit[address.version] = self.transmit[address.version] if kept else _open_transmit(address)
        except BaseException:
            for sock in _sockets(receive, transmit):
                if sock not in before:
                    sock.close()
            raise
        self._addresses, self._receive, self.transmit = tuple(addresses), receive, transmit
        for form, reason in lost.items():
            self._lose(form, reason)
        for name in before_names - self._names():
            self._kept.drop(name)
        now = self._all()
        return [sock for sock in before if sock not in now]

    @property
    def unavailable(self) -> Mapping[Encapsulation, str]:
        """Formats that were asked for and could not be opened, with the reason."""
        return dict(self._unavailable)

    @property
    def formats(self) -> tuple[Encapsulation, ...]:
        """The formats that are open, our own first."""
        return tuple(self._receive)

    def sockets(self, worker: int, formats: Iterable[Encapsulation] | None = None) -> list[tuple[int, str]]:
        """(descriptor, format) of a worker's receive sockets, of all open formats or of the given ones."""
        chosen = self._receive if formats is None else formats
        return [(sock.fileno(), form) for form in chosen for sock in self._receive[form][worker].values()]

    def close(self) -> None:
        """Close all sockets. Idempotent."""
        for sock in self._all():
            sock.close()
        self._receive.clear()
        self.transmit = {4: [], 6: []}

    def _all(self) -> list[socket.socket]:
        return _sockets(self._receive, self.transmit)

    def _names(self) -> set[str]:
        """Under which the receive sockets are kept."""
        return {
            self._name(form, address, worker)
            for form, workers in self._receive.items()
            for worker, sockets in enumerate(workers)
            for address in sockets
        }

    def _name(self, form: Encapsulation, address: Address, worker: int) -> str:
        return kept.receiver(form, address, self._settings.ports[form], worker)

    def _lose(self, form: Encapsulation, reason: str) -> None:
        if self._unavailable.get(form) != reason:
            log.warning("peers that need the %s format are not reached: %s", form, reason)
        self._unavailable[form] = reason

    def _moved(self, form: Encapsulation, old: Receive, addresses: Sequence[Address]) -> Receive:
        """What is there on addresses that stay, and new sockets for the others."""
        new = [address for address in addresses if address not in self._addresses]
        kept = [{at: sock for at, sock in sockets.items() if at in addresses} for sockets in old]
        if not new and any(kept):
            return kept
        return [one | two for one, two in zip(kept, self._open(form, new, bool(any(kept))), strict=True)]

    def _open(self, form: Encapsulation, addresses: Sequence[Address], more: bool = False) -> Receive:
        """Receive sockets of one format for every worker, or none at all; `more`: there may be none to open."""
        settings = self._settings
        # flannel's udp format carries IPv4 only, on the IPv4 underlay.
        usable = [address for address in addresses if form == "vxlan" or address.version == 4]
        if not usable and not more:
            raise DataplaneError(f"the {form} format needs an IPv4 underlay address")
        shared = settings.workers > 1
        opened: Receive = [{} for _ in range(settings.workers)]
        try:
            for address in usable:
                if self._take_back(form, address, opened):
                    continue
                if shared:
                    # SO_REUSEPORT would let a second daemon in: a plain bind first finds any other holder.
                    self._bind(address, settings.ports[form], shared=False).close()
                for worker, sockets in enumerate(opened):
                    sockets[address] = self._bind(address, settings.ports[form], shared=shared)
                    self._kept.keep(self._name(form, address, worker), [sockets[address].fileno()])
        except BaseException:
            for sock in _sockets({form: opened}, {}):
                sock.close()
            raise
        return opened

    def _take_back(self, form: Encapsulation, address: Address, opened: Receive) -> bool:
        """Take the sockets that an earlier run has left: all of this address, or none. What is in their queues, too."""
        names = [self._name(form, address, worker) for worker in range(len(opened))]
        found = [socket.socket(fileno=fd) for name in names for fd in self._kept.take(name)]
        fits = len(found) == len(names) and all(
            is_receive_socket(sock, address, self._settings.ports[form], shared=len(names) > 1) for sock in found
        )
        if not fits:
            for sock in found:
                sock.close()
            for name in names if found else ():
                self._kept.drop(name)
            return False
        for sockets, sock in zip(opened, found, strict=True):
            set_gro(sock, self.gro)
            sockets[address] = sock
        return True

    def _bind(self, address: Address, port: int, *, shared: bool) -> socket.socket:
        try:
            return open_receive_socket(address, port, gro=self.gro, shared=shared)
        except OSError as error:
            reason = error.strerror
            if error.errno == 98:
                reason = f"held by {port_holder(address, port)}; stop the holder first"
            elif error.errno == 99:
                reason = "the address is not on this host"
            raise DataplaneError(f"cannot bind UDP {address} port {port}: {reason}") from None


def _open_transmit(address: Address) -> list[socket.socket]:
    try:
        return open_transmit_sockets(address, SOURCE_PORTS_PER_FAMILY)
    except OSError as error:
        raise DataplaneError(f"cannot open transmit sockets on {address}: {error.strerror}") from None


def _sockets(
    receive: Mapping[Encapsulation, Receive], transmit: Mapping[int, Sequence[socket.socket]]
) -> list[socket.socket]:
    found = [sock for workers in receive.values() for sockets in workers for sock in sockets.values()]
    return found + [sock for sockets in transmit.values() for sock in sockets]
