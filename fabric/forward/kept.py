"""Descriptors that outlive the process: handed to somebody who keeps them, and given back to the next run.

The data path says under which name what is kept; `fabric.daemon.systemd` gives it to the service manager. With a queue
or a socket the kernel keeps what arrives in it meanwhile, so a restart costs time but no packets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from fabric.model import Address

NODE = "node"
"""The node port's queues."""
BRIDGES = "bridges"
"""The bridge port's."""
STATE = "state"
"""What the data path was told last (`fabric.forward.last_state`)."""
FLOWS = "flows"
"""The memory of the flow table."""


class Kept(Protocol):
    """Names are at most 255 ASCII characters without colons (sd_pid_notify_with_fds(3), FDNAME)."""

    def take(self, name: str) -> list[int]:
        """The descriptors an earlier run has left under this name, now the caller's; they stay kept, too."""

    def put(self, name: str, fd: int) -> None:
        """Something to `take`: given back, or from elsewhere."""

    def holds(self, name: str) -> bool:
        """Whether there is something to `take`."""

    def keep(self, name: str, fds: Iterable[int]) -> None:
        """Keep these for the next run, besides what is kept under this name."""

    def drop(self, name: str) -> None:
        """Keep nothing under this name any more."""

    def drop_rest(self) -> None:
        """Close and keep no more what nobody has taken."""

    def settle(self) -> None:
        """Until what was dropped is closed."""

    def lasts(self) -> bool:
        """Whether anything is kept at all."""


class Nothing:
    """Where nobody keeps anything."""

    def take(self, name: str) -> list[int]:
        return []

    def put(self, name: str, fd: int) -> None:
        pass

    def holds(self, name: str) -> bool:
        return False

    def keep(self, name: str, fds: Iterable[int]) -> None:
        pass

    def drop(self, name: str) -> None:
        pass

    def drop_rest(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def lasts(self) -> bool:
        return False


def pod(port: str) -> str:
    """Name for the queue of the pod port `port`, which may be called anything."""
    from hashlib import blake2b  # takes milliseconds to load, and a start without pods does not need it

    return f"pod-{blake2b(port.encode('utf-8', 'surrogateescape'), digest_size=12).hexdigest()}"


def receiver(encapsulation: str, address: Address, port: int, worker: int) -> str:
    """Name for a receive socket."""
    return f"{encapsulation}-{str(address).replace(':', '_')}-{port}-{worker}"
