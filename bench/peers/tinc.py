"""tinc 1.0 in router mode, without cipher and digest.

Path MTU discovery is off: while it probes, tinc sends what is longer than the proven size over its TCP connection.
"""

from __future__ import annotations

from typing import ClassVar

from bench.peers.base import Tunnel


class Tinc(Tunnel):
    """https://www.tinc-vpn.org/documentation/"""

    name = "tinc"
    label = "tinc, no cipher"
    tools: ClassVar = {"tincd": "tinc"}

    def configure(self) -> None:
        hosts = []
        for side, node in enumerate(self.nodes):
            other = self.nodes[1 - side].name
            self.write(
                f"{node.name}/tinc.conf",
                f"Name = {node.name}\nAddressFamily = ipv4\nBindToAddress = {node.underlay_ip}\nConnectTo = {other}\n"
                f"Interface = {self.device(side)}\nDeviceType = tun\nMode = router\nPMTUDiscovery = no\n",
            )
            (self.directory / node.name / "hosts").mkdir()
            self.run("tincd", "-c", node.name, "-K", "2048")
            key = (self.directory / node.name / "hosts" / node.name).read_text()
            hosts.append(
                (
                    node.name,
                    f"Address = {node.underlay_ip}\nSubnet = {node.subnet}\nCipher = none\nDigest = none\n"
                    f"Compression = 0\nPMTUDiscovery = no\n{key}",
                )
            )
        for node in self.nodes:
            for name, text in hosts:
                self.write(f"{node.name}/hosts/{name}", text)

    def command(self, side: int) -> list[str]:
        own = self.directory / self.nodes[side].name
        return ["tincd", "-c", str(own), "-D", f"--pidfile={own / 'pid'}"]
