"""A stand-in for systemd's store of descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterable


class Manager:
    """A service manager's store: keeps duplicates, and gives them out again."""

    def __init__(self) -> None:
        self.fds: dict[str, list[int]] = {}
        self.given: dict[str, list[int]] = {}

    def next_run(self) -> None:
        """The process ended, and another one starts."""
        self.given = {name: [os.dup(fd) for fd in fds] for name, fds in self.fds.items()}

    def take(self, name: str) -> list[int]:
        return self.given.pop(name, [])

    def put(self, name: str, fd: int) -> None:
        self.given.setdefault(name, []).append(fd)

    def holds(self, name: str) -> bool:
        return name in self.given

    def keep(self, name: str, fds: Iterable[int]) -> None:
        if name not in self.fds:
            self.fds[name] = [os.dup(fd) for fd in fds]

    def drop(self, name: str) -> None:
        for fd in [*self.fds.pop(name, []), *self.given.pop(name, [])]:
            os.close(fd)

    def drop_rest(self) -> None:
        for name in list(self.given):
            self.drop(name)

    def settle(self) -> None:
        pass

    def lasts(self) -> bool:
        return True
