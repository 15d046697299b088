"""Address sets: every distinct peer of every rule is one set with a number, however often it is written.

Two kinds. A set by labels alone is a property of groups (`Group.sets`). Any other set is *spread*: ranges of addresses,
computed from networks, network sets, nodes and the addresses of pods. Numbers are stable while a set is used.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric.policy.errors import PolicyError
from fabric.policy.fields import Network
from fabric.policy.ranges import Range, intersect, joined, subtract
from fabric.policy.rules import EVERYWHERE, Identity, Peer

LAST = {4: (1 << 32) - 1, 6: (1 << 128) - 1}
MAX_SETS = 65_536
ALL_ADDRESSES = 0
"""The number of the set of all addresses; every address is in it."""

Spread = dict[int, list[Range]]


class SetTable:
    def __init__(self) -> None:
        self.numbers: dict[Peer, int] = {EVERYWHERE: ALL_ADDRESSES}
        self.peers: dict[int, Peer] = {ALL_ADDRESSES: EVERYWHERE}
        self.uses: dict[int, int] = {}
        self.free: list[int] = []
        self.fresh: set[int] = set()
        self.gone: set[int] = set()

    def take(self, peer: Peer) -> int:
        """The set's number, with one use more."""
        number = self.numbers.get(peer)
        if number is None:
            if len(self.peers) >= MAX_SETS:
                raise PolicyError("policies", f"name more than {MAX_SETS} distinct peers")
            number = self.free.pop() if self.free else len(self.peers)
            self.numbers[peer], self.peers[number] = number, peer
            self.fresh.add(number)
            self.gone.discard(number)
        if number:
            self.uses[number] = self.uses.get(number, 0) + 1
        return number

    def release(self, number: int) -> None:
        if not number:
            return
        self.uses[number] -= 1
        if not self.uses[number]:
            del self.uses[number], self.numbers[self.peers.pop(number)]
            self.free.append(number)
            self.gone.add(number)
            self.fresh.discard(number)


def by_labels(peer: Peer, *, net_sets: bool) -> bool:
    """Whether labels of pods alone say who is in. `net_sets`: there are network sets, which Calico's selectors mean
    too.
    """
    if peer.identity is None and peer.port is None:
        return False
    if peer.nodes or peer.nets is not None or peer.not_nets or peer.not_identity or peer.family:
        return False
    return not (net_sets and peer.identity is not None and peer.identity.calico)


def depends_on_pods(peer: Peer) -> bool:
    return bool(peer.identity or peer.nodes or peer.not_identity or peer.port)


def net_ranges(nets: tuple[Network, ...] | list[Network], family: int) -> list[Range]:
    return joined((int(n.network_address), int(n.broadcast_address)) for n in nets if n.version == family)


def spread(
    peer: Peer,
    identified: Callable[[Identity, tuple[str, int, int] | None, int], list[Range]],
    nodes: Callable[[Peer, int], list[Range]],
) -> Spread:
    """Ranges of the set by family; `identified` and `nodes` give those of who is selected."""
    found: Spread = {}
    for family in (4, 6):
        if peer.family not in (None, family):
            continue
        ranges: list[Range] = [(0, LAST[family])]
        if peer.identity is not None or peer.port is not None:
            ranges = identified(peer.identity or Identity(), peer.port, family)
        elif peer.nodes is not None:
            ranges = nodes(peer, family)
        if peer.nets is not None:
            ranges = intersect(ranges, net_ranges(peer.nets, family), LAST[family])
        ranges = subtract(ranges, net_ranges(peer.not_nets, family))
        if peer.not_identity is not None:
            ranges = subtract(ranges, identified(peer.not_identity, None, family))
        if ranges:
            found[family] = ranges
    return found
