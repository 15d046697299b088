"""What was seen. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

POLICY = "policy"  # how the reasons of what policy refuses begin
Port = Literal["silent", "refused", "prohibited"]
"""What a datagram to a UDP port was answered with: nothing, ICMP port unreachable, another ICMP unreachable."""


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    """Of this node. `problems` are the daemon's own; `forwarding` says by family ("IPv4") whether the kernel forwards;
    `kernel_pods` counts pods that the kernel connects; `vxlan_devices` are VXLAN devices that are none of the
    daemon's and have its VNI or port; `refused` are packets refused while it was looked, by reason."""

    ready: bool
    store: str = ""
    problems: tuple[str, ...] = ()
    forwarding: Mapping[str, bool] = field(default_factory=dict)
    kernel_pods: int = 0
    vxlan_devices: tuple[str, ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeerEvidence:
    """Of one peer.

    `small` and `big` say whether an echo request through the overlay was answered, of a few bytes and of the MTU;
    `fits` is the largest packet that was (0: not tried). `underlay` is the same beside the tunnel. `tcp` says whether
    a connection attempt through the overlay got any answer (None: not tried). Datagrams of the tunnel seen on the
    underlay meanwhile: `sent`, `received`, of these `bad_checksums`; `taken` are those that reached the daemon's
    socket. `kernel_checksum_errors` and `send_refused` are the kernel's and the daemon's counters for the same time.
    `refused` are the peer's packets that the daemon refused, by reason.
    """

    name: str
    public: str
    state: str
    reason: str = ""
    way: str = ""
    device: str = ""
    expected_device: str = ""
    mtu: int = 0
    small: bool = False
    big: bool = False
    fits: int = 0
    underlay: bool = False
    tcp: bool | None = None
    tunnel: bool = True
    port: int = 0
    tunnel_port: Port = "silent"
    other_port: Port = "silent"
    sent: int = 0
    received: int = 0
    taken: int = 0
    bad_checksums: int = 0
    kernel_checksum_errors: int = 0
    write_bad_checksum: int = 0
    send_refused: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
