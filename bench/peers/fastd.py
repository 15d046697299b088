"""fastd in TUN mode with the method "null": authenticated peers, plain packets."""

from __future__ import annotations

from typing import ClassVar

from bench.peers.base import Tunnel

PORT = 10000


class Fastd(Tunnel):
    """https://fastd.readthedocs.io/"""

    name = "fastd"
    label = "fastd, method null"
    tools: ClassVar = {"fastd": "fastd"}

    def configure(self) -> None:
        pairs = []
        for _ in self.nodes:
            words = dict(line.split(": ") for line in self.run("fastd", "--generate-key").splitlines() if ": " in line)
            pairs.append((words["Secret"], words["Public"]))
        for side, node in enumerate(self.nodes):
            other = self.nodes[1 - side]
            self.write(
                f"{node.name}.conf",
                f'log level warn;\nmode tun;\ninterface "{self.device(side)}";\nmethod "null";\nmtu {self.mtu};\n'
                f'bind {node.underlay_ip}:{PORT};\nsecret "{pairs[side][0]}";\n'
                f'peer "{other.name}" {{ key "{pairs[1 - side][1]}"; remote {other.underlay_ip}:{PORT}; }}\n',
            )

    def command(self, side: int) -> list[str]:
        return ["fastd", "--config", str(self.directory / f"{self.nodes[side].name}.conf")]
