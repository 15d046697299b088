"""One node's daemon: everything put together in the order that lets a refused start leave no trace.

    privileges, health endpoint -> configuration -> interface -> run directory -> underlay sockets, device name
      -> store and lease -> node port -> pod ports of an earlier run -> addresses and routes -> snapshot,
      worker -> firewall -> control socket, tasks -> subnet.env, ready

Until the lease nothing outside the run directory is written; whatever a failed start made is taken back. Where flanneld
left its device, which holds the port, the sockets come after the lease and the removal of that device.

The parts: `cluster` (store, own lease, peers), `forwarding` (desired state to data path and kernel), `uplink` (changes
of the interface towards the other nodes). While it runs, their tasks feed one synchronous `Forwarding.refresh`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal

from fabric import calc, config, subnet_file
from fabric.config import NetConf
from fabric.daemon import flannel, gone_pods, report, systemd
from fabric.daemon.cluster import Cluster
from fabric.daemon.control import ControlServer
from fabric.daemon.drops import DropWatch
from fabric.daemon.firewall import Firewall, own_subnets
from fabric.daemon.forwarding import Forwarding
from fabric.daemon.interface import External, select
from fabric.daemon.parts import Parts
from fabric.daemon.pods import Pods
from fabric.daemon.pods_routes import lead_host_to
from fabric.daemon.run_dir import RunDir
from fabric.daemon.steering import Steering
from fabric.daemon.supervisor import Supervisor
from fabric.daemon.uplink import UplinkFollower
from fabric.daemon.watchdog import Watchdog
from fabric.errors import StartError
from fabric.flags import Options
from fabric.model import DataplaneSettings, Lease, Network
from fabric.policing import door as policing

if TYPE_CHECKING:
    from fabric.backend.extension import ExtensionBackend
    from fabric.daemon.health import HealthServer
    from fabric.daemon.metrics import MetricsServer
    from fabric.policing.keeper import PolicyKeeper

log = logging.getLogger("fabric")


class Node:
    """`start`, then wait for `failed` or a signal, then `stop` (also after a start that raised)."""

    def __init__(self, options: Options, parts: Parts) -> None:
        self.options = options
        self.started = monotonic()
        self.ready = False
        self.mtu = 0
        self.stop_requested = asyncio.Event()
        self.supervisor = Supervisor()
        self.cluster = Cluster(options, parts.source, parts.clock)
        self.clock = parts.clock
        self.pods = Pods(Path(options.state_dir), lambda: self.forwarding.dataplane, parts.identify, parts.clock)
        self.extension: ExtensionBackend | None = None
        self.policy: PolicyKeeper | None = None
        self.policy_sources: tuple[str, ...] = ()
        self.drops = DropWatch(lambda: self.forwarding.dataplane)
        self._parts = parts
        self._conf: NetConf | None = None
        self._external: External | None = None
        self._forwarding: Forwarding | None = None
        self._uplink: UplinkFollower | None = None
        self._run_dir = RunDir(Path(options.run_dir))
        self._firewall: Firewall | None = None
        self.steering = Steering(parts.steering)
        self._control: ControlServer | None = None
        self._health: HealthServer | None = None
        self._metrics: MetricsServer | None = None
        self._had_subnet_file = True
        self._has_predecessor = parts.successor is not None
        self._handed_over = False

    @property
    def conf(self) -> NetConf:
        """The network configuration."""
        assert self._conf is not None
        return self._conf

    @property
    def external(self) -> External:
        """The interface towards the other nodes, as last chosen."""
        assert self._external is not None
        return self._external

    @property
    def forwarding(self) -> Forwarding:
        """Data path and kernel."""
        assert self._forwarding is not None
        return self._forwarding

    @property
    def firewall(self) -> Firewall:
        """The host's rules for pods."""
        assert self._firewall is not None
        return self._firewall

    @property
    def uplink(self) -> UplinkFollower:
        """What follows the changes of `external`."""
        assert self._uplink is not None
        return self._uplink

    @property
    def device(self) -> str:
        """Name of the node port."""
        return self.options.device or config.node_port_name(self.conf.backend)

    async def start(self) -> None:
        """Bring the node up to forwarding. Raises FabricError with one line; call `stop` afterwards either way."""
        self._parts.privileges()
        if self._parts.successor is None:
            await self._open_endpoints()
        self._conf = await self.cluster.config()
        for line in self._conf.warnings:
            log.warning("%s", line)
        self._check_subnet_file()
        stored = await self.cluster.public_addresses()
        self._external = self._choose(stored)
        self._uplink = UplinkFollower(self._external, lambda: self._choose(stored), self._move)
        self.mtu = self._check_external(self.external)
        if self._parts.successor is None:
            self._run_dir.acquire()
        else:
            self._run_dir.take_over(self._parts.successor.lock)
        self.policy_sources = await policing.wanted(self)
        self._forwarding = self._make_forwarding()
        self._forwarding.before_threads = self._cut if self._has_predecessor else None
        leftovers = flannel.find(self.conf, self._parts.flannel) if self.options.adopt else flannel.Leftovers()
        if not leftovers.in_the_way:
            self._take_port()
        try:
            await self._join(leftovers)
            if leftovers.in_the_way:
                # As late as can be: what they carry is cut from here until we forward, and no refusal brings them back.
                await self._start_firewall()
                self._replace(leftovers)
                self._take_port()
            await self._forward()
        except BaseException:
            if self._has_predecessor:
                raise  # who goes on, with all that is there
            await self.forwarding.undo()
            if self._firewall is not None:
                await self._firewall.undo()
            await self.cluster.abandon()
            raise

    async def let_go(self, successor: int) -> None:
        """Stop for the process `successor`, which is ready to go on: workers last, and nothing is taken away."""
        self._handed_over = True
        self._run_dir.leave()
        await self.supervisor.stop()
        if self._control is not None:
            await self._control.close()
        for endpoint in (self._health, self._metrics):
            if endpoint is not None:
                await endpoint.close()
        await self.cluster.close()
        systemd.notify(f"MAINPID={successor}")
        self.forwarding.dataplane.halt()

    @property
    def run_dir_lock(self) -> int:
        """The descriptor of the run directory's lock."""
        return self._run_dir.lock

    async def stop(self) -> None:
        """Orderly end: tasks, control socket, store, worker and device, run directory. Idempotent."""
        if not self._handed_over:
            systemd.notify("STOPPING=1")
        await self.supervisor.stop()
        if self._control is not None:
            await self._control.close()
        self.drops.close()
        if self._metrics is not None:
            await self._metrics.close()
        if self._firewall is not None:
            self._firewall.close()
        self.steering.close()
        if self.policy is not None:
            await self.policy.close()
        await self.cluster.close()
        if self._health is not None:
            await self._health.close()
        if self._forwarding is not None:
            self._forwarding.close()  # as late as can be: the next run's packets wait from here on
        if self._has_predecessor and self._parts.successor is not None:
            self._parts.successor.close()
        self._run_dir.release()

    def _check_external(self, external: External) -> int:
        """The pods' MTU behind this interface. Raises ConfigError when the backend cannot use the interface."""
        config.check_public(self.conf.backend, external.underlay, external.public)
        return config.overlay_mtu(self.conf, external.mtu)

    def _make_forwarding(self) -> Forwarding:
        settings = self._settings()
        parts = self._parts
        made = Forwarding(
            parts.dataplane(settings), settings, self.cluster, self.calc_node, parts.device_free, parts.clock
        )

        def own() -> frozenset[Network]:
            return frozenset(own_subnets(self.cluster.own_lease))

        if self.options.blackhole_route:
            made.blackholes = own
        made.unreachables = own  # a free address of ours is nobody's: its packets go to no default route
        return made

    async def _join(self, leftovers: flannel.Leftovers) -> None:
        """Take our lease; with the extension backend between its two commands."""
        output = ""
        if self.conf.backend.type == "extension":
            from fabric.backend.extension import ExtensionBackend

            self.extension = ExtensionBackend(self.conf.backend.commands, os.environ)
            self.forwarding.extension_peers = self.extension.want
            output = await self.extension.pre_startup()
        await self.cluster.join(self.conf, self.external.public, leftovers.macs(), output)
        if self.extension is not None:
            await self.extension.post_startup(self.conf.networks, self.cluster.own_lease, output)

    def _take_port(self) -> None:
        self.forwarding.dataplane.open()
        if self.conf.backend.encapsulation is not None:
            self._parts.device_free(self.device)  # after the port, whose holder explains a taken flannel.1 better

    def _replace(self, leftovers: flannel.Leftovers) -> None:
        for device in leftovers.in_the_way:
            mac = device.mac.hex(":")
            log.info("taking over from flannel: removing its kernel device %s (MAC %s)", device.link.name, mac)
            try:
                self._parts.flannel.remove(device)
            except OSError as error:
                raise StartError(f"flannel's device {device.link.name} cannot be removed: {error.strerror}") from None

    async def _open_endpoints(self) -> None:
        if self.options.healthz_port:
            from fabric.daemon.health import HealthServer

            self._health = HealthServer(self.options.healthz_ip, self.options.healthz_port, lambda: self.ready)
            await self._health.open()
        if self.options.metrics_port:
            from fabric.daemon.metrics import serve

            self._metrics = serve(self)
            await self._metrics.open()

    def _choose(self, stored: Mapping[int, str]) -> External:
        versions: list[Literal[4, 6]] = [network.version for network in self.conf.networks]
        return select(self.options, versions, self._parts.host, stored)

    def _settings(self) -> DataplaneSettings:
        backend = self.conf.backend
        return DataplaneSettings(
            vni=backend.vni,
            ports=backend.ports,
            encapsulation=backend.encapsulation,
            underlay=self.external.underlay,
            device=self.device,
            mtu=config.node_port_mtu(self.conf, self.external.mtu),
            workers=self.options.workers,
            offload=self.options.offload,
            reserved_bits=self.options.vxlan_reserved,
            txqueuelen=self.options.txqueuelen,
            flows=self.options.flow_table,
            interface=self.external.name,
            services=self.options.policy.services,
            policy_required=bool(self.policy_sources),
            bridges=self.steering.device(self.options.policy, self.policy_sources, backend),
        )

    async def _start_firewall(self) -> None:
        if self._firewall is None:
            traffic = self._parts.traffic(self.options.traffic.resync)
            self._firewall = Firewall(traffic, self.options.traffic, self.conf)
            await self._firewall.start(self.cluster.own_lease)

    async def _forward(self) -> None:
        await self.pods.restore()  # before the first worker runs: no packet finds its pod missing
        await self._start_policy()
        complete = await gone_pods.release(self.options, self.pods.gone, self.pods.rebooted, self._had_subnet_file)
        await self.forwarding.start(self.external, self._parts.reconciler, self.uplink.changed)
        await self.steering.start(self.cluster.own_lease, self.device)
        self._lead_host_to_pods()
        self.forwarding.port_made = self._lead_host_to_pods
        await self._start_firewall()
        if self._parts.successor is not None:
            self._cut()  # where there were no threads to start
            await self._open_endpoints()
        self._control = ControlServer(self._run_dir.socket, report.methods(self))
        try:
            await self._control.open()
        except OSError as error:
            raise StartError(f"control socket {self._run_dir.socket}: {error.strerror}") from None
        if self.options.adopt:
            await self.firewall.sweep(self._parts.flannel)
        self._write_subnet_file()
        self.cluster.changed = self._leases_changed
        self.cluster.moved = self._lease_moved
        for name, run in self._tasks():
            self.supervisor.start(name, run)
        if complete:
            gone_pods.remember(self.options)
        self.ready = True
        self.cluster.keep()
        for line in self.firewall.warnings():
            log.warning("%s", line)
        log.info("%s", report.ready_line(self))
        systemd.notify("READY=1\nWATCHDOG=1")  # a successor's time runs from its predecessor's last word else

    def _tasks(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        return [
            ("watch", self.cluster.watch),
            ("lease", self.cluster.run_lease),
            ("kernel", self.forwarding.run_kernel),
            ("pods", self.pods.watch),
            ("sequence", self.forwarding.run_sequence),
            ("firewall", self.firewall.traffic.run),
            *self.steering.tasks(),
            ("uplink", self.uplink.run),
            ("threads", Watchdog(self.forwarding.dataplane, self._late, self.supervisor.give_up).run),
            *([("extension", self.extension.run)] if self.extension is not None else []),
            *(self.policy.tasks() if self.policy is not None else []),
        ]

    def _late(self) -> float:
        """Seconds by which the kernel's next check is late."""
        return self.forwarding.keeper.late() if self.forwarding.keeper else 0.0

    def _cut(self) -> None:
        """Everything is ready but the threads: have the predecessor, if there is one, stop its own."""
        if self._has_predecessor and self._parts.successor is not None:
            self._parts.successor.cut()
            self._has_predecessor = False
            self._run_dir.own()

    def calc_node(self) -> calc.Node:
        """This node as the calculation graph sees it."""
        external = self.external
        return calc.Node(
            self.conf,
            self.cluster.own_lease,
            external.underlay,
            external.public,
            self.device,
            external.mtu,
            self.mtu,
            external.name,
        )

    def _move(self, external: External) -> None:
        """Go over to another interface, address or MTU. Raises FabricError, with nothing changed, when it cannot be."""
        mtu = self._check_external(external)
        self.forwarding.rebind(external, config.node_port_mtu(self.conf, external.mtu))
        before, before_mtu = self.external, self.mtu
        self._external, self.mtu = external, mtu
        log.warning("%s", report.moved_line(before, external, mtu))
        if external.public != before.public:
            self.cluster.republish(self.conf, external.public)
        self._leases_changed()
        if mtu != before_mtu:
            self._rewrite_subnet_file()

    async def _start_policy(self) -> None:
        """Before the first worker runs, too: no packet of a pod passes that policy forbids."""
        self.policy = policing.make_keeper(self)
        if self.policy is not None:
            self.pods.changed = self.policy.changed
            await self.policy.first()

    def _leases_changed(self) -> None:
        self.forwarding.refresh()
        if self.policy is not None:
            self.policy.changed()

    def _lead_host_to_pods(self) -> None:
        lead_host_to(self.device, self.pods.ports())

    def _lease_moved(self, lease: Lease) -> None:
        self._leases_changed()
        self.firewall.lease_moved(lease)
        self.steering.lease_moved(lease)
        self._rewrite_subnet_file()

    def _check_subnet_file(self) -> None:
        """Before anything is made: a file that cannot be written at the end refuses the start."""
        path = Path(self.options.subnet_file)
        try:
            self._had_subnet_file = path.exists()
            subnet_file.check(path)
        except OSError as error:
            raise StartError(f"--subnet-file {path} cannot be written: {error.strerror}") from None

    def _write_subnet_file(self) -> None:
        path = Path(self.options.subnet_file)
        try:
            subnet_file.write(path, self.conf, self.cluster.own_lease, self.mtu, self.options.traffic.masquerade)
        except OSError as error:
            raise StartError(f"--subnet-file {path} cannot be written: {error.strerror}") from None

    def _rewrite_subnet_file(self) -> None:
        try:
            self._write_subnet_file()
        except StartError as error:
            log.error("%s", error)
