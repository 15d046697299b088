"""flanneld before us on this node: whether it still runs, and what it left in the kernel.

Theory of operation. flanneld leaves everything when it ends: its VXLAN devices with their UDP port, addresses,
neighbours and routes, its plain routes (host-gw), its firewall rules. `fabricd` takes the node over by removing those
devices at the last moment before it binds the port itself; subnet and MAC it knows from the lease. A device is
flannel's when its name, kind, VNI and UDP port are those that flanneld would give it for our configuration; nothing
else is touched. Plain routes are taken over by the reconciler (`routes.main_table`), firewall rules are removed once
ours are in place (`fabric.traffic.leftovers`). While a flanneld runs in this network namespace nothing is touched at
all: it would make its devices again, and both would fight over the lease.

Limits: flanneld inside another program (k3s) is not recognised, nor one in a container when we run in another one
without the host's process IDs; its device would be taken from under it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.config import NetConf
from fabric.errors import StartError

if TYPE_CHECKING:
    from routes.vxlan import VxlanDevice

PROGRAM = b"flanneld"


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Devices that flanneld left for our configuration, IPv4's first. `in_the_way` are those that have to go: all of
    them, unless our backend goes on with devices of the kernel's, and then with the very same."""

    devices: tuple[VxlanDevice, ...] = ()
    in_the_way: tuple[VxlanDevice, ...] = ()

    def macs(self) -> dict[int, bytes]:
        """Their MACs by IP version."""
        return {6 if device.link.name.startswith("flannel-v6.") else 4: device.mac for device in self.devices}


class Flannel:
    """What can be asked of this host, and done to it; tests give their own."""

    def processes(self) -> list[int]:
        """Process ids of every flanneld in this network namespace."""
        found = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_flanneld(entry)]
        return sorted(found)

    def devices(self) -> Sequence[VxlanDevice]:
        """All kernel VXLAN devices of this network namespace."""
        from routes.vxlan import vxlan_devices

        return vxlan_devices()

    def remove(self, device: VxlanDevice) -> None:
        """Remove the device, and with it its addresses, neighbours and routes; gone already is fine. Raises OSError."""
        from routes.vxlan import delete_vxlan

        try:
            delete_vxlan(device.link.name)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def sweep_firewall(self) -> list[str]:
        """Remove flanneld's firewall rules; a line for each that was, or could not be. Raises TrafficError."""
        from fabric.traffic import leftovers

        found = leftovers.find()
        failures = leftovers.remove(found) if found else []
        failed = {line.partition(" cannot be removed")[0] for line in failures}
        return [f"removed {item}" for item in found if str(item) not in failed] + failures


def find(conf: NetConf, host: Flannel) -> Leftovers:
    """What flanneld left on `host` for `conf`. Raises StartError while a flanneld runs."""
    running = host.processes()
    if running:
        raise StartError(
            f"flanneld (pid {', '.join(map(str, running))}) runs on this node: stop it first, and whatever would start"
            " it again; or give --adopt=false if it serves another network"
        )
    backend = conf.backend
    if backend.type != "vxlan":
        return Leftovers()
    names = (f"flannel.{backend.vni}", f"flannel-v6.{backend.vni}")
    found = [
        device
        for device in host.devices()
        if device.link.name in names and (device.vni, device.port) == (backend.vni, backend.port)
    ]
    found.sort(key=lambda device: names.index(device.link.name))
    return Leftovers(tuple(found), () if backend.kernel else tuple(found))


def _is_flanneld(process: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        if os.path.basename(words[0]) != PROGRAM:
            return False
        return os.stat(process / "ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
    except OSError:  # it ended meanwhile, or is not ours to look at
        return False
