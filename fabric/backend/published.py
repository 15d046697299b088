"""What this node's lease says about its backend. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fabric.config import Backend
from fabric.leases import vxlan_data


@dataclass(frozen=True, slots=True)
class Published:
    """The fields `BackendType`, `BackendData` and `BackendV6Data` of a lease, as `fabric.model.Lease` has them."""

    backend_type: str
    backend_data: Any = None
    backend_v6_data: Any = None


def published(backend: Backend, macs: Mapping[int, bytes], output: str = "") -> Published:
    """`macs` are our MACs by IP version, for VXLAN only; `output` is what PreStartupCommand printed.

    flannel's udp and alloc write no type at all, host-gw writes no data, extension a JSON string when it has a command
    to make one.
    """
    if backend.type == "vxlan":
        data = {version: vxlan_data(backend.vni, mac) for version, mac in macs.items()}
        return Published(backend.lease_type, data.get(4), data.get(6))
    if backend.type == "extension" and backend.commands.pre_startup:
        return Published(backend.lease_type, output)
    return Published(backend.lease_type)
