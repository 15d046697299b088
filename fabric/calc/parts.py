"""The outcome in pieces: what stretches of neighbouring leases add to it, kept for as long as none of them changes.

Leases are in key order, and so is everything that follows from them. A `Stretches` cuts them into stretches of a few
dozen; a lease that changes has its own stretch gone through again, and the whole is the stretches' tuples one behind
the other, which is copied memory. No positions within the whole have to be known for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, TypeVar

from fabric.calc.reach import Reach
from fabric.calc.words import Verdict
from fabric.model import Address, Encapsulation, KernelFdbEntry, KernelNeighbour, KernelRoute, Peer

SIZE = 32
Item = TypeVar("Item")
Sum = TypeVar("Sum")


@dataclass(frozen=True, slots=True)
class Entries:
    """What the kernel has to hold on one device."""

    routes: tuple[KernelRoute, ...] = ()
    neighbours: tuple[KernelNeighbour, ...] = ()
    fdb: tuple[KernelFdbEntry, ...] = ()


NO_ENTRIES = Entries()


@dataclass(frozen=True, slots=True)
class Part:
    """What some leases add to the outcome.

    `devices` are the kernel's entries by device. `served` are the devices that lead to peers of the data path, and
    `routed` device and IP version of all routes. `formats` and `asked` are as in `Outcome`.
    """

    verdicts: tuple[Verdict, ...] = ()
    peers: tuple[Peer, ...] = ()
    devices: dict[str, Entries] = field(default_factory=dict)
    served: frozenset[str] = frozenset()
    routed: frozenset[tuple[str, int]] = frozenset()
    formats: frozenset[Encapsulation] = frozenset()
    asked: frozenset[Address] = frozenset()


def part_of(verdicts: Iterable[Verdict], reaches: Sequence[Reach]) -> Part:
    """The part of leases with these verdicts, whose subnets are reached in these ways or not."""
    used = [found for found in reaches if found.way]
    by_device: dict[str, list[Reach]] = {}
    for found in used:
        by_device.setdefault(found.device, []).append(found)
    return Part(
        tuple(verdicts),
        tuple(found.peer for found in used if found.peer),
        {name: _entries(found) for name, found in by_device.items() if name},
        frozenset(found.device for found in used if found.peer),
        frozenset((found.device, found.route.prefix.version) for found in used if found.route),
        frozenset[Encapsulation]().union(*(found.formats for found in reaches)),
        frozenset(found.asked for found in reaches if found.asked),
    )


def _entries(reaches: Sequence[Reach]) -> Entries:
    return Entries(
        tuple(found.route for found in reaches if found.route),
        tuple(found.neighbour for found in reaches if found.neighbour),
        tuple(found.fdb for found in reaches if found.fdb),
    )


def joined(parts: Sequence[Part]) -> Part:
    """One part for all."""
    names = dict.fromkeys(name for part in parts for name in part.devices)
    return Part(
        tuple(chain.from_iterable([part.verdicts for part in parts])),
        tuple(chain.from_iterable([part.peers for part in parts])),
        {name: _joined_entries([part.devices.get(name, NO_ENTRIES) for part in parts]) for name in names},
        frozenset[str]().union(*{part.served for part in parts}),
        frozenset[tuple[str, int]]().union(*{part.routed for part in parts}),
        frozenset[Encapsulation]().union(*{part.formats for part in parts}),
        frozenset[Address]().union(*[part.asked for part in parts]),
    )


def _joined_entries(found: Sequence[Entries]) -> Entries:
    return Entries(
        tuple(chain.from_iterable([each.routes for each in found])),
        tuple(chain.from_iterable([each.neighbours for each in found])),
        tuple(chain.from_iterable([each.fdb for each in found])),
    )


class Stretches(Generic[Item, Sum]):
    """Items in their order, in stretches with a sum each. `summarise` makes a stretch's sum."""

    def __init__(self, summarise: Callable[[Sequence[Item]], Sum]) -> None:
        self._summarise = summarise
        self._stretches: list[tuple[Item, ...]] = []
        self._sums: list[Sum] = []

    def replace(self, start: int, count: int, items: Sequence[Item]) -> None:
        """Put `items` in the place of `count` items from index `start` on."""
        if not count and not items:
            return
        first, before = 0, 0  # the stretch in which `start` lies, and the items before it
        while first < len(self._stretches) - 1 and before + len(self._stretches[first]) <= start:
            before += len(self._stretches[first])
            first += 1
        last, after = first, before
        while last < len(self._stretches) and (after < start + count or last == first):
            after += len(self._stretches[last])
            last += 1
        old = tuple(chain.from_iterable(self._stretches[first:last]))
        new = (*old[: start - before], *items, *old[start - before + count :])
        size = SIZE if len(new) > 2 * SIZE else 2 * SIZE
        stretches = [new[place : place + size] for place in range(0, len(new), size)]
        self._stretches[first:last] = stretches
        self._sums[first:last] = map(self._summarise, stretches)

    @property
    def sums(self) -> Sequence[Sum]:
        """The sums of all stretches, in order."""
        return self._sums
