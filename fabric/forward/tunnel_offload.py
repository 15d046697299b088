"""Whether superframes leave whole through the TAP of tunnel-GSO, followed as the underlay interface changes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence

from fabric.forward.tunnel_gso import TunnelTap, is_virtual, on_link, passes_tunnel_superframes
from fabric.forward.worker import Worker
from fabric.model import DataplaneSettings
from tun.errors import DeviceError

log = logging.getLogger("fabric")


class TunnelOffload:
    """Used on the control thread. `on` says whether the workers have the TAP."""

    def __init__(self) -> None:
        self.on = False
        self._tap: TunnelTap | None = None
        self._refused = ""  # the interface for which it could not be had

    def follow(
        self, settings: DataplaneSettings, workers: Sequence[Worker], transmit: Mapping[int, Sequence[socket.socket]]
    ) -> None:
        """Look again: offloads may have been switched, or the interface replaced."""
        if workers and (self._wanted(settings) != self.on or not self._aimed(settings.interface)):
            self.set(settings, workers, transmit)

    def set(
        self, settings: DataplaneSettings, workers: Sequence[Worker], transmit: Mapping[int, Sequence[socket.socket]]
    ) -> None:
        """Give the TAP to the workers, or take it away."""
        interface, wanted = settings.interface, self._wanted(settings)
        self.on = False
        try:
            if wanted and self._tap is None:
                self._tap = TunnelTap(f"fabtx.{settings.vni}"[:15], interface)
            elif wanted and self._tap is not None and not self._tap.aims_at(interface):
                leave(workers)
                self._tap.aim(interface)
            links = on_link(interface) if wanted else []
        except (DeviceError, OSError) as error:
            self._refused = interface
            leave(workers)
            asked = "tap-tunnel-gso" in settings.offload
            log.log(logging.WARNING if asked else logging.DEBUG, "tap-tunnel-gso stays off: %s", error)
            return
        if self._tap is None:
            return
        ports = {version: [sock.getsockname()[1] for sock in socks] for version, socks in transmit.items()}
        for worker in workers:
            worker.set_tunnel_gso(self._tap.device.fds[0] if wanted else -1, self._tap.mac, ports[4], ports[6], links)
        self.on = wanted

    def close(self) -> None:
        """The TAP goes."""
        if self._tap is not None:
            self._tap.close()
            self._tap = None

    def _wanted(self, settings: DataplaneSettings) -> bool:
        """Unasked only where no hardware is behind the interface: how a card fares with it has not been measured."""
        asked, interface = settings.offload.get("tap-tunnel-gso"), settings.interface
        if self._refused == interface or settings.encapsulation != "vxlan" or asked is False:
            return False
        return passes_tunnel_superframes(interface) and (asked is True or is_virtual(interface))

    def _aimed(self, interface: str) -> bool:
        """Whether the TAP, if it is in use, leads to the interface that has the name now."""
        if self._tap is None or not self.on:
            return True
        try:
            return self._tap.aims_at(interface)
        except OSError:
            return True  # it is gone, and there is nothing to aim at


def leave(workers: Sequence[Worker]) -> None:
    """From now on they cut superframes themselves."""
    for worker in workers:
        worker.set_tunnel_gso(-1, bytes(6), (), (), ())
