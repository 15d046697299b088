"""Real packets through a real kernel: every kind of flow arrives from the same source with our rules as with flannel's.

Two nodes alike, one with the rules that flanneld makes by iptables, one with ours.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from fabric.traffic.reconcile import Reconciler
from fabric.traffic.rules import TrafficState
from tests.fabric.traffic import flannel
from tests.fabric.traffic.sites import FAR, GATEWAY, NODE, OUTSIDE, OVERLAY, PAYLOAD, PODS, SNAT, Site, site

pytestmark = pytest.mark.root

STATE = TrafficState((flannel.NET4, flannel.NET6), (flannel.POD4, flannel.POD6), ip_masq=True, forward=True)
MARKING = """
table inet marks {
    chain prerouting {
        type filter hook prerouting priority mangle;
        udp dport 4000 meta mark set 0x4000
        udp dport 4001 meta mark set 0xc001
        udp dport 4002 meta mark set 0x8000
        udp dport 4003 meta mark set 0x4000
    }
}
"""
"""What kube-proxy's chains and others do to a packet on its way in."""
SNAT_PORT = 7000
KUBE_PROXY = "-t nat -A POSTROUTING -p udp --dport 4003 -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully"
POD1, POD2 = PODS["pod1"], PODS["pod2"]
GROUPS = ("239.1.1.1", "ff05::1:3")


@dataclass(frozen=True, slots=True)
class Flow:
    """From an address of one role to an address of another; `seen` is the source that has to arrive."""

    what: str
    sender: str
    source: tuple[str, str]
    receiver: str
    destination: tuple[str, str]
    seen: tuple[str, str]
    port: int = 5000


FLOWS = [
    Flow("a pod to a pod of this node", "pod1", POD1, "pod2", POD2, POD1),
    Flow("a pod to a pod elsewhere", "pod1", POD1, "far", FAR, POD1),
    Flow("a pod elsewhere to a pod here", "far", FAR, "pod1", POD1, FAR),
    Flow("a pod to the outside", "pod1", POD1, "outside", OUTSIDE, NODE),
    Flow("a pod elsewhere to the outside", "far", FAR, "outside", OUTSIDE, NODE),
    Flow("a pod to the node", "pod1", POD1, "node", NODE, POD1),
    Flow("outside to a pod of this node", "outside", OUTSIDE, "pod1", POD1, OUTSIDE),
    Flow("outside to a pod elsewhere", "outside", OUTSIDE, "far", FAR, OVERLAY),
    Flow("the node to a pod here", "node", GATEWAY, "pod1", POD1, GATEWAY),
    Flow("the node's outer address to a pod here", "node", NODE, "pod1", POD1, NODE),
    Flow("the node to a pod elsewhere", "node", OVERLAY, "far", FAR, OVERLAY),
    Flow("the node's outer address to a pod elsewhere", "node", NODE, "far", FAR, OVERLAY),
    Flow("the node to the outside", "node", NODE, "outside", OUTSIDE, NODE),
    Flow("the node's pod address to the outside", "node", GATEWAY, "outside", OUTSIDE, NODE),
    Flow("marked by kube-proxy, to the outside", "pod1", POD1, "outside", OUTSIDE, POD1, 4000),
    Flow("marked by kube-proxy, to a pod elsewhere", "outside", OUTSIDE, "far", FAR, OUTSIDE, 4000),
    Flow("marked by kube-proxy and others", "pod1", POD1, "outside", OUTSIDE, POD1, 4001),
    Flow("marked by kube-proxy, which masquerades it", "outside", OUTSIDE, "pod1", POD1, GATEWAY, 4003),
    Flow("marked by others", "pod1", POD1, "outside", OUTSIDE, NODE, 4002),
    Flow("translated by a rule of the node's owner", "pod1", POD1, "outside", OUTSIDE, SNAT, SNAT_PORT),
    Flow("multicast from an address of a pod network", "node", GATEWAY, "outside", GROUPS, GATEWAY),
]


@pytest.fixture(scope="module")
def sites() -> Iterator[dict[str, Site]]:
    """Node "flannel" with flannel's rules, node "ours" with ours; both have a rule of their owner's.

    The owner's comes first: of two chains with one priority the kernel asks the newer one first.
    """
    with ExitStack() as stack:
        made = {name: stack.enter_context(site()) for name in ("flannel", "ours")}
        for each in made.values():
            each.command("node", "nft", "-f", "-", script=MARKING)
            for tool, address in zip(("iptables", "ip6tables"), SNAT, strict=True):
                words = f"-t nat -A POSTROUTING -p udp --dport {SNAT_PORT} -j SNAT --to-source {address}"
                each.command("node", tool, *words.split())
                each.command("node", tool, *KUBE_PROXY.split())
        flannel.install(made["flannel"].names["node"], flannel.NET4, flannel.POD4)
        flannel.install(made["flannel"].names["node"], flannel.NET6, flannel.POD6)
        result = made["ours"].call("node", lambda: Reconciler().look(STATE, 0.0, full=True))
        assert (result.problems, result.failed) == ((), False)
        yield made


def source_seen(place: Site, flow: Flow, family: int) -> str:
    """Send one datagram and its answer; the source address of the former as the receiver saw it."""
    group = flow.destination == GROUPS
    bound = ("0.0.0.0", "::")[family] if group else flow.destination[family]
    with (
        place.call(flow.receiver, lambda: _socket(bound, flow.port)) as receiver,
        place.socket(flow.sender, flow.source[family]) as sender,
    ):
        if group:
            _join(place, receiver, sender, family)
        sender.sendto(PAYLOAD, (flow.destination[family], flow.port))
        data, address = receiver.recvfrom(2048)
        assert data == PAYLOAD
        if not group:
            receiver.sendto(b"back", address)
            answer, peer = sender.recvfrom(2048)
            assert (answer, peer[0]) == (b"back", flow.destination[family])
        return str(address[0])


def _socket(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(5)
    made.bind((address, port))
    return made


def _join(place: Site, receiver: socket.socket, sender: socket.socket, family: int) -> None:
    """`receiver` joins the group on its eth0, `sender` sends to groups by the node's."""
    there, here = (place.call(role, lambda: socket.if_nametoindex("eth0")) for role in ("outside", "node"))
    group = socket.inet_pton(receiver.family, GROUPS[family])
    if family:
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + there.to_bytes(4, "little"))
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, here)
    else:
        any_address = bytes(4)
        receiver.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + any_address + there.to_bytes(4, "little")
        )
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 2 * any_address + here.to_bytes(4, "little"))


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.what)
def test_a_flow_has_the_source_that_flannel_gives_it(sites: dict[str, Site], flow: Flow, family: int) -> None:
    ours, oracle = (source_seen(sites[name], flow, family) for name in ("ours", "flannel"))

    assert ours == oracle
    assert ours == flow.seen[family]
