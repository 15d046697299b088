"""A port as the workers see it: descriptors, offloads, MTU and the addresses behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fabric.forward.worker import Worker
from fabric.model import Address
from tun.device import Device

SLOTS = 4096
"""In each worker: places for the counts of one port, the first for the node port (`snapshot.pxd`)."""


class WorkerPort:
    """Wraps a `tun.Device`; snapshots hold a reference, so the device closes when the last one that names it is freed.

    `ethernet` is None for a TUN, (the pod's MAC, the gateway's MAC) of 6 bytes each for a TAP. `addresses` are a pod's
    own addresses, empty for the node port. `bridged`: it leads to the host's pods that have no port of their own.
    `workers` is the number of workers that share the reading of single-queue ports. `slot` is where the workers count
    it (0: with the node port), `before` what is to be added to their counts.
    """

    ethernet: tuple[bytes, bytes] | None = None
    bridged = False
    COUNTS = ("frames_from", "bytes_from", "frames_to", "bytes_to", "drops")
    """As `Worker.port_counts` gives them: what came from the pod, what went to it, what of both was refused."""
    slot = 0
    before: tuple[int, ...] = (0,) * len(COUNTS)

    def __init__(self, name: str, device: Device, mtu: int, addresses: Sequence[Address], workers: int) -> None:
        self.name = name
        self.device = device
        self.mtu = mtu
        self.addresses = tuple(addresses)
        self.workers = workers
        self.fds = tuple(device.fds)

    def place(self, others: Iterable[WorkerPort], workers: Sequence[Worker]) -> None:
        """Give it a slot that none of the `others` has; beyond the last one it is counted with the node port."""
        used = {port.slot for port in others}
        self.slot = next((slot for slot in range(1, SLOTS) if slot not in used), 0)
        self.before = tuple(-value for value in self.counted(workers))  # of the port that had the slot before

    def counted(self, workers: Sequence[Worker]) -> tuple[int, ...]:
        """What it has carried and lost so far, in the order of COUNTS."""
        counts = (self.before, *(worker.port_counts(self.slot) for worker in workers))
        return tuple(map(sum, zip(*counts, strict=True)))

    @property
    def features(self) -> int:
        """FEATURE_* bits the port takes on write."""
        return int(self.device.features)

    def describe(self) -> dict[str, object]:
        """For `fabricctl status`."""
        return {
            "name": self.name,
            "device": self.device.name,
            "mtu": self.mtu,
            "addresses": [str(address) for address in self.addresses],
            "offloads": [feature.name for feature in type(self.device.features) if feature in self.device.features
                         and feature.name not in ("NONE", "ALL")],
        }

    def __del__(self) -> None:
        self.device.close()
