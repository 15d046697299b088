"""TAP ports: Ethernet towards the pod, one neighbour that answers for everybody, and IP as on any other port."""

from __future__ import annotations

import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet as Scapy

from tests.fabric.forward.conftest import Pair
from tests.fabric.forward.harness import Fabric, Node, address4, address6
from tests.fabric.forward.packets import make, superframe, udp4
from tests.tun.conftest import Namespace
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import UDP as UDP_NUMBER
from tests.tun.packets import Packet, naive_split, superframe_header
from tun.device import Device, Kind, create_in_netns
from tun.offload import Features
from tun.port import Frame
from tun.split import split
from tun.vnet import VNET_NEEDS_CSUM, VnetHeader

POD_MAC, GATEWAY = "02:00:00:00:aa:01", "02:00:00:00:aa:ff"
BROADCAST = "ff:ff:ff:ff:ff:ff"
TAP, TUN, REMOTE = (1, 20), (1, 10), (2, 10)
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def raw_mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


class TapPort:
    """A TAP in memory, as a snapshot reads it: what the pod sends is injected, what it gets is taken."""

    name = "tap"
    mtu = 1450
    workers = 1
    bridged = False
    slot = 0
    ethernet = (raw_mac(POD_MAC), raw_mac(GATEWAY))
    addresses = (ip_address(address4(*TAP)), ip_address(address6(*TAP)))

    def __init__(self, features: Features = Features.ALL) -> None:
        self.features = features
        kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        self.pod, self.worker = socket.socketpair(socket.AF_UNIX, kind)
        self.worker.setblocking(False)
        self.fds = (self.worker.fileno(),)

    def inject(self, frame: bytes, header: VnetHeader | None = None) -> None:
        self.pod.send((header or VnetHeader()).emit() + frame)

    def take(self) -> Frame:
        self.pod.settimeout(10)
        data = self.pod.recv(70_000)
        return VnetHeader.parse(data), data[10:]

    def is_empty(self) -> bool:
        return not select.select([self.pod], [], [], 0)[0]

    def close(self) -> None:
        self.pod.close()
        self.worker.close()


@pytest.fixture
def tap(pair: Pair) -> TapPort:
    """One more pod of node 1, on a TAP."""
    return add_tap(pair.a)


def add_tap(node: Node, features: Features = Features.ALL) -> TapPort:
    port = TapPort(features)
    node.ports.append(port)  # type: ignore[arg-type]
    node.ports_version += 1
    node.publish()
    return port


def framed(packet: bytes | Scapy, source: str = POD_MAC, target: str = GATEWAY, kind: int | None = None) -> bytes:
    data = bytes(packet)
    return bytes(Ether(src=source, dst=target, type=kind or (0x86DD if data[0] >> 4 == 6 else 0x0800))) + data


def unframed(frame: Frame) -> tuple[VnetHeader, bytes]:
    """What an Ethernet frame to the pod carries, with offsets counted from there."""
    header, data = frame
    assert data[:12] == raw_mac(POD_MAC) + raw_mac(GATEWAY)
    assert data[12:14] == (b"\x86\xdd" if data[14] >> 4 == 6 else b"\x08\0")
    if header.flags & VNET_NEEDS_CSUM:
        shifted = header.csum_start - 14, header.hdr_len - 14
        header = VnetHeader(header.flags, header.gso_type, shifted[1], header.gso_size, shifted[0], header.csum_offset)
    return header, data[14:]


def without_ttl(packet: bytes) -> bytes:
    """IPv4 without TTL and header checksum, IPv6 without hop limit."""
    return packet[:7] + packet[8:] if packet[0] >> 4 == 6 else packet[:8] + packet[9:10] + packet[12:]


@FAMILIES
@pytest.mark.parametrize("other", [TUN, REMOTE], ids=["local", "remote"])
def test_packets_come_and_go_in_frames(pair: Pair, tap: TapPort, other: tuple[int, int], family: int) -> None:
    port = pair.pod_a if other == TUN else pair.pod_b
    there, back = make(family, TAP, other), make(family, other, TAP)
    tap.inject(framed(there))
    assert without_ttl(port.take()[1]) == without_ttl(there)
    port.peer.inject(back)
    assert without_ttl(unframed(tap.take())[1]) == without_ttl(back)
    assert pair.a.drops() == {}


def test_the_way_outside_and_back_is_the_node_port(pair: Pair, tap: TapPort) -> None:
    there = udp4(address4(*TAP), "203.0.113.9")
    tap.inject(framed(there))
    assert pair.a.host.take()[1] == there
    back = udp4("203.0.113.9", address4(*TAP))
    pair.a.host.peer.inject(back)
    assert unframed(tap.take())[1] == back


@pytest.mark.parametrize("target", [address4(1, 1), address4(1, 99), "169.254.1.1", "203.0.113.1"])
def test_arp_is_answered_for_everybody_else(pair: Pair, tap: TapPort, target: str) -> None:
    ask = ARP(op=1, hwsrc=POD_MAC, psrc=address4(*TAP), pdst=target)
    for to in (BROADCAST, GATEWAY):
        tap.inject(framed(ask, target=to, kind=0x0806))
        _, data = tap.take()
        answer = Ether(data)
        assert (answer.dst, answer.src, len(data)) == (POD_MAC, GATEWAY, 42)
        said = answer[ARP]
        assert (said.op, said.hwsrc, said.psrc) == (2, GATEWAY, target)
        assert (said.hwdst, said.pdst) == (POD_MAC, address4(*TAP))
    assert pair.a.count("egress_neighbours") == 2
    assert pair.a.drops() == {}


@pytest.mark.parametrize("target", ["fe80::1", address6(1, 1), address6(2, 7)])
@pytest.mark.parametrize("source", [address6(*TAP), "fe80::aa"])
def test_neighbour_solicitations_are_answered(pair: Pair, tap: TapPort, target: str, source: str) -> None:
    for to in ("33:33:ff:00:00:01", GATEWAY):
        tap.inject(framed(IPv6(src=source, dst=target, hlim=255) / ICMPv6ND_NS(tgt=target), target=to))
        _, data = tap.take()
        answer = Ether(data)
        assert (answer.dst, answer.src, answer[IPv6].hlim) == (POD_MAC, GATEWAY, 255)
        assert (answer[IPv6].src, answer[IPv6].dst) == (target, source)
        said = answer[ICMPv6ND_NA]
        assert (said.R, said.S, said.O, said.tgt) == (1, 1, 1, target)
        assert said[ICMPv6NDOptDstLLAddr].lladdr == GATEWAY
        right = said.cksum
        rebuilt = IPv6(data[14:])
        del rebuilt[ICMPv6ND_NA].cksum
        assert IPv6(bytes(rebuilt))[ICMPv6ND_NA].cksum == right
    assert pair.a.drops() == {}


def ns(target: str, source: str = address6(*TAP), **fields: object) -> Scapy:
    return IPv6(**{"src": source, "dst": "ff02::1:ff00:1", "hlim": 255, **fields}) / ICMPv6ND_NS(tgt=target)


OWN4, OWN6 = address4(*TAP), address6(*TAP)
UDP = udp4(OWN4, address4(*TUN))
REFUSED = {
    "from another MAC": framed(UDP, source="02:00:00:00:aa:02"),
    "to another MAC": framed(UDP, target="02:00:00:00:aa:02"),
    "to all": framed(UDP, target=BROADCAST),
    "IPv4 called IPv6": framed(UDP, kind=0x86DD),
    "IPv6 called IPv4": framed(make(6, TAP, TUN), kind=0x0800),
    "VLAN": bytes(Ether(src=POD_MAC, dst=GATEWAY) / Dot1Q(vlan=1)) + UDP,
    "LLDP": framed(bytes(60), kind=0x88CC),
    "short": framed(UDP)[:33],
    "ARP for itself": framed(ARP(op=1, hwsrc=POD_MAC, psrc=OWN4, pdst=OWN4), target=BROADCAST, kind=0x0806),
    "ARP probe": framed(ARP(op=1, hwsrc=POD_MAC, psrc="0.0.0.0", pdst=OWN4), target=BROADCAST, kind=0x0806),
    "ARP in another's name": framed(
        ARP(op=1, hwsrc=POD_MAC, psrc=address4(*TUN), pdst=address4(1, 1)), target=BROADCAST, kind=0x0806
    ),
    "ARP with another MAC": framed(
        ARP(op=1, hwsrc=GATEWAY, psrc=OWN4, pdst=address4(1, 1)), target=BROADCAST, kind=0x0806
    ),
    "ARP reply": framed(ARP(op=2, hwsrc=POD_MAC, psrc=OWN4, pdst=address4(1, 1)), kind=0x0806),
    "ARP cut short": framed(ARP(op=1, hwsrc=POD_MAC, psrc=OWN4, pdst=address4(1, 1)), kind=0x0806)[:41],
    "duplicate address detection": framed(ns(OWN6, "::"), target="33:33:ff:00:00:14"),
    "NS in another's name": framed(ns(address6(1, 1), address6(*TUN)), target="33:33:ff:00:00:01"),
    "NS from afar": framed(ns(address6(1, 1), hlim=254), target="33:33:ff:00:00:01"),
    "NS with a wrong checksum": framed(
        IPv6(src=OWN6, dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt="fe80::1", cksum=1), target="33:33:ff:00:00:01"
    ),
    "NS for a group": framed(ns("ff02::1"), target="33:33:ff:00:00:01"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_counted_and_gone(pair: Pair, tap: TapPort, case: str) -> None:
    tap.inject(REFUSED[case])
    pair.a.wait_drop("port_ethernet")
    assert tap.is_empty()
    assert [port.name for port in (pair.pod_a, pair.a.host) if port.take_all()] == []
    assert pair.a.count("egress_neighbours") == 0


def test_a_spoofed_address_in_a_right_frame_is_refused_too(pair: Pair, tap: TapPort) -> None:
    tap.inject(framed(udp4(address4(*TUN), address4(*REMOTE))))
    pair.a.wait_drop("source_spoofed")


def big(family: int, protocol: int, source: tuple[int, int], to: tuple[int, int]) -> Packet:
    return superframe(family, protocol, 20_000, source, to)


@FAMILIES
@pytest.mark.parametrize("protocol", [TCP_NUMBER, UDP_NUMBER], ids=["tcp", "udp"])
def test_superframes_leave_a_tap(pair: Pair, tap: TapPort, protocol: int, family: int) -> None:
    """Whole to another port of the node, cut to a peer; offsets count from the Ethernet header on this side."""
    for other, port in ((TUN, pair.pod_a), (REMOTE, pair.pod_b)):
        packet = big(family, protocol, TAP, other)
        header = superframe_header(packet, 1300)
        shifted = VnetHeader(
            header.flags, header.gso_type, header.hdr_len + 14, 1300, header.csum_start + 14, header.csum_offset
        )
        tap.inject(framed(packet.build()), shifted)
        found: list[bytes] = []
        wanted = naive_split(packet, 1300)
        while len(found) < len(wanted):
            got, frame = port.take()
            found += split(frame, got) if got.gso_type else [frame]
        assert [without_ttl(cut) for cut in found] == [without_ttl(cut) for cut in wanted]


@FAMILIES
@pytest.mark.parametrize("features", [Features.ALL, Features.NONE], ids=["whole", "cut"])
def test_superframes_reach_a_tap(pair: Pair, features: Features, family: int) -> None:
    tap = add_tap(pair.a, features)
    packet = big(family, TCP_NUMBER, TUN, TAP)
    pair.pod_a.peer.inject(packet.build(), superframe_header(packet, 1300))
    wanted, found = naive_split(packet, 1300), []
    while len(found) < len(wanted):
        header, frame = unframed(tap.take())
        found += split(frame, header) if header.gso_type else [frame]
        assert bool(header.gso_type) == bool(features)
    assert [without_ttl(cut) for cut in found] == [without_ttl(cut) for cut in wanted]


@pytest.mark.parametrize("features", [Features.ALL, Features.NONE], ids=["whole", "cut"])
def test_what_a_kernel_peer_left_unfinished_is_finished_or_said(pair: Pair, features: Features) -> None:
    """From the underlay: a packet with a partial checksum, and a superframe in one datagram."""
    tap = add_tap(pair.a, features)
    for size in (600, 20_000):
        packet = superframe(4, TCP_NUMBER, size, (3, 10), TAP)
        pair.raw.send_inner(pair.a, packet.build())
        left = size
        while left:
            header, frame = unframed(tap.take())
            assert bool(header.flags) == bool(features)
            for cut in split(frame, header) if header.gso_type else [frame]:
                parsed = IP(cut)
                assert len(cut) <= 1450
                left -= len(parsed[TCP].payload)
                if not header.flags or header.gso_type:
                    right = parsed[TCP].chksum
                    del parsed[TCP].chksum
                    assert IP(bytes(parsed))[TCP].chksum == right
    assert pair.a.drops() == {}


def test_errors_come_in_frames(pair: Pair, tap: TapPort) -> None:
    tap.inject(framed(udp4(address4(*TAP), address4(*TUN), ttl=1)))
    header, packet = unframed(tap.take())
    assert header == VnetHeader()
    assert IP(packet)[ICMP].type == 11
    pair.a.wait_drop("ttl_expired")


@dataclass
class RealPort:
    """A device in a pod's namespace, as a snapshot reads it."""

    name: str
    device: Device
    addresses: tuple[object, ...]
    ethernet: tuple[bytes, bytes] | None = None
    mtu: int = 1450
    workers: int = 1
    bridged: bool = False
    slot: int = 0

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(self.device.fds)

    @property
    def features(self) -> int:
        return int(self.device.features)

    def close(self) -> None:
        self.device.close()


@pytest.fixture
def pods() -> Iterator[tuple[Namespace, Namespace]]:
    made = (Namespace(), Namespace())
    for namespace in made:
        for scope in ("all", "default"):
            namespace.command("sh", "-c", f"echo 0 > /proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
    yield made
    for namespace in made:
        namespace.delete()


@pytest.mark.root
def test_a_real_tap_and_a_real_tun_talk(fabric: Fabric, pods: tuple[Namespace, Namespace]) -> None:
    """The TAP pod has its whole subnet on the link: its kernel asks for the other pod's MAC. TCP with all offloads."""
    node = fabric.add_node(1)
    for number, (namespace, host) in enumerate(zip(pods, (20, 10), strict=True)):
        kind = Kind.TUN if number else Kind.TAP
        device = create_in_netns(namespace.path, "eth0", kind, mtu=1450)
        ends = (address4(1, host), address6(1, host))
        macs = None if number else (raw_mac(POD_MAC), raw_mac(GATEWAY))
        node.ports.append(RealPort(f"pod{number}", device, tuple(map(ip_address, ends)), macs))  # type: ignore[arg-type]
        node.ports_version += 1
        link = "" if number else f"address {POD_MAC}"
        for words in (
            f"link set eth0 {link} up", f"addr add {ends[0]}/24 dev eth0", f"addr add {ends[1]}/64 dev eth0 nodad",
        ):  # fmt: skip
            subprocess.run(["ip", "-n", namespace.name, *words.split()], check=True)
    fabric.publish()
    for family, target in ((socket.AF_INET, address4(1, 10)), (socket.AF_INET6, address6(1, 10))):
        exchange(pods, family, target)
    for version in ("-4", "-6"):
        shown = pods[0].command("ip", version, "neigh", "show", "dev", "eth0")
        assert GATEWAY in shown, shown
    assert node.count("egress_neighbours") >= 2
    assert set(node.drops()) <= {"port_ethernet", "not_unicast", "source_spoofed"}, "what kernels send unasked"


def exchange(pods: tuple[Namespace, Namespace], family: int, target: str) -> None:
    """A megabyte each way."""
    data = bytes(range(256)) * 4096
    server = pods[1].run(lambda: socket.socket(family, socket.SOCK_STREAM))
    client = pods[0].run(lambda: socket.socket(family, socket.SOCK_STREAM))
    with server, client:
        server.bind((target, 0))
        server.listen(1)
        client.settimeout(10)
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            for one, other in ((client, accepted), (accepted, client)):
                sender = threading.Thread(target=one.sendall, args=(data,))
                sender.start()
                got = bytearray()
                other.settimeout(10)
                while len(got) < len(data):
                    got += other.recv(1 << 20)
                sender.join(10)
                assert bytes(got) == data
