# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One immutable generation of the data path: VTEPs, routes, ports and our own addresses, as plain C tables.

A `Snapshot` owns its tables and keeps the ports alive whose descriptors it names. Worker threads only ever see the
`Generation` inside; the control plane frees a snapshot when no thread can still be using it (`worker.py`).
"""

from ipaddress import ip_network

import cython
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.libc.stdlib import calloc, free

from encap.vtep import VtepTable
from fabric.forward.enforcement import Enforcement, RuleHits
from fabric.forward.flows import FlowTable
from routes.fib import Fib

LOW = (1 << 64) - 1
NO_SLOTS: dict = {}


def to_vtep(position: int) -> int:
    """Route value: encapsulate to the VTEP at this position."""
    return TO_VTEP << KIND_SHIFT | position


def to_host(position: int) -> int:
    """Route value: the VTEP at this position, to which the host's kernel has a plain route."""
    return TO_HOST << KIND_SHIFT | position


def to_port(position: int) -> int:
    """Route value: hand to the local port at this position (0 is the node port, the host itself)."""
    return TO_PORT << KIND_SHIFT | position


def compile_tables(state, tunnel_ports, ports, slots=NO_SLOTS):
    """(VtepTable, Fib) of a `ForwardingState` and its ports; `ports[0]` is the node port.

    `slots` are the peers' by name (`forward.peer_counts`); without any all are counted together.
    A local prefix or pod address wins over a peer's prefix of the same length only by being longer: the calculation
    graph has removed overlaps before.
    """
    peers = served(state)
    vteps = VtepTable(vtep_row(state, tunnel_ports, peer, slots) for peer in peers)
    routes = {}
    for position, peer in enumerate(peers):
        routes.update(peer_routes(peer, position))
    routes.update(local_routes(state.vteps, ports))
    return vteps, Fib(routes.items())


def served(state):
    """The peers for whose IP version we have an underlay address."""
    versions = {vtep.underlay.version for vtep in state.vteps}
    return [peer for peer in state.peers if peer.underlay.version in versions]


def vtep_row(state, tunnel_ports, peer, slots):
    """What `VtepTable` has to know of a peer that is served."""
    own_mac = next(vtep.mac for vtep in reversed(state.vteps) if vtep.underlay.version == peer.underlay.version)
    port = tunnel_ports.get(peer.encapsulation, 0)
    return (peer.name, peer.underlay, port, peer.mac, own_mac, peer.mtu, peer.encapsulation, state.vni, peer.accepts,
            peer.any_mac, slots.get(peer.name, 0))  # fmt: skip


def peer_routes(peer, position):
    """The routes to the peer whose VTEP is at `position`."""
    value = to_host(position) if peer.direct or peer.encapsulation is None else to_vtep(position)
    return dict.fromkeys(peer.prefixes, value)


def local_routes(vteps, ports):
    """The routes to this node: its own prefixes, and the pods' addresses.

    Where there is a port for the pods in bridges, it is theirs that have no port, and the node's address the node's.
    """
    behind = next((position for position, port in enumerate(ports) if port.bridged), 0)
    own = [prefix for vtep in vteps for prefix in vtep.prefixes]
    routes = dict.fromkeys(own, to_port(behind))
    routes.update({ip_network(prefix.network_address): to_port(0) for prefix in own} if behind else {})
    for position, port in enumerate(ports):
        for address in port.addresses:
            routes[ip_network(address)] = to_port(position)
    return routes


@cython.cclass
class Snapshot:
    """Compiled from a `ForwardingState`, the ports (`forward.ports.WorkerPort`) and the UDP port of each format.

    With `flows` the workers track every flow in that table; without, they follow the routes alone. Flows are judged
    as `enforcement` says, which needs `flows`. `tables` are those of the same state and ports where they are there
    already (`forward.tables`). Raises ValueError for what cannot be compiled.
    """

    def __cinit__(
        self, number: int, state, ports, ports_version: int, tunnel_ports, strict: bool, flows: FlowTable = None,
        enforcement: Enforcement = None,
        tables=None,
    ):
        if enforcement is not None and enforcement.rules.active and flows is None:
            raise ValueError("policy needs a flow table")
        self.keep = tuple(ports)
        vteps, fib = tables or compile_tables(state, tunnel_ports, ports)
        self.vteps = vteps
        self.fib = fib
        generation = cython.address(self.generation)
        generation.number = number
        generation.ports_version = ports_version
        generation.fib = cython.address(self.fib.table)
        generation.vteps = cython.address(self.vteps.table)
        generation.vni = state.vni
        generation.tunnel_ports[0] = tunnel_ports["vxlan"]
        generation.tunnel_ports[1] = tunnel_ports["udp"]
        generation.strict = strict
        generation.port_count = len(self.keep)
        generation.ports = cython.cast(cython.pointer(PortEntry), calloc(len(self.keep) + 1, cython.sizeof(PortEntry)))
        if generation.ports == cython.NULL:
            raise MemoryError
        for position, port in enumerate(self.keep):
            self._place_port(position, port)
        if flows is not None:
            self._track_flows(flows)
        self.enforcement = enforcement if enforcement is not None else Enforcement(0, None, False, (), RuleHits())
        generation.rules = cython.address(self.enforcement.rules)
        generation.rules_number = self.enforcement.rules.number
        for vtep in state.vteps:
            if vtep.underlay.version == 4:
                generation.underlay4 = int(vtep.underlay)
            else:
                generation.underlay_high6 = int(vtep.underlay) >> 64
                generation.underlay_low6 = int(vtep.underlay) & LOW
            for prefix in vtep.prefixes:
                number = int(prefix.network_address)
                if prefix.version == 4:
                    generation.address4 = number
                else:
                    generation.high6 = number >> 64
                    generation.low6 = number & LOW

    def __dealloc__(self):
        free(self.generation.ports)

    def _track_flows(self, flows):
        self.flows = flows
        self.generation.flows = flows.table
        names = [port.name for port in self.keep[1:]]
        flows.keep_accounts(names)
        for position, name in enumerate(names, 1):
            self.generation.ports[position].account = flows.account(name)

    def _place_port(self, position, port):
        entry = cython.address(self.generation.ports[position])
        i: uint32_t
        fds = port.fds
        for i in range(MAX_WORKERS):
            entry.fds[i] = fds[i % len(fds)]
        entry.owner = MAX_WORKERS if len(fds) > 1 or position == 0 else position % port.workers
        entry.features = port.features
        entry.slot = port.slot
        entry.mtu = port.mtu
        entry.kind = BRIDGE_PORT if port.bridged else NODE_PORT if position == 0 else POD_PORT
        if port.ethernet is not None:
            entry.ethernet = 1
            for i, byte in enumerate(port.ethernet[0] + port.ethernet[1]):
                entry.link[i] = byte
        for address in port.addresses:
            if address.version == 4:
                entry.has4 = 1
                entry.address4 = int(address)
            else:
                entry.has6 = 1
                entry.high6 = int(address) >> 64
                entry.low6 = int(address) & LOW

    @property
    def number(self) -> int:
        """Generation number, rising by one per compile."""
        return self.generation.number

    def route(self, address) -> int | None:
        """Route value for an inner destination, None when there is no route."""
        return self.fib.lookup(address)

    def vtep(self, position: int) -> str | None:
        """Name of the peer at `position` of the table of VTEPs, None when there is none."""
        found = self.vteps.at(position)
        return None if found is None else found[0]

    def vtep_from(self, address) -> str | None:
        """Name of the peer whose datagrams come from this underlay address, None when there is none."""
        return self.vteps.find(address)
