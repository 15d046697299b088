"""The engine under test as the tables see it; the only file here that touches `fabric.policy`."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from fabric.policy import Namespace, Pod, compile_policies
from tests.policy_truth.oracle import End
from tests.policy_truth.runner import World

Ask = Callable[[End, End, str, int], bool]


def pods_of(ends: dict[str, End]) -> list[Pod]:
    return [
        Pod(end.namespace, key.partition("/")[2], end.labels, (ip_address(end.address),), ports=end.ports)
        for key, end in ends.items()
    ]


def ask(world: World) -> Ask:
    """A judge of one moment of `world`, asked by address alone, as the data path asks."""
    spaces = [Namespace(name, labels) for name, labels in world.namespaces.items()]
    snapshot = compile_policies(world.policies.values(), pods_of(world.ends()), spaces, [])
    return lambda source, destination, protocol, port: snapshot.allowed(
        source.address, destination.address, protocol, port
    )
