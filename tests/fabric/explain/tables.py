"""The live tables of a harness node, and a packet's story told as the daemon tells it."""

from __future__ import annotations

from typing import Any

from fabric.explain.arrival import arrive
from fabric.explain.story import Story
from fabric.forward.rehearse import LiveTables
from fabric.forward.snapshot import Snapshot
from fabric.model import DataplaneSettings
from fabric.policy import PolicySnapshot
from fabric.who import Names
from tests.fabric.forward.harness import VNI, Node
from tests.fabric.forward.policed import SERVICE_NETWORKS

PEERS = [{"node": "node2", "public": ["127.0.0.2"], "subnets": ["10.244.2.0/24", "2001:db8:2::/64"]}]
PODS = [
    {"pod": {"namespace": "default", "name": name, "container_id": ""}, "name": f"pod1-{host}",
     "addresses": [f"10.244.1.{host}", f"2001:db8:1::{host:x}"]}
    for name, host in (("a", 10), ("b", 11))
]  # fmt: skip


def live(node: Node, policy: PolicySnapshot | None = None, services: bool = False) -> LiveTables:
    """As `Dataplane.live`: node 1 of a fabric, whose worker goes on with the same flow table."""
    ports = {"vxlan": 1, "udp": 1, **node.tunnel_ports}
    snapshot = Snapshot(
        node.generation,
        node.state(),
        node.ports,
        node.ports_version,
        ports,
        node.strict,
        node.flows,
        node.enforcement,  # type: ignore[arg-type]
    )
    settings = DataplaneSettings(
        VNI, node.tunnel_ports, "vxlan", (node.address,), "fabric0", node.mtu, 1, {}, "strict", 1000,  # type: ignore[arg-type]
        services=SERVICE_NETWORKS if services else (),
    )  # fmt: skip
    transmit = {4: [sock.getsockname()[1] for sock in node.transmit_sockets], 6: []}
    return LiveTables(snapshot, node.state(), node.ports, settings, node.flows, policy, transmit)  # type: ignore[arg-type]


def tell(tables: LiveTables, data: bytes, ethernet: bool = False, by: str = "") -> dict[str, Any]:
    """The story of a packet; rules stand in `policies.yaml`."""
    arrival = arrive(tables, data, ethernet, by)
    story = Story(tables, arrival, arrival.rehearse(tables), Names(PODS, PEERS), lambda rule: "policies.yaml:7")
    return story.tell()


def step(told: dict[str, Any], name: str) -> str:
    """What one step says; "" where it is not told."""
    return next((item["text"] for item in told["steps"] if item["step"] == name), "")
