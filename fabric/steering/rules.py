"""What the kernel should have, from what is known: pure."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from fabric.model import Network
from routes.rules import Rule, TableRoute

BEFORE_MAIN = 1120
"""Priority of the first of our six rules; the local table is at 0, main at 32766."""
MARK, HOST_MARK = 0x1000, 0x800
"""Bits of the packet mark: of what comes from a pod, and of what the host forwards to one. kube-proxy has 0x4000 and
0x8000, the portmap plugin 0x2000."""
TO_BRIDGE_PORT, TO_NODE_PORT, MAIN = 11201, 11202, 254
"""Routing tables: two of our own."""
TABLES = (TO_BRIDGE_PORT, TO_NODE_PORT)
ANYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Steering:
    """`subnets` are this node's, one of each family at most; the ports are named by their devices."""

    subnets: tuple[Network, ...]
    node_port: str
    bridge_port: str


def rules(wanted: Steering | None) -> Iterator[Rule]:
    """Those of each family that has a subnet. A lookup that finds nothing goes on to the next rule.

    What carries no mark goes on to the main table: what the host sends itself, and the questions of the reverse path
    filter, which asks for the way back of a packet as if that came in where the packet goes out, and without its mark
    (__mkroute_input in net/ipv4/route.c).
    """
    if wanted is None:
        return
    for subnet in wanted.subnets:
        family, port = FAMILY[subnet.version], wanted.bridge_port
        yield Rule(family, BEFORE_MAIN, MAIN, to=subnet, interface=port)
        yield Rule(family, BEFORE_MAIN + 1, 0, interface=port)
        yield Rule(family, BEFORE_MAIN + 2, TO_BRIDGE_PORT, mark=MARK)
        yield Rule(family, BEFORE_MAIN + 3, 0, mark=MARK)
        yield Rule(family, BEFORE_MAIN + 4, TO_NODE_PORT, to=subnet, mark=HOST_MARK)
        yield Rule(family, BEFORE_MAIN + 5, 0, to=subnet, mark=HOST_MARK)


def table_routes(wanted: Steering | None) -> Iterator[TableRoute]:
    """What the two tables hold."""
    for subnet in wanted.subnets if wanted else ():
        assert wanted is not None
        yield TableRoute(TO_BRIDGE_PORT, ANYWHERE[subnet.version], wanted.bridge_port)
        yield TableRoute(TO_NODE_PORT, subnet, wanted.node_port)
