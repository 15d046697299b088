"""What a node is made of, as interfaces: `fabric.daemon.main` builds the real parts, tests put fakes in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fabric.clock import steady
from fabric.config import NetConf
from fabric.daemon import prerequisites
from fabric.daemon.flannel import Flannel
from fabric.daemon.handover import Successor
from fabric.daemon.interface import Host
from fabric.daemon.kernel import ReconcilerFactory
from fabric.daemon.own_lease import Identity
from fabric.model import Address, DataplaneSettings, Encapsulation, Endpoint, ForwardingState, Lease, RefusedPacket
from fabric.state_file import Remembered
from fabric.store.base import Snapshot, Store
from fabric.traffic.rules import TrafficState
from tun.netns import NetnsIdentity, identify

if TYPE_CHECKING:
    from fabric.forward.policies import Denied
    from fabric.forward.rehearse import LiveTables
    from fabric.policy import PolicySnapshot
    from fabric.steering.rules import Steering


class Ports(Protocol):
    """The data path's pod ports. All may raise DataplaneError."""

    def add_port(self, endpoint: Endpoint, fds: Sequence[int] = ()) -> dict[str, object]:
        """Make a pod port, or take the queues that were passed, which are the data path's also on an error."""

    def attach_port(self, endpoint: Endpoint) -> dict[str, object]:
        """The port of an earlier run again. Raises PortLostError when its device is gone."""

    def lost_ports(self) -> list[str]:
        """The pod ports whose device is gone."""

    def port_counters(self) -> dict[str, dict[str, int]]:
        """What each port has carried and lost, by its name; "node" is the node port."""

    def delete_port(self, name: str) -> None:
        """Remove a pod port."""


class Dataplane(Ports, Protocol):
    """What the daemon asks of the data path (`fabric.forward.dataplane`). All may raise DataplaneError."""

    def open(self) -> None:
        """Bind the underlay sockets; change nothing else."""

    def require(self, formats: Iterable[Encapsulation]) -> Mapping[Encapsulation, str]:
        """Receive these formats too; those that cannot be had, with the reason."""

    def create_node_port(self) -> None:
        """Make the TUN device, without addresses."""

    def recreate_node_port(self) -> None:
        """Make it again after somebody deleted it."""

    def apply(self, state: ForwardingState) -> None:
        """Compile and swap the snapshot."""

    def start(self, before_threads: Callable[[], None] | None = None) -> None:
        """Start the worker threads, after a call of `before_threads` when all else is ready."""

    def follow_offloads(self) -> None:
        """Look again at what the underlay interface passes on."""

    def rebind(self, underlay: Sequence[Address], mtu: int, interface: str) -> None:
        """Go on with other underlay addresses, node port MTU and interface; on an error nothing has changed."""

    def halt(self) -> None:
        """Join them; everything stays open."""

    def stop(self) -> None:
        """Join them and close everything; the device disappears. Idempotent."""

    def beats(self) -> dict[str, int]:
        """A number for each thread, which is another at the next call while the thread gets ahead."""

    def counters(self) -> dict[str, int]:
        """Counters by flat name."""

    def peer_counters(self) -> dict[str, dict[str, int]]:
        """What has been carried to and from each peer, by its name."""

    def set_policy(self, snapshot: PolicySnapshot | None, staged: PolicySnapshot | None = None) -> None:
        """Judge by `snapshot` from now on; None: nothing is known, and if policy is required pods stay closed.
        `staged`: count what that would do."""

    def rule_hits(self) -> Mapping[str, int]:
        """How many flows each rule has decided, by the rule's description."""

    def staged_hits(self) -> Mapping[str, tuple[int, int]]:
        """By the rule's description how many flows each would have decided, and how many of these the other way."""

    def denied(self) -> list[Denied]:
        """The last flows that policy has refused, a sample."""

    def flows(self, cursor: int, limit: int) -> tuple[list[dict[str, object]], int | None]:
        """A page of tracked connections, and where the next one begins, None at the end."""

    def live(self) -> LiveTables:
        """The tables as they are, for a packet that is not sent."""

    def record_drops(self, enabled: bool) -> None:
        """Take refused packets down from now on, or no longer."""

    def recorded_drops(self) -> tuple[list[RefusedPacket], int]:
        """Those since the last call, and how many were lost so far."""

    def status(self) -> dict[str, object]:
        """Offloads, threads, sockets, ports."""


class Membership(Protocol):
    """This node's own lease over its life: `fabric.daemon.own_lease.OwnLease`, or `kube_lease.KubeLease`."""

    lease: Lease | None
    created: bool
    changed: Callable[[Lease], None]

    async def acquire(self) -> Lease:
        """Take a lease. Raises LeaseError, StoreUnavailableError."""

    def remember(self, lease: Lease) -> None:
        """Go on with the MACs of a lease of an earlier run."""

    def resume(self, lease: Lease) -> bool:
        """Go on with the lease of an earlier run while the store does not answer; False when it does not fit."""

    def republish(self, identity: Identity) -> None:
        """Publish the same subnets and MACs with other public addresses, as soon as the store takes it."""

    def observe(self, snapshot: Snapshot) -> None:
        """Look at the store's content; what has to be done about our lease is done by `run`."""

    async def run(self) -> None:
        """Keep the lease for ever."""

    async def release(self) -> None:
        """Take back what this run made: the start failed after all. Never raises."""


class Source(Protocol):
    """The kind of store: where configuration, leases and our own lease come from (`fabric.daemon.sources`).

    `kind` and `url` are for people; `prefix` is that of all leases, with its final slash. `config_text` is what has to
    be remembered of the configuration for a start while the store is away, empty when it does not come from the store.
    The methods are called in this order. What a method needs from a store that does not answer it takes from what was
    `remembered`, after a few seconds.
    """

    kind: str
    url: str
    prefix: str
    config_text: str

    async def connect(self, remembered: Remembered) -> Store:
        """The store, not open yet. Raises StartError."""

    async def config(self, remembered: Remembered) -> NetConf:
        """The network configuration, waiting for it as long as it is not there. Raises ConfigError."""

    async def public_addresses(self, remembered: Remembered) -> Mapping[int, str]:
        """Public addresses by IP version that an administrator wrote into the store; they win over the flags."""

    def membership(self, identity: Identity, margin: float, clock: Callable[[], float]) -> Membership:
        """Our own lease in the store, renewed `margin` seconds before its end."""

    async def undo(self) -> None:
        """The start failed and our lease is given back: take back what else it made. Never raises."""


class Traffic(Protocol):
    """The host's firewall rules for pods (`fabric.traffic.TrafficManager`)."""

    def want(self, state: TrafficState) -> None:
        """From now on the firewall should be like `state`."""

    async def first(self) -> None:
        """The first look, at once. Raises StartError."""

    async def run(self) -> None:
        """Look and repair for ever."""

    async def remove(self) -> None:
        """Take away everything of ours. Raises TrafficError."""

    def close(self) -> None:
        """End its thread; the rules stay. Idempotent."""

    def problems(self) -> tuple[str, ...]:
        """What is not as it should be, one line each."""

    def counters(self) -> dict[str, int]:
        """Counters by name."""


class Steerer(Protocol):
    """What leads the traffic of pods without ports to the daemon (`fabric.steering`)."""

    def want(self, wanted: Steering | None) -> None:
        """From now on it should be like that; None: nothing of it."""

    async def first(self) -> None:
        """The first look, at once. Raises StartError."""

    async def run(self) -> None:
        """Look and repair for ever."""

    def problems(self) -> tuple[str, ...]:
        """What is not as it should be, one line each."""

    def close(self) -> None:
        """End its thread; what it made stays. Idempotent."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The outside world of a node."""

    host: Host
    source: Source
    dataplane: Callable[[DataplaneSettings], Dataplane]
    reconciler: ReconcilerFactory
    traffic: Callable[[float], Traffic]
    privileges: Callable[[], None]
    clock: Callable[[], float] = steady
    device_free: Callable[[str], None] = field(default=prerequisites.check_device_name)
    flannel: Flannel = field(default_factory=Flannel)
    identify: Callable[[str], NetnsIdentity] = field(default=identify)
    steering: Callable[[], Steerer] | None = None
    successor: Successor | None = None
    """When we take over from a running daemon."""
