"""nebula: always encrypted (AES-GCM by default). Pod subnets are its "unsafe routes"."""

from __future__ import annotations

from ipaddress import ip_network
from typing import ClassVar

from bench.peers.base import Tunnel

PORT = 4242
OVERLAY = ip_network("203.0.113.0/24")

CONFIG = """
pki: {{ca: {directory}/ca.crt, cert: {directory}/{name}.crt, key: {directory}/{name}.key}}
static_host_map: {{"{peer}": ["{remote}:{port}"]}}
lighthouse: {{am_lighthouse: false, hosts: []}}
listen: {{host: {local}, port: {port}}}
punchy: {{punch: false}}
tun:
  dev: {device}
  mtu: {mtu}
  unsafe_routes: [{{route: {subnet}, via: {peer}, mtu: {mtu}, metric: 4000}}]
logging: {{level: error}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"""


class Nebula(Tunnel):
    """https://nebula.defined.net/docs/config/"""

    name = "nebula"
    label = "nebula, encrypted"
    tools: ClassVar = {"nebula": "nebula", "nebula-cert": "nebula"}
    encrypted = True
    mtu = 1440

    def configure(self) -> None:
        self.run("nebula-cert", "ca", "-name", "lab")
        for side, node in enumerate(self.nodes):
            other = self.nodes[1 - side]
            own, peer = OVERLAY[1 + side], OVERLAY[2 - side]
            address = f"{own}/{OVERLAY.prefixlen}"
            self.run("nebula-cert", "sign", "-name", node.name, "-ip", address, "-subnets", node.subnet)
            values = {"directory": self.directory, "name": node.name, "peer": peer, "remote": other.underlay_ip}
            values |= {"port": PORT, "local": node.underlay_ip, "device": self.device(side), "mtu": self.mtu}
            self.write(f"{node.name}.yml", CONFIG.format(subnet=other.subnet, **values))

    def command(self, side: int) -> list[str]:
        return ["nebula", "-config", str(self.directory / f"{self.nodes[side].name}.yml")]
