"""The data plane as the daemon handles it: sockets, ports, workers, and the snapshot they share.

Everything here runs on the control thread. The order is `open` (sockets), `create_node_port`, `apply` (any number of
times), `start`, `stop`; nothing but the sockets exists on the host until `create_node_port`. `require` opens the
sockets of further formats at any time in between.

`rebind` goes over to other underlay addresses while it runs: sockets of the new addresses are opened first, then the
workers are replaced by new ones on the same ports. What comes in between waits in the queues of ports and sockets.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.errors import DataplaneError
from fabric.forward import kept, node_device, pod_device
from fabric.forward.crew import Crew
from fabric.forward.flow_memory import FlowMemory
from fabric.forward.peer_counts import PeerCounts
from fabric.forward.policies import Denied, Policies
from fabric.forward.ports import WorkerPort
from fabric.forward.refused import refused_packet
from fabric.forward.snapshot import Snapshot
from fabric.forward.tables import Tables
from fabric.forward.underlay import Underlay
from fabric.model import Address, DataplaneSettings, Encapsulation, Endpoint, ForwardingState, RefusedPacket
from tun.device import Device
from tun.errors import DeviceError

if TYPE_CHECKING:
    from fabric.forward.rehearse import LiveTables
    from fabric.forward.tunnel_offload import TunnelOffload
    from fabric.policy import PolicySnapshot

log = logging.getLogger("fabric")


class Dataplane:
    """One per daemon. Raises DataplaneError with a line for people. `keeper` has what an earlier run has left."""

    def __init__(self, settings: DataplaneSettings, keeper: kept.Kept | None = None) -> None:
        self.settings = settings
        self._policies = Policies(settings)
        self._kept = keeper or kept.Nothing()
        self._underlay = Underlay(settings, self._kept)
        self._node: WorkerPort | None = None
        self._bridges: WorkerPort | None = None
        self._pods: list[WorkerPort] = []
        self._crew = Crew()
        self._state: ForwardingState | None = None
        self._snapshot: Snapshot | None = None
        self._generation = 0
        self._tables = Tables()
        self._peers = PeerCounts()
        self._ports_version = 0
        self._offloads: dict[str, bool] = {}
        self._memory = FlowMemory(settings.flows, self._kept) if settings.flows else None
        self._flows = self._memory.table if self._memory is not None else None
        self._tunnel_offload: TunnelOffload | None = None

    # --- sockets ---

    def open(self) -> None:
        """Bind our own format's underlay sockets and probe their offloads; changes nothing else on the host."""
        self._underlay.open()
        self._offloads["udp-gso"] = self._underlay.segmentation
        self._offloads["udp-gro"] = self._underlay.gro

    def require(self, formats: Iterable[Encapsulation]) -> Mapping[Encapsulation, str]:
        """Receive these formats too, from now on, as far as their ports are free; those that are not, with the reason.

        Any time between `open` and `stop`. What could not be opened is tried again at the next call.
        """
        opened = self._underlay.require(formats)
        for index, worker in enumerate(self._crew.workers):
            for fd, form in self._underlay.sockets(index, opened):
                worker.add_socket(fd, form)
        return self._underlay.unavailable

    def rebind(self, underlay: Sequence[Address], mtu: int, interface: str) -> None:
        """Go on with other underlay addresses, node port MTU and interface. Raises DataplaneError, nothing changed.

        The node port's MTU in the kernel is the reconciler's; here it is what new pod ports get.
        """
        after = replace(self.settings, underlay=tuple(underlay), mtu=mtu, interface=interface)
        if (after.underlay, after.interface) != (self.settings.underlay, self.settings.interface):
            gone = self._underlay.rebind(after.underlay)
            self.settings = after
            self._stop_workers()
            self._start_workers()
            for sock in gone:
                sock.close()
        self.settings = after
        for port in self._host_ports:
            port.mtu = mtu

    # --- ports ---

    def create_node_port(self) -> None:
        """Make the TUN devices of the host's namespace: node port and, where it is wanted, bridge port.

        Addresses and routes are the reconciler's.
        """
        if not _serves(self._node, self.settings.device):
            self._node = self._host_port("node", kept.NODE, self.settings)
        if self.settings.bridges and not _serves(self._bridges, self.settings.bridges):
            settings = replace(self.settings, device=self.settings.bridges)
            self._bridges = self._host_port("bridges", kept.BRIDGES, settings)
            self._bridges.bridged = True
            self._bridges.place(self._pods, self._crew.workers)
        self._ports_version += 1

    def recreate_node_port(self) -> None:
        """Those again that somebody deleted."""
        if not _serves(self._node, self.settings.device):
            self._kept.drop(kept.NODE)
        if not _serves(self._bridges, self.settings.bridges):
            self._kept.drop(kept.BRIDGES)
        self.create_node_port()
        self._publish()

    def _host_port(self, name: str, key: str, settings: DataplaneSettings) -> WorkerPort:
        left = self._kept.take(key)
        device = node_device.take_back(left, settings)
        if left and device is None:  # its name may be ours
            self._kept.drop(key)
            self._kept.settle()
        try:
            device = device or node_device.make(settings)
        except DeviceError as error:
            raise DataplaneError(str(error)) from None
        self._kept.keep(key, device.fds)
        return WorkerPort(name, device, settings.mtu, (), settings.workers)

    def add_port(self, endpoint: Endpoint, fds: Sequence[int] = ()) -> dict[str, object]:
        """A pod port: a device in the pod's namespace, up, reachable at its addresses once this returns.

        The device is made here, or is the one behind the passed queues `fds`, which are the device's from then on also
        when this raises. It outlives us: only `delete_port` or the end of its namespace removes it. The addresses are
        at most one of each family, and no other port's.
        """
        with ExitStack() as stack:
            for fd in fds:
                stack.callback(os.close, fd)
            self._check_new(endpoint)
            size = endpoint.mtu or self.settings.mtu
            device = pod_device.adopt(endpoint, fds, self.settings, size) if fds else None
            device = device or pod_device.create(endpoint, self.settings, size)
            stack.pop_all()
        return self._add(endpoint, device, size)

    def attach_port(self, endpoint: Endpoint) -> dict[str, object]:
        """The port of an earlier run again, on the device that it has left in the pod's namespace.

        Raises PortLostError when it is not there any more, DataplaneError when that is not known.
        """
        self._check_new(endpoint)
        left = self._kept.take(kept.pod(endpoint.name))
        device = pod_device.take_back(endpoint, left, self.settings) if left else None
        device = device or pod_device.attach(endpoint, self.settings)
        return self._add(endpoint, device, endpoint.mtu or pod_device.mtu_of(device, self.settings))

    def _add(self, endpoint: Endpoint, device: Device, mtu: int) -> dict[str, object]:
        port = WorkerPort(endpoint.name, device, mtu, endpoint.addresses, self.settings.workers)
        port.ethernet = pod_device.ethernet(device)
        self._kept.keep(kept.pod(endpoint.name), device.fds)
        port.place([*self._host_ports[1:], *self._pods], self._crew.workers)
        self._pods.append(port)
        self._ports_version += 1
        self._publish()
        return port.describe()

    @property
    def _host_ports(self) -> list[WorkerPort]:
        """The node port, and the bridge port where there is one."""
        return [port for port in (self._node, self._bridges) if port is not None]

    @property
    def _ports(self) -> list[WorkerPort]:
        """As the workers number them: the node port is 0. None before there is a node port."""
        return [*self._host_ports, *self._pods] if self._node is not None else []

    def _check_new(self, endpoint: Endpoint) -> None:
        name, addresses = endpoint.name, endpoint.addresses
        if endpoint.kind not in pod_device.CARRIED:
            kinds = ", ".join(pod_device.CARRIED)
            raise DataplaneError(f"port {name}: kind {endpoint.kind} is not carried by this fabricd, only {kinds}")
        if name in ("node", "bridges") or any(port.name == name for port in self._pods):
            raise DataplaneError(f"port {name} exists already")
        if len({address.version for address in addresses}) != len(addresses):
            raise DataplaneError(f"port {name}: {', '.join(map(str, addresses))}: at most one address of each family")
        for address, port in itertools.product(addresses, self._pods):
            if address in port.addresses:
                raise DataplaneError(f"port {name}: {address} is port {port.name}'s")

    def delete_port(self, name: str) -> None:
        """Remove a pod port; its device disappears, and what the flow table has of it."""
        for position, port in enumerate(self._pods):
            if port.name == name:
                with contextlib.suppress(DeviceError):  # it went with its namespace
                    port.device.persist(False)
                account = self._flows.account(name) if self._flows is not None else 0
                addresses = port.addresses
                self._kept.drop(kept.pod(name))
                del self._pods[position]
                del port
                self._ports_version += 1
                self._publish()
                if self._flows is not None:
                    self._flows.forget(account, addresses)
                return
        raise DataplaneError(f"no port {name}")

    def lost_ports(self) -> list[str]:
        """The pod ports whose device is gone: its namespace ended, or somebody deleted it."""
        return [port.name for port in self._pods if port.device.gone]

    def port_counters(self) -> dict[str, dict[str, int]]:
        """By port name, "node" among them: frames and bytes from it and to it, drops (`WorkerPort.COUNTS`)."""
        workers = self._crew.workers
        return {port.name: dict(zip(port.COUNTS, port.counted(workers), strict=True)) for port in self._ports}

    def peer_counters(self) -> dict[str, dict[str, int]]:
        """By peer name: packets to it and from it and their bytes (`PeerCounts.COUNTS`)."""
        return self._peers.counted(self._crew.workers)

    # --- snapshot ---

    def apply(self, state: ForwardingState) -> None:
        """Compile `state` and let the workers use it; one that cannot be compiled is forgotten."""
        before, self._state = self._state, state
        try:
            self._publish()
        except DataplaneError:
            self._state = before
            raise

    def set_policy(self, snapshot: PolicySnapshot | None, staged: PolicySnapshot | None = None) -> None:
        """Judge by this from now on, established flows too with their next packet; None ends it.

        Without a snapshot everything passes, or with `policy_required` nothing from or to pods but what their own node
        sends. `staged` is asked whenever `snapshot` is, and counts what it would do (`staged_hits`).
        Raises DataplaneError when flows are not tracked or peers cannot be compiled, and nothing has changed.
        """
        before = self._policies.snapshot, self._policies.staged_snapshot
        self._policies.set(snapshot, staged)
        try:
            self._publish()
        except DataplaneError:
            self._policies.set(*before)
            raise

    def _publish(self) -> None:
        if self._state is None or not self._ports:
            return
        self._generation += 1
        slots = self._peers.place(self._state.peers, self._crew.workers)
        try:
            ports = self.settings.ports
            snapshot = Snapshot(
                self._generation, self._state, self._ports, self._ports_version, ports,
                self.settings.reserved_bits == "strict", self._flows, self._policies.enforcement(self._ports_version),
                self._tables.compile(self._state, ports, self._ports, slots),
            )
        except ValueError as error:
            raise DataplaneError(f"peers cannot be compiled, keeping the last ones: {error}") from None
        if self._memory is not None:
            self._memory.remember()
        self._snapshot = snapshot
        self._crew.swap(snapshot)

    # --- threads ---

    def start(self, before_threads: Callable[[], None] | None = None) -> None:
        """Start the worker threads on the current snapshot.

        `before_threads` is called when all but the threads is ready, and stops whoever has carried our traffic so far,
        whose tunnel-GSO TAP is in the way of ours: that one follows with `follow_offloads`.
        """
        if self.settings.offload.get("udp-gso", True) and not self._offloads["udp-gso"]:
            log.warning("udp-gso is off: a UDP_SEGMENT train over loopback did not arrive (is lo up?)")
        self._start_workers(before_threads)
        self._kept.drop_rest()  # all pods were taken up by now

    def _start_workers(self, before_threads: Callable[[], None] | None = None) -> None:
        self._crew.hire(self.settings, self._underlay, self._offloads["udp-gso"])
        if before_threads is None:
            self._offload().set(self.settings, self._crew.workers, self._underlay.transmit)
        self._publish()
        if before_threads is not None:
            before_threads()
        if self._memory is not None:
            found = self._memory.recover()
            if found:
                log.info("%d connections of an earlier run go on", found)
        self._crew.run()

    def follow_offloads(self) -> None:
        """Look again at what the underlay passes on: offloads may have been switched, or the interface replaced."""
        self._offload().follow(self.settings, self._crew.workers, self._underlay.transmit)

    def _offload(self) -> TunnelOffload:
        if self._tunnel_offload is None:
            from fabric.forward.tunnel_offload import TunnelOffload  # takes its time; we may forward by then

            self._tunnel_offload = TunnelOffload()
        return self._tunnel_offload

    def halt(self) -> None:
        """Stop the threads when they are done with what they have read; everything stays open."""
        self._stop_workers()

    def stop(self) -> None:
        """Stop the threads and close everything; the node port disappears. At any time, also twice.

        The devices of pod ports stay in their pods for the next run (`attach_port`), with their addresses and routes.
        """
        self._stop_workers()
        self._snapshot = None
        for port in [*self._ports, *self._pods]:
            port.device.close()
        if self._tunnel_offload is not None:
            self._tunnel_offload.close()
        self._node = self._bridges = None
        self._pods.clear()
        self._underlay.close()
        if self._memory is not None:
            self._memory.close()

    def _stop_workers(self) -> None:
        self._crew.stop()
        for port in self._ports:
            port.before = port.counted(self._crew.workers)
        self._peers.keep(self._crew.workers)
        self._crew.dismiss()

    # --- what it is doing ---

    def counters(self) -> dict[str, int]:
        """All counters by name, summed over the workers."""
        total = self._crew.counters()
        if self._flows is not None:
            total.update(self._flows.counters())
        total["node_port_overflows"] = _overflows(self.settings.device) if self._ports else 0
        return total

    def rule_hits(self) -> Mapping[str, int]:
        """Flows that each policy rule has decided since the start, by the name that the policy snapshot gives it."""
        return self._policies.rule_hits()

    def staged_hits(self) -> Mapping[str, tuple[int, int]]:
        """Flows that each rule would have decided, and those of them whose verdict would be the other one, by name."""
        return self._policies.staged_hits()

    def denied(self) -> list[Denied]:
        """The last flows that policy has refused, a sample: at most 32 a second of a thread, 256 in all."""
        return self._policies.denied(self._crew.denied())

    def beats(self) -> dict[str, int]:
        """Wake every thread; a number for each that has changed by the next call unless the thread hangs."""
        return self._crew.beats()

    def flows(self, cursor: int, limit: int) -> tuple[list[dict[str, object]], int | None]:
        """A page of at most `limit` connections from place `cursor` on, and where the next one begins, None at the end.

        A connection that moves meanwhile may be missing or come twice. Raises DataplaneError without a table.
        """
        if self._flows is None:
            raise DataplaneError("no connections are tracked: the daemon runs with --flow-table 0")
        return self._flows.page(cursor, limit, int(time.monotonic()))

    def live(self) -> LiveTables:
        """The tables as they are, to run a packet through that is not sent. Raises DataplaneError without any."""
        from fabric.forward.rehearse import LiveTables  # seldom asked for, and a start waits for every import

        if self._snapshot is None or self._state is None:
            raise DataplaneError("no packet passes through this fabricd: the kernel carries them, or it is not ready")
        transmit = {
            family: [sock.getsockname()[1] for sock in socks] for family, socks in self._underlay.transmit.items()
        }
        return LiveTables(
            self._snapshot, self._state, self._ports, self.settings, self._flows, self._policies.snapshot, transmit
        )

    def record_drops(self, enabled: bool) -> None:
        """Take down the beginning of packets that are refused from now on, or no longer."""
        self._crew.record_drops(enabled)

    def recorded_drops(self) -> tuple[list[RefusedPacket], int]:
        """What was taken down since the last call, and how many did not fit into the rings so far."""
        records, lost = self._crew.recorded_drops()
        names = [port.name for port in self._ports]
        return sorted((refused_packet(record, names) for record in records), key=lambda packet: packet.time), lost

    def status(self) -> dict[str, object]:
        """Offloads in use, threads alive, sockets and ports."""
        return {
            "generation": self._generation,
            "encapsulation": self.settings.encapsulation,
            "formats": list(self._underlay.formats),
            "txqueuelen": self.settings.txqueuelen,
            "offloads": {
                **self._offloads,
                "tap-tunnel-gso": self._tunnel_offload is not None and self._tunnel_offload.on,
            },
            "threads": self._crew.alive(),
            "source_ports": [
                sock.getsockname()[1] for socks in self._underlay.transmit.values() for sock in socks
            ],
            "ports": [port.describe() for port in self._ports],
        }


def _serves(port: WorkerPort | None, device: str) -> bool:
    """Whether the port's device is still there, under this name."""
    return port is not None and not port.device.gone and port.device.name == device


def _overflows(device: str) -> int:
    """Frames the kernel dropped because the node port's queue was full: the egress thread never saw them."""
    try:
        return int(Path(f"/sys/class/net/{device}/statistics/tx_dropped").read_text())
    except (OSError, ValueError):
        return 0
