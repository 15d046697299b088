"""Well-formed inputs to start mutations from: inner packets of every kind, VXLAN payloads, frames with their header."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.sctp import SCTP
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from encap.vxlan import encapsulate
from fabric.forward.enforcement import Enforcement, RuleHits
from fabric.forward.flows import FlowTable
from fabric.forward.snapshot import Snapshot
from fabric.model import Address, ForwardingState, LocalVtep, Peer
from fabric.policy import Namespace, Pod, compile_policies
from tests.tun.packets import ACK, PSH, Packet, superframe_header
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import UDP as UDP_NUMBER
from tun.offload import Features
from tun.vnet import VnetHeader

OWN_MAC, PEER_MAC = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x03"
OWN, PEER = ip_address("127.0.0.2"), ip_address("127.0.0.3")


class NullPort:
    """What a snapshot needs of a port; everything written disappears."""

    workers = 1
    features = Features.ALL
    name = "null"
    ethernet = None
    bridged = False
    slot = 0

    def __init__(self, fd: int, mtu: int = 1450, addresses: tuple[str, ...] = ()) -> None:
        self.fds = (fd,)
        self.mtu = mtu
        self.addresses = tuple(ip_address(address) for address in addresses)


def make_snapshot(
    encapsulation: str = "vxlan", *, port: int = 8472, strict: bool = True, by_host: bool = False, policed: bool = False
) -> Snapshot:
    """Node 2 with one pod, 10.244.2.10, and one peer, node 3 at 127.0.0.3, towards which only 1400 bytes fit.

    With `by_host` the host has a plain route to the peer, whose lease names no MAC: it is only accepted from. With
    `policed` only port 5000 of UDP passes from and to the pod.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    ports = [NullPort(null), NullPort(null, 1300, ("10.244.2.10", "2001:db8:2::a"))]
    own = LocalVtep(OWN, OWN_MAC, (ip_network("10.244.2.0/24"), ip_network("2001:db8:2::/64")))
    prefixes = (ip_network("10.244.3.0/24"), ip_network("2001:db8:3::/64"))
    accepts, sent, mac = frozenset({encapsulation}), encapsulation, PEER_MAC
    if by_host:
        sent, mac = None, bytes(6)  # type: ignore[assignment]
    peer = Peer("peer", PEER, prefixes, sent, mac, 1400, accepts, by_host)  # type: ignore[arg-type]
    state, tunnel_ports = ForwardingState(1, (own,), (peer,)), {"vxlan": port, "udp": port}
    rules = _enforcement(ports[1].addresses) if policed else None
    return Snapshot(1, state, ports, 1, tunnel_ports, strict, FlowTable(4096), rules)  # type: ignore[arg-type]


def _enforcement(addresses: tuple[Address, ...]) -> Enforcement:
    traffic = [{"ports": [{"protocol": "UDP", "port": 5000}]}]
    policy = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "n"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": traffic, "egress": traffic},
    }  # fmt: skip
    pod = Pod("n", "pod", {}, addresses, "own")
    snapshot, hits = compile_policies([policy], [pod], [Namespace("n")], []), RuleHits()
    hits.reserve(snapshot.names.next)
    return Enforcement(1, snapshot, False, (), hits)


def _pad(size: int = 4) -> list[PadN]:
    return [PadN(optdata=b"\0" * size)]


def _upper(six: bool) -> list[Scapy]:
    data = Raw(bytes(range(64)))
    upper = [
        UDP(sport=4000, dport=5000) / data,
        UDP(sport=4000, dport=8472) / data,
        TCP(sport=4000, dport=80, flags="PA", seq=7, options=[("Timestamp", (1, 2))]) / data,
        TCP(sport=4000, dport=80, flags="S", options=[("MSS", 1400)]),
        SCTP(sport=1, dport=2) / data,
    ]
    return upper if six else [*upper, ICMP() / data, ICMP(type=3, code=4) / data]


def inner_packets(source: int, destination: int, host: int) -> list[bytes]:
    """IPv4 and IPv6 packets from a pod of one node to `host` of another."""
    four = {"src": f"10.244.{source}.10", "dst": f"10.244.{destination}.{host}"}
    six = {"src": f"2001:db8:{source}::a", "dst": f"2001:db8:{destination}::{host:x}"}
    packets: list[Scapy] = []
    for upper in _upper(False):
        packets.append(IP(**four, id=9) / upper)
        packets.append(IP(**four, flags="DF", tos=2) / upper)
        packets.append(IP(**four, options=[IPOption(b"\x94\x04\0\0")]) / upper)
        packets.append(IP(**four, flags="MF") / upper)
    packets += [
        IP(**four, frag=3, proto=17) / Raw(b"f" * 64),
        IP(**four, frag=1, proto=6) / Raw(b"f" * 64),
        IP(**four, ttl=1) / UDP() / Raw(b"x"),
        IP(**four, proto=50) / Raw(b"e" * 40),
        IP(**four) / UDP(chksum=0) / Raw(b"none"),
        IP(**four) / UDP() / Raw(b"big" * 600),
        IP(**four, flags="DF") / UDP() / Raw(b"big" * 600),
    ]
    for upper in _upper(True):
        packets.append(IPv6(**six, tc=1) / upper)
        packets.append(IPv6(**six) / IPv6ExtHdrHopByHop(options=_pad()) / upper)
        packets.append(IPv6(**six) / IPv6ExtHdrDestOpt(options=_pad(12)) / upper)
        packets.append(IPv6(**six) / IPv6ExtHdrFragment(id=1, m=1) / upper)
        packets.append(
            IPv6(**six)
            / IPv6ExtHdrHopByHop(options=_pad())
            / IPv6ExtHdrDestOpt(options=_pad())
            / IPv6ExtHdrRouting(type=4, segleft=0)
            / IPv6ExtHdrFragment(id=1)
            / AH(nh=60, payloadlen=4, spi=1, icv=b"\0" * 12)
            / IPv6ExtHdrDestOpt(options=_pad())
            / upper
        )
    packets += [
        IPv6(**six) / IPv6ExtHdrRouting(type=0) / UDP(),
        IPv6(**six) / IPv6ExtHdrFragment(offset=4, nh=17) / Raw(b"f" * 40),
        IPv6(**six, hlim=1) / UDP() / Raw(b"x"),
        IPv6(**six, nh=58) / Raw(b"\x80\0\0\0\0\1\0\1echo"),
        IPv6(**six, nh=58) / Raw(b"\x01\0\0\0\0\1\0\1error"),
        IPv6(**six) / UDP() / Raw(b"big" * 600),
    ]
    return [bytes(packet) for packet in packets] + [p.build() for p in _superframes(source, destination, host)]


def _superframes(source: int, destination: int, host: int) -> list[Packet]:
    ends = {
        4: {"source": f"10.244.{source}.10", "destination": f"10.244.{destination}.{host}"},
        6: {"source": f"2001:db8:{source}::a", "destination": f"2001:db8:{destination}::{host:x}"},
    }
    return [
        Packet(family, protocol, bytes(size), check="partial", flags=flags, **ends[family])
        for family in (4, 6)
        for protocol in (TCP_NUMBER, UDP_NUMBER)
        for size, flags in ((100, ACK), (3000, ACK | PSH), (9000, ACK))
    ]


def vxlan_payloads() -> list[bytes]:
    """UDP payloads node 2 may get from node 3, and some from elsewhere."""
    inside = inner_packets(3, 2, 6) + inner_packets(3, 2, 10) + inner_packets(3, 1, 6)[:4] + inner_packets(4, 2, 6)[:4]
    good = [encapsulate(packet, vni=1, destination=OWN_MAC, source=PEER_MAC) for packet in inside]
    return [*good, b"", good[0][:22], b"\x0c" + good[0][1:], good[0][:20] + b"\x08\x06" + good[0][22:]]


def port_frames(tunnel_port: int) -> list[bytes]:
    """Frames of node 2's pod for node 3, its own node, the host and nowhere, each behind its virtio-net header."""
    plain = VnetHeader().emit()
    frames = [plain + packet for packet in inner_packets(2, 3, 6) + inner_packets(2, 2, 6)[:8]]
    frames += [plain + packet for packet in inner_packets(2, 200, 6)[:4]]
    to_node = IP(src="10.244.2.10", dst=str(PEER)) / UDP(sport=4000, dport=tunnel_port) / Raw(b"tunnel in a tunnel")
    frames += [plain + bytes(to_node)] * 4
    for packet in [*_superframes(2, 3, 6), *_superframes(2, 2, 77)]:
        if len(packet.payload) > 100:
            frames += [superframe_header(packet, size).emit() + packet.build() for size in (1300, 200, 1390)]
        single = superframe_header(packet, 0)._replace(gso_type=0)
        frames.append(single.emit() + packet.build())
    return frames
