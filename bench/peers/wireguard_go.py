"""wireguard-go: WireGuard in user space, always encrypted (ChaCha20-Poly1305)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from bench.peers.base import Tunnel
from fabric.lab import system

PORT = 51820
SOCKETS = Path("/var/run/wireguard")


class WireguardGo(Tunnel):
    """https://git.zx2c4.com/wireguard-go/about/. Its control socket is named after the device, hence one per side."""

    name = "wireguard-go"
    label = "wireguard-go, encrypted"
    tools: ClassVar = {"wireguard-go": "wireguard-go", "wg": "wireguard-tools"}
    encrypted = True
    mtu = 1440

    def device(self, side: int) -> str:
        return f"fablab-wg{side}"

    def stop(self) -> None:
        super().stop()
        for side in (0, 1):
            (SOCKETS / f"{self.device(side)}.sock").unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's sockets, or never made
            SOCKETS.rmdir()

    def configure(self) -> None:
        for side in (0, 1):
            secret = self.run("wg", "genkey")
            self.write(f"key{side}", secret)
            self.write(f"public{side}", self.run("wg", "pubkey", data=secret))

    def environment(self) -> dict[str, str]:
        return {**os.environ, "LOG_LEVEL": "error", "WG_PROCESS_FOREGROUND": "1"}

    def command(self, side: int) -> list[str]:
        return ["wireguard-go", "-f", self.device(side)]

    def ready(self, side: int) -> None:
        node, other = self.nodes[side], self.nodes[1 - side]
        public = (self.directory / f"public{1 - side}").read_text().strip()
        argv = ["wg", "set", self.device(side), "listen-port", str(PORT)]
        argv += ["private-key", str(self.directory / f"key{side}"), "peer", public]
        argv += ["allowed-ips", other.subnet, "endpoint", f"{other.underlay_ip}:{PORT}"]
        system.run(node.netns, argv)
        super().ready(side)
