"""What has been carried to and from each peer: which slot of the workers' counts is whose.

A peer has its slot for as long as it is one, through every table that names it, so its counts only grow. The slot of a
peer that left is given away at the earliest when the peers change once more: no thread uses a table that names it by
then, and one that is back by the next change goes on where it was.

Limits: what goes to and comes from peers beyond the first 8,191 is counted together and belongs to none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from fabric.identity import differing
from fabric.model import Peer

SLOTS = 8192
"""In each worker; the first is for the peers without one (`PEER_SLOTS` in `encap/vtep.pxd`)."""
Counts = tuple[int, ...]


class Counter(Protocol):
    """What counts in slots: a worker."""

    def peer_counts(self, slot: int) -> Counts:
        """Of the VTEP in this slot."""


class PeerCounts:
    """Of one data plane. Peers are known by their names."""

    COUNTS = ("packets_to", "bytes_to", "packets_from", "bytes_from")
    """As `Worker.peer_counts` gives them: inner packets, a superframe's segments one by one, and their bytes."""

    def __init__(self) -> None:
        self._peers: tuple[Peer, ...] = ()
        self._slots: dict[str, int] = {}
        self._left: dict[str, int] = {}  # slots of those that went with the last change
        self._before: dict[str, Counts] = {}  # to be added to what the workers count in a slot
        self._free: deque[int] = deque()
        self._next = 1

    def place(self, peers: tuple[Peer, ...], workers: Sequence[Counter]) -> Mapping[str, int]:
        """The slots of these peers, 0 where there is none left. The cost is that of what changed."""
        gone, come = differing(self._peers, peers)
        self._peers = peers
        if gone or come:
            names = {peer.name for peer in come}
            leaving = [peer.name for peer in gone if peer.name not in names]
            for name in names - self._slots.keys():
                self._slots[name] = self._left.pop(name) if name in self._left else self._new(name, workers)
            for name, slot in self._left.items():
                self._release(name, slot)
            self._left = {name: self._slots.pop(name) for name in leaving}
        return self._slots

    def counted(self, workers: Sequence[Counter]) -> dict[str, dict[str, int]]:
        """What every peer that has a slot has been sent and has sent so far, by its name."""
        return {
            name: dict(zip(self.COUNTS, self._count(name, slot, workers), strict=True))
            for name, slot in self._slots.items()
            if slot
        }

    def keep(self, workers: Sequence[Counter]) -> None:
        """These workers have ended, and others will count from 0."""
        for name, slot in (self._slots | self._left).items():
            self._before[name] = self._count(name, slot, workers)

    def _new(self, name: str, workers: Sequence[Counter]) -> int:
        if self._free:
            slot = self._free.popleft()
        elif self._next < SLOTS:
            slot, self._next = self._next, self._next + 1
        else:
            return 0
        found = self._count(name, slot, workers)
        self._before[name] = tuple(-value for value in found)  # of the peer that had it before
        return slot

    def _release(self, name: str, slot: int) -> None:
        self._before.pop(name, None)
        if slot:
            self._free.append(slot)

    def _count(self, name: str, slot: int, workers: Sequence[Counter]) -> Counts:
        before = self._before.get(name, (0,) * len(self.COUNTS))
        return tuple(map(sum, zip(before, *(worker.peer_counts(slot) for worker in workers), strict=True)))
