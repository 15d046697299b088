"""A data path, a kernel and a host in memory, recording what the daemon asks of them and in which order."""

import os
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

from fabric import config, flags
from fabric.config import NetConf
from fabric.daemon.flannel import Flannel
from fabric.daemon.interface import Host
from fabric.daemon.node import Node
from fabric.daemon.parts import Parts
from fabric.daemon.sources import SqliteSource
from fabric.errors import DataplaneError, FabricError
from fabric.forward.rehearse import LiveTables
from fabric.model import Address, DataplaneSettings, Encapsulation, Endpoint, ForwardingState, Network, RefusedPacket
from fabric.policy import PolicySnapshot
from fabric.store.base import Store
from fabric.traffic.rules import TrafficState
from routes.lookup import InterfaceAddress
from routes.state import DeviceState, InterfaceState, ReconcileResult
from routes.vxlan import VxlanDevice
from tests.fabric.clock import Clock
from tun.errors import DeviceError
from tun.netns import NetnsIdentity


@dataclass
class Journal:
    """What happened, in order. `fail` maps a step to the error it raises."""

    steps: list[str] = field(default_factory=list)
    fail: dict[str, FabricError] = field(default_factory=dict)

    def step(self, name: str) -> None:
        self.steps.append(name)
        if name in self.fail:
            raise self.fail[name]


class FakeDataplane:
    """`fabric.daemon.node.Dataplane` without a kernel."""

    def __init__(self, journal: Journal, settings: DataplaneSettings) -> None:
        self.journal = journal
        self.settings = settings
        self.state: ForwardingState | None = None
        self.policies: list[PolicySnapshot | None] = []
        self.ports: dict[str, Endpoint] = {}
        self.refusing: dict[str, DataplaneError] = {}
        self.lost: set[str] = set()
        self.threads = {"egress": True, "ingress": True}
        self.hanging: set[str] = set()
        self.beaten = 0
        self.refused: list[RefusedPacket] = []
        self.required: frozenset[Encapsulation] = frozenset()
        self.unavailable: dict[Encapsulation, str] = {}

    def open(self) -> None:
        self.journal.step("open")

    def require(self, formats: Iterable[Encapsulation]) -> dict[Encapsulation, str]:
        self.required = frozenset(formats)
        return {form: reason for form, reason in self.unavailable.items() if form in self.required}

    def create_node_port(self) -> None:
        self.journal.step("create_node_port")

    def recreate_node_port(self) -> None:
        self.journal.step("recreate_node_port")

    def apply(self, state: ForwardingState) -> None:
        self.journal.step("apply")
        self.state = state

    def start(self, before_threads: Callable[[], None] | None = None) -> None:
        if before_threads is not None:
            before_threads()
        self.journal.step("start")

    def halt(self) -> None:
        self.journal.step("halt")

    def follow_offloads(self) -> None:
        pass

    def rebind(self, underlay: Sequence[Address], mtu: int, interface: str) -> None:
        self.journal.step("rebind")
        self.settings = replace(self.settings, underlay=tuple(underlay), mtu=mtu, interface=interface)

    def stop(self) -> None:
        self.journal.step("stop")

    def add_port(self, endpoint: Endpoint, fds: Sequence[int] = ()) -> dict[str, object]:
        for fd in fds:
            os.close(fd)
        return self.attach_port(endpoint)

    def attach_port(self, endpoint: Endpoint) -> dict[str, object]:
        if endpoint.name in self.refusing:
            raise self.refusing[endpoint.name]
        self.ports[endpoint.name] = endpoint
        return {"name": endpoint.name, "mtu": endpoint.mtu}

    def lost_ports(self) -> list[str]:
        return [name for name in self.ports if name in self.lost]

    def port_counters(self) -> dict[str, dict[str, int]]:
        counts = {"frames_from": 3, "bytes_from": 300, "frames_to": 2, "bytes_to": 2048, "drops": 1}
        return dict.fromkeys(("node", *self.ports), counts)

    def delete_port(self, name: str) -> None:
        if self.ports.pop(name, None) is None:
            raise DataplaneError(f"no port {name}")

    def beats(self) -> dict[str, int]:
        self.beaten += 1
        return {name: 0 if name in self.hanging else self.beaten for name in self.threads}

    def counters(self) -> dict[str, int]:
        return {"egress_packets": 7, "drop_no_route": 0}

    def peer_counters(self) -> dict[str, dict[str, int]]:
        counts = {"packets_to": 4, "bytes_to": 400, "packets_from": 5, "bytes_from": 6000}
        return {peer.name: counts for peer in self.state.peers} if self.state else {}

    def set_policy(self, snapshot: PolicySnapshot | None, staged: PolicySnapshot | None = None) -> None:
        self.journal.step("set_policy")
        self.policies.append(snapshot)

    def rule_hits(self) -> dict[str, int]:
        return {}

    def staged_hits(self) -> dict[str, tuple[int, int]]:
        return {}

    def flows(self, cursor: int, limit: int) -> tuple[list[dict[str, object]], int | None]:
        return [{"protocol": 6, "place": place} for place in range(cursor, min(cursor + limit, 5))], None

    def live(self) -> LiveTables:
        raise DataplaneError("no packets pass through this fabricd")

    def record_drops(self, enabled: bool) -> None:
        self.journal.step(f"record_drops {enabled}")

    def recorded_drops(self) -> tuple[list[RefusedPacket], int]:
        found, self.refused = self.refused, []
        return found, 0

    def status(self) -> dict[str, object]:
        return {"offloads": {"udp-gso": True}, "threads": dict(self.threads)}

    @property
    def peers(self) -> dict[str, str]:
        """Prefix to underlay address of every peer."""
        return {peer.name: str(peer.underlay) for peer in self.state.peers} if self.state else {}


class FakeReconciler:
    """`routes.watch.KernelReconciler` whose kernel always obeys, unless `errors` are set."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.counters = {"changes": 0}
        self.states: dict[str, DeviceState] = {}
        self.blackholes: frozenset[Network] = frozenset()
        self.unreachables: frozenset[Network] = frozenset()
        self.links: dict[Address, str] = {}
        self.first: dict[str, DeviceState] | None = None
        self.asked: frozenset[Address] = frozenset()
        self.result = ReconcileResult(devices={"flannel.1": 7})
        self.on_device: Callable[[str, int | None], None] | None = None
        self.on_underlay: Callable[[InterfaceState | None], None] | None = None
        self.on_reachable: Callable[[dict[Address, str | None]], None] | None = None

    def make(
        self, *, underlay: Any, on_device: Any, on_underlay: Any, on_reachable: Any, on_result: Any
    ) -> "FakeReconciler":
        self.underlay = underlay
        self.on_device, self.on_underlay, self.on_reachable = on_device, on_underlay, on_reachable
        return self

    def set_desired(
        self,
        states: Iterable[DeviceState],
        blackholes: frozenset[Network] = frozenset(),
        unreachables: frozenset[Network] = frozenset(),
    ) -> None:
        self.journal.step("set_desired")
        self.states = {state.name: state for state in states}
        self.blackholes, self.unreachables = blackholes, unreachables
        self.first = self.first or self.states

    def watch_reachable(self, addresses: Iterable[Address]) -> None:
        self.asked = frozenset(addresses)

    def watch_underlay(self, name: str) -> None:
        self.underlay = name

    async def withdraw(self) -> ReconcileResult:
        self.journal.step("withdraw")
        return ReconcileResult()

    @property
    def state(self) -> DeviceState | None:
        """The node port's."""
        return self.states.get("flannel.1")

    async def reconcile(self) -> ReconcileResult:
        self.journal.step("reconcile")
        if self.links and self.on_reachable is not None:
            self.on_reachable({address: self.links.get(address) for address in self.asked})
        return self.result

    async def settled(self) -> None:
        await self.reconcile()

    async def run(self) -> None:
        import asyncio

        await asyncio.Event().wait()

    def late(self) -> float:
        return 0.0

    def close(self) -> None:
        self.journal.step("close")


ADDRESSES: dict[str, list[str | InterfaceAddress]] = {
    "lo": ["127.0.0.1/8", "::1/128"],
    "eth0": ["192.0.2.1/24", "2001:db8::1/64", "fe80::1/64"],
    "eth1": ["198.51.100.1/24"],
    "bare": [],
}


@dataclass
class FakeKernel:
    """Interfaces of a host: addresses by name, as text or with the kernel's flags, and default routes by IP version."""

    addresses: dict[str, list[str | InterfaceAddress]] = field(default_factory=lambda: deepcopy(ADDRESSES))
    mtu: int = 1500
    default: dict[int, str | None] = field(default_factory=lambda: {4: "eth0", 6: "eth0"})

    def host(self) -> Host:
        return Host(
            names=lambda: list(self.addresses),
            addresses=self._addresses,
            mtu=lambda name: self.mtu,
            default_interface=lambda version: self.default[version],
            towards=self._towards,
        )

    def _addresses(self, name: str) -> list[InterfaceAddress]:
        return [item if isinstance(item, InterfaceAddress) else own_address(item) for item in self.addresses[name]]

    def _towards(self, address: Address) -> tuple[str, Address | None]:
        if str(address).startswith("203."):
            raise OSError(101, "no route")
        return "eth1", ip_address("198.51.100.1")


def own_address(
    text: str, *, permanent: bool = True, temporary: bool = False, deprecated: bool = False
) -> InterfaceAddress:
    return InterfaceAddress(ip_interface(text), permanent, temporary, deprecated)


class FakeFlannel(Flannel):
    """A host on which flanneld was, in a journal's steps."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.running: list[int] = []
        self.left: list[VxlanDevice] = []

    def processes(self) -> list[int]:
        return self.running

    def devices(self) -> list[VxlanDevice]:
        return self.left

    def remove(self, device: VxlanDevice) -> None:
        self._journal.step(f"remove {device.link.name}")
        self.left.remove(device)

    def sweep_firewall(self) -> list[str]:
        return []


class FakeTraffic:
    """`fabric.traffic.TrafficManager` whose firewall always obeys."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.state: TrafficState | None = None

    def want(self, state: TrafficState) -> None:
        self.state = state

    async def first(self) -> None:
        self.journal.step("firewall")

    async def run(self) -> None:
        import asyncio

        await asyncio.Event().wait()

    async def remove(self) -> None:
        self.journal.step("firewall removed")

    def close(self) -> None:
        self.journal.step("firewall closed")

    def problems(self) -> tuple[str, ...]:
        return ()

    def counters(self) -> dict[str, int]:
        return {"changes": int("firewall" in self.journal.steps)}


class FakeSource(SqliteSource):
    """The embedded store's source around another store."""

    def __init__(self, path: Path, conf: NetConf, store: Store) -> None:
        super().__init__(path, conf)
        self._fake = store

    def _make(self) -> Store:
        return self._fake


class Bench:
    """One node of fakes around a given store, with its files below `directory`."""

    def __init__(
        self, directory: Path, store: Store, clock: Clock, *words: str, text: str = config.DEFAULT_TEXT
    ) -> None:
        self.directory = directory / "n1"
        self.directory.mkdir(exist_ok=True)
        self.journal = Journal()
        self.reconciler = FakeReconciler(self.journal)
        self.dataplanes: list[FakeDataplane] = []
        self.run_dir, self.state_dir = self.directory / "run", self.directory / "state"
        self.subnet_file = self.directory / "subnet.env"
        self.options = flags.parse(
            [f"--run-dir={self.run_dir}", f"--state-dir={self.state_dir}", f"--subnet-file={self.subnet_file}",
             f"--cni-data-dir={self.directory / 'cni'}",
             "--node-name=n1", *words], {},
        )  # fmt: skip
        self.conf = config.parse(text)
        self.kernel = FakeKernel()
        self.flannel = FakeFlannel(self.journal)
        self.refusing: dict[str, DataplaneError] = {}  # ports that cannot be had
        self.namespaces: dict[str, int | DeviceError] = {}
        self.traffic = FakeTraffic(self.journal)
        self.parts = Parts(
            host=self.kernel.host(),
            source=FakeSource(self.directory / "fabric.db", self.conf, store),
            dataplane=self._dataplane,
            reconciler=self.reconciler.make,
            traffic=lambda resync: self.traffic,
            privileges=lambda: self.journal.step("privileges"),
            clock=clock,
            device_free=lambda name: self.journal.step("device_free"),
            flannel=self.flannel,
            identify=self.identify,
        )

    def identify(self, path: str) -> NetnsIdentity:
        """Every path leads to a namespace, unless `namespaces` says something else."""
        found = self.namespaces.get(path, 1)
        if isinstance(found, DeviceError):
            raise found
        return NetnsIdentity(4, found, found)

    def _dataplane(self, settings: DataplaneSettings) -> FakeDataplane:
        self.dataplanes.append(FakeDataplane(self.journal, settings))
        self.dataplanes[-1].refusing = self.refusing
        return self.dataplanes[-1]

    @property
    def dataplane(self) -> FakeDataplane:
        return self.dataplanes[-1]

    def node(self) -> Node:
        return Node(self.options, self.parts)
