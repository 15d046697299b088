"""Sequences in one flat list: equal ones are there once, and the room of one that nobody uses is used again. Pure."""

from __future__ import annotations

from collections.abc import Hashable, MutableSequence
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Pool(Generic[T]):
    """`items` is the flat list. `live` and `free`: how many items of it are used, and are not."""

    def __init__(self, items: MutableSequence[T]) -> None:
        self.items = items
        self.live = 0
        self.free = 0
        self._places: dict[tuple[T, ...], int] = {}
        self._uses: dict[tuple[T, ...], int] = {}
        self._holes: dict[int, list[int]] = {}

    def take(self, sequence: tuple[T, ...]) -> int:
        """Where `sequence` is, with one use more; the empty one is anywhere."""
        if not sequence:
            return 0
        place = self._places.get(sequence)
        if place is None:
            place = self._places[sequence] = self._put(sequence)
            self._uses[sequence] = 0
        self._uses[sequence] += 1
        return place

    def _put(self, sequence: tuple[T, ...]) -> int:
        self.live += len(sequence)
        holes = self._holes.get(len(sequence))
        if not holes:
            place = len(self.items)
            self.items.extend(sequence)
            return place
        place = holes.pop()
        self.free -= len(sequence)
        for i, item in enumerate(sequence, place):
            self.items[i] = item
        return place

    def release(self, sequence: tuple[T, ...]) -> None:
        if not sequence:
            return
        self._uses[sequence] -= 1
        if not self._uses[sequence]:
            del self._uses[sequence]
            self._holes.setdefault(len(sequence), []).append(self._places.pop(sequence))
            self.live -= len(sequence)
            self.free += len(sequence)
