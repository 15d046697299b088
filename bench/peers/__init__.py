"""Other userspace tunnels between the same two nodes, as extra overlays: tinc, fastd, nebula, wireguard-go.

Each is started from Debian's package with a configuration in the lab's run directory, gets a device of its own in
both nodes, and carries pod traffic while it is `active()`: routes for the halves of the peer's pod subnet, which are
longer than the fabric's and leave those alone. `stop` ends the processes and removes its files.
"""

from __future__ import annotations

from bench.peers.base import Tunnel
from bench.peers.fastd import Fastd
from bench.peers.nebula import Nebula
from bench.peers.tinc import Tinc
from bench.peers.wireguard_go import WireguardGo

__all__ = ["TUNNELS", "Tunnel"]
TUNNELS: dict[str, type[Tunnel]] = {kind.name: kind for kind in (Tinc, Fastd, Nebula, WireguardGo)}
