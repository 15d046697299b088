"""Which counts are whose while peers come, go and come back."""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Address

import pytest

from fabric.forward.peer_counts import SLOTS, PeerCounts
from fabric.model import Peer


class Counting:
    """Counts what it is told to, in the place of a worker."""

    def __init__(self) -> None:
        self.slots: defaultdict[int, list[int]] = defaultdict(lambda: [0] * len(PeerCounts.COUNTS))

    def count(self, slot: int, packets: int) -> None:
        self.slots[slot][0] += packets

    def peer_counts(self, slot: int) -> tuple[int, ...]:
        return tuple(self.slots[slot])


def peer(name: str) -> Peer:
    return Peer(name, IPv4Address("192.0.2.1"), (), "vxlan", bytes(6), 1450)


A, B, C, D = map(peer, "abcd")


def sent(counts: PeerCounts, *workers: Counting) -> dict[str, int]:
    return {name: found["packets_to"] for name, found in counts.counted(workers).items()}


def test_a_peer_that_stays_keeps_slot_and_counts() -> None:
    counts, workers = PeerCounts(), [Counting(), Counting()]
    slots = dict(counts.place((A, B), workers))
    for number, worker in enumerate(workers, 1):
        worker.count(slots["a"], number)
    moved = Peer("a", IPv4Address("192.0.2.9"), (), "vxlan", bytes(6), 1400)  # the same node, elsewhere
    assert counts.place((C, moved), workers)["a"] == slots["a"]
    assert sent(counts, *workers) == {"a": 3, "c": 0}


def test_a_slot_is_given_away_only_when_nobody_can_count_there_any_more() -> None:
    counts, worker = PeerCounts(), Counting()
    slot = counts.place((A,), [worker])["a"]
    worker.count(slot, 5)
    assert counts.place((B,), [worker])["b"] != slot, "threads may still use the tables with a"
    worker.count(slot, 1)
    counts.place((B, C), [worker])
    assert counts.place((B, C, D), [worker])["d"] == slot
    worker.count(slot, 2)
    assert sent(counts, worker) == {"b": 0, "c": 0, "d": 2}


def test_a_peer_that_is_back_at_once_goes_on() -> None:
    """Its lease was renewed late, or the tables between could not be compiled."""
    counts, worker = PeerCounts(), Counting()
    slot = counts.place((A, B), [worker])["a"]
    worker.count(slot, 5)
    counts.place((B,), [worker])
    assert counts.place((A, B), [worker])["a"] == slot
    assert sent(counts, worker) == {"a": 5, "b": 0}


def test_other_workers_go_on_where_the_last_ones_ended() -> None:
    counts, first, second = PeerCounts(), Counting(), Counting()
    slot = counts.place((A,), [first])["a"]
    first.count(slot, 5)
    counts.keep([first])
    second.count(slot, 2)
    assert sent(counts, second) == {"a": 7}


@pytest.mark.slow
def test_beyond_the_last_slot_peers_are_not_counted_one_by_one() -> None:
    counts, worker = PeerCounts(), Counting()
    many = tuple(peer(str(number)) for number in range(SLOTS + 1))
    slots = counts.place(many, [worker])
    assert sorted(slots.values())[:3] == [0, 0, 1]
    assert len(set(slots.values())) == SLOTS
    assert len(counts.counted([worker])) == SLOTS - 1
