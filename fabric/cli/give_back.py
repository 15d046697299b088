"""`fabricctl adopt --back`: this node is made ready for flanneld again, so that no other node notices.

flanneld takes its subnet from its lease, but the MAC from the kernel's device of its name; where it finds none it makes
one up and publishes it. So the device is made first, as flanneld would make it, with the MAC of our lease and, for the
time until flanneld runs, with everything that leads to the other nodes: the node forwards at once. What is needed for
that is read from `leases.json` and the configuration, so it works while the store is away. Nothing in the store is
touched.

Kernel VXLAN devices only; flannel's `udp` device dies with its program as ours does, plain routes (`host-gw`,
DirectRouting) are in place anyway and flanneld takes them over. With flanneld running again, what is left to do is to
remove our firewall rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric import calc, config, state_file
from fabric.config import NetConf
from fabric.control_client import ControlClient, DaemonGoneError
from fabric.daemon import pods_file
from fabric.daemon.desired import device_states
from fabric.daemon.flannel import Flannel
from fabric.daemon.interface import External, select, system_host
from fabric.errors import FabricError, StartError
from fabric.flags import Options
from fabric.model import KernelState, Lease
from fabric.state_file import Remembered

if TYPE_CHECKING:
    from routes.state import DeviceState


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to do. `devices` are to be made; `flanneld` are the process ids of those that run already, and then
    only our firewall rules are to be removed. `ports` are the pods that nothing but fabricd reaches."""

    own: Lease
    backend: str
    devices: tuple[DeviceState, ...]
    flanneld: tuple[int, ...]
    ports: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people, one line per object."""
        found = [f"lease       {self.own.key}: stays as it is"]
        for state in self.devices:
            assert state.vxlan is not None
            link = state.vxlan
            found.append(
                f"device      {state.name}: to be made with VNI {link.vni}, UDP port {link.port}, "
                f"MAC {link.mac.hex(':')}, local {link.local} dev {link.underlay}, MTU {state.mtu}, "
                f"{len(state.routes)} routes to other nodes"
            )
        if self.flanneld:
            found.append("firewall    nftables table inet podfabric: to be removed, flanneld runs")
        else:
            found.append("firewall    nftables table inet podfabric: stays until flanneld runs; then run this again")
        found += [f"pod         {name}: on a port that only fabricd serves; make it anew" for name in self.ports]
        if not self.devices and not self.flanneld:
            found.append(f'            nothing has to be made for backend "{self.backend}": start flanneld')
        return found


    def described(self) -> dict[str, Any]:
        """For programs."""
        return {
            "lease": self.own.key,
            "backend": self.backend,
            "flanneld": list(self.flanneld),
            "devices": [_described(state) for state in self.devices],
            "ports": list(self.ports),
        }


def _described(state: DeviceState) -> dict[str, Any]:
    assert state.vxlan is not None
    link = state.vxlan
    return {
        "name": state.name,
        "vni": link.vni,
        "port": link.port,
        "mac": link.mac.hex(":"),
        "local": str(link.local),
        "interface": link.underlay,
        "mtu": state.mtu,
        "addresses": sorted(map(str, state.addresses)),
        "routes": sorted(str(route.prefix) for route in state.routes),
    }


def plan(options: Options, host: Flannel) -> Plan:
    """What has to be done on this node, where a fabricd with these `options` ran. Raises FabricError, OSError."""
    remembered = state_file.load(Path(options.state_dir))
    if remembered.own is None:
        raise StartError(
            f"{options.state_dir}/{state_file.NAME} remembers no lease of this node: give fabricd's own --state-dir"
        )
    conf = _configuration(options, remembered)
    flanneld = tuple(host.processes())
    pods = pods_file.load(Path(options.state_dir)).pods
    ports = tuple(known.endpoint.name for known in pods if known.endpoint.is_port)
    devices: tuple[DeviceState, ...] = ()
    if conf.backend.type == "vxlan" and not conf.backend.kernel and not flanneld:
        devices = _devices(conf, remembered.own, remembered.peers, _external(options, conf, remembered))
    return Plan(remembered.own, conf.backend.type, devices, flanneld, ports)


def check_stopped(run_dir: str) -> None:
    """Raises StartError while a fabricd runs here."""
    try:
        with ControlClient(run_dir) as client:
            client.ask("status")
    except DaemonGoneError:
        return
    except FabricError:
        pass  # somebody is there, and stuck
    raise StartError(f"fabricd runs ({run_dir}): stop it first, and whatever would start it again; nothing was changed")


def act(found: Plan) -> list[str]:
    """Do it; a line for each change. Raises FabricError."""
    from fabric.steering.look import remove

    steering = remove()  # without fabricd nothing would pass
    return [*steering, *asyncio.run(_remove_firewall() if found.flanneld else _make(found.devices))]


async def _make(devices: Sequence[DeviceState]) -> list[str]:
    from routes.watch import KernelReconciler

    if not devices:
        return []
    reconciler = KernelReconciler()
    try:
        reconciler.set_desired(devices)
        result = await reconciler.reconcile()
    finally:
        reconciler.close()
    refused = [error for error in result.errors if not error.is_of_a_peer]
    if refused:
        raise StartError(str(refused[0]))
    return [*result.changes, *map(str, result.errors)]


async def _remove_firewall() -> list[str]:
    from fabric.traffic.manager import TrafficManager

    manager = TrafficManager(0)
    try:
        await manager.remove()
    finally:
        manager.close()
    return ["removed nftables table inet podfabric"]


def _configuration(options: Options, remembered: Remembered) -> NetConf:
    if remembered.config:
        return config.parse(remembered.config)
    kubernetes = options.store_kind == "kubernetes"
    default = None if kubernetes else config.DEFAULT_TEXT
    return config.load(Path(options.net_config_path), default, check=not kubernetes)


def _external(options: Options, conf: NetConf, remembered: Remembered) -> External:
    return select(options, [network.version for network in conf.networks], system_host(), remembered.public)


def _devices(conf: NetConf, own: Lease, peers: Sequence[Lease], external: External) -> tuple[DeviceState, ...]:
    """flannel's devices with all that belongs on them, as `"Datapath": "kernel"` has them."""
    from routes.reachable import on_link

    kernel = replace(conf, backend=replace(conf.backend, kernel=True))
    node = calc.Node(
        kernel, own, external.underlay, external.public, config.node_port_name(kernel.backend), external.mtu,
        config.overlay_mtu(kernel, external.mtu), external.name,
    )  # fmt: skip
    outcome = calc.calculate(node, (own, *peers))
    if outcome.asked:
        outcome = calc.calculate(node, (own, *peers), None, on_link(outcome.asked))
    devices = tuple(device for device in outcome.kernel.devices if device.role == "vxlan")
    return device_states(KernelState(devices), conf.networks, 0)
