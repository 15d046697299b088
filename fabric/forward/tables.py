"""The data path's tables from one state to the next, at the cost of what changed.

`Tables.compile` gives what `snapshot.compile_tables` gives for the same state and ports. Where the last state differs
by a few peers or pod addresses, the tables are copies of the last ones with these pieces exchanged: a peer that stays
keeps its position, one that comes takes a free one, and of the prefix table only the intervals under a changed prefix
are made anew. So a patched table answers as a compiled one but may number its VTEPs differently. Whatever is out of the
ordinary (another VNI, MAC or UDP port of our own, a prefix with two peers, many changes at once) is compiled whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from encap.vtep import VtepTable
from fabric.forward.ports import WorkerPort
from fabric.forward.snapshot import compile_tables, local_routes, peer_routes, served, vtep_row
from fabric.identity import differing
from fabric.model import Encapsulation, ForwardingState, LocalVtep, Network, Peer
from routes.fib import Fib
from routes.prefixes import PrefixSet

MOST = 64
"""Changes at once; for more, compiling everything takes hardly longer."""
SPARE = 64
"""Free positions in the table of VTEPs beyond which it is compiled whole, unless most are taken."""
TunnelPorts = Mapping[Encapsulation, int]
Slots = Mapping[str, int]
NO_SLOTS: Slots = {}


class Tables:
    """Keeps the last tables and what they were made of."""

    def __init__(self) -> None:
        self._last: _Compiled | None = None

    def compile(
        self, state: ForwardingState, tunnel_ports: TunnelPorts, ports: Sequence[WorkerPort], slots: Slots = NO_SLOTS
    ) -> tuple[VtepTable, Fib]:
        """The tables for `state`. Raises ValueError for one that cannot be compiled; the next call starts afresh.

        `slots` are the peers' by name, the same ones for as long as a peer stays.
        """
        last, self._last = self._last, None  # a patch that fails half-way leaves it in pieces
        if last is None or not last.can_become(state, tunnel_ports) or not last.become(state, ports, slots):
            last = _Compiled(state, tunnel_ports, ports, slots)
        self._last = last
        return last.vteps, last.fib


class _Compiled:
    """Tables with their parts. `positions` are the peers' by identity, `routes` those to peers, `local` all others."""

    def __init__(
        self, state: ForwardingState, tunnel_ports: TunnelPorts, ports: Sequence[WorkerPort], slots: Slots
    ) -> None:
        self.vteps, self.fib = compile_tables(state, tunnel_ports, ports, slots)
        self._state = state
        self._tunnel_ports = dict(tunnel_ports)
        self._places = _places(state.vteps, ports)
        peers = served(state)
        self._positions = {id(peer): position for position, peer in enumerate(peers)}
        self._end = len(peers)
        self._free: list[int] = []
        self._routes: dict[Network, int] = {}
        self._shared = False  # two peers have one prefix
        for position, peer in enumerate(peers):
            self._shared |= any(prefix in self._routes for prefix in peer.prefixes)
            self._routes.update(peer_routes(peer, position))
        self._local = local_routes(state.vteps, ports)
        self._prefixes = PrefixSet({**self._routes, **self._local}.items())

    def can_become(self, state: ForwardingState, tunnel_ports: TunnelPorts) -> bool:
        """Whether what stays of the peers is the same in both states."""
        same = (state.vni, state.vteps) == (self._state.vni, self._state.vteps) and tunnel_ports == self._tunnel_ports
        return same and not self._shared and len(self._free) <= max(SPARE, len(self._positions))

    def become(self, state: ForwardingState, ports: Sequence[WorkerPort], slots: Slots) -> bool:
        """Go over to the tables of `state`. False where they have to be compiled; this object is of no more use then.

        Raises ValueError for two VTEPs with one address."""
        gone, come = differing(self._state.peers, state.peers)
        if len(gone) + len(come) > MOST:
            return False
        touched = self._relocate(state.vteps, ports)
        before = self._state
        self._state = state
        leave = [self._leave(peer, touched) for peer in gone if id(peer) in self._positions]
        versions = {vtep.underlay.version for vtep in before.vteps}
        enter = [(self._place(), peer) for peer in come if peer.underlay.version in versions]
        for position, peer in enter:
            if any(prefix in self._routes for prefix in peer.prefixes):
                return False
            self._positions[id(peer)] = position
            self._routes.update(peer_routes(peer, position))
            touched.update(peer.prefixes)
        if leave or enter:
            rows = [(position, vtep_row(state, self._tunnel_ports, peer, slots)) for position, peer in enter]
            self.vteps = self.vteps.patched(leave, rows)
        self._route(touched)
        return True

    def _relocate(self, vteps: Sequence[LocalVtep], ports: Sequence[WorkerPort]) -> set[Network]:
        """Take over the pods' addresses; the prefixes whose local routes are others now."""
        places = _places(vteps, ports)
        if places == self._places:
            return set()
        before, self._local, self._places = self._local, local_routes(vteps, ports), places
        return {prefix for prefix, _ in before.items() ^ self._local.items()}

    def _leave(self, peer: Peer, touched: set[Network]) -> int:
        position = self._positions.pop(id(peer))
        self._free.append(position)
        for prefix in peer.prefixes:
            self._routes.pop(prefix, None)
        touched.update(peer.prefixes)
        return position

    def _place(self) -> int:
        if self._free:
            return self._free.pop()
        self._end += 1
        return self._end - 1

    def _route(self, touched: set[Network]) -> None:
        """Bring the routes of these prefixes into the prefix table: all of them, and then the intervals of each."""
        for prefix in touched:
            value = self._local.get(prefix, self._routes.get(prefix))
            if value is None:
                self._prefixes.remove(prefix)
            else:
                self._prefixes.set(prefix, value)
        for prefix in touched:
            self.fib = self.fib.patched(self._prefixes.window(prefix))


def _places(vteps: Sequence[LocalVtep], ports: Sequence[WorkerPort]) -> list[object]:
    """What the local routes follow from."""
    return [vteps, *(port.addresses for port in ports)]
