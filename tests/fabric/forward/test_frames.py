"""Every kind of frame crosses the fabric unchanged: node port to node port, where this node is no IP hop."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrSegmentRouting,
    PadN,
    fragment6,
)
from scapy.layers.sctp import SCTP, SCTPChunkCookieAck
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from tests.fabric.forward.conftest import Pair
from tests.fabric.forward.harness import PLAIN, Fabric, HarnessPort, Node, address4, address6, wait_for
from tests.fabric.forward.packets import superframe, wire_packets
from tests.tun.packets import ACK, CWR, DF, ECE, FIN, PSH, naive_split, superframe_header
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import UDP as UDP_NUMBER
from tun.offload import Features
from tun.port import Frame


def four(**fields: object) -> Scapy:
    return IP(src=address4(1, 5), dst=address4(2, 6), id=77, **fields)


def six(**fields: object) -> Scapy:
    return IPv6(src=address6(1, 5), dst=address6(2, 6), **fields)


PAD = PadN(optdata=b"\0" * 4)
KINDS: dict[str, Scapy] = {
    "udp4": four() / UDP(sport=1, dport=2) / Raw(b"hello"),
    "udp4-odd-length": four() / UDP(sport=1, dport=2) / Raw(b"hel"),
    "udp4-no-checksum": four() / UDP(sport=1, dport=2, chksum=0) / Raw(b"hello"),
    "udp4-empty": four() / UDP(sport=1, dport=2),
    "tcp4-syn": four(flags="DF") / TCP(sport=1, dport=2, flags="S", options=[("MSS", 1410), ("SAckOK", b"")]),
    "tcp4-data": four(flags="DF") / TCP(sport=1, dport=2, flags="PA", seq=9) / Raw(b"data" * 300),
    "tcp4-bad-checksum": four() / TCP(sport=1, dport=2, flags="A", chksum=0x1234) / Raw(b"data"),
    "icmp4": four() / ICMP(id=1, seq=2) / Raw(b"ping"),
    "sctp4": four() / SCTP(sport=1, dport=2) / SCTPChunkCookieAck(),
    "esp4": four(proto=50) / Raw(b"\x11" * 40),
    "unknown-protocol": four(proto=253) / Raw(b"anything"),
    "header-only": four(proto=253),
    "dscp": four(tos=0xB8) / UDP(sport=1, dport=2) / Raw(b"voice"),
    "options": four(options=[IPOption(b"\x94\x04\0\0"), IPOption(b"\x01")]) / UDP(sport=1, dport=2) / Raw(b"opt"),
    "first-fragment4": four(flags="MF") / UDP(sport=1, dport=2, len=3000, chksum=7) / Raw(b"f" * 1392),
    "later-fragment4": four(frag=175, proto=17) / Raw(b"f" * 700),
    "ttl1": four(ttl=1) / UDP(sport=1, dport=2) / Raw(b"last hop was the kernel's"),
    "udp6": six() / UDP(sport=1, dport=2) / Raw(b"hello"),
    "tcp6-data": six(tc=0x20, fl=0x12345) / TCP(sport=1, dport=2, flags="PA", seq=9) / Raw(b"data" * 300),
    "icmp6": six() / ICMPv6EchoRequest(id=1, seq=2, data=b"ping"),
    "hop-by-hop": six() / IPv6ExtHdrHopByHop(options=[PAD]) / UDP(sport=1, dport=2) / Raw(b"h"),
    "destination-options": six() / IPv6ExtHdrDestOpt(options=[PAD]) / TCP(sport=1, dport=2) / Raw(b"d"),
    "routing": six() / IPv6ExtHdrSegmentRouting(addresses=["2001:db8:2::6"]) / UDP(sport=1, dport=2) / Raw(b"r"),
    "chain": six()
    / IPv6ExtHdrHopByHop(options=[PAD])
    / IPv6ExtHdrDestOpt(options=[PAD])
    / IPv6ExtHdrSegmentRouting(addresses=["2001:db8:2::6"])
    / IPv6ExtHdrDestOpt(options=[PAD])
    / UDP(sport=1, dport=2)
    / Raw(b"c"),
    "atomic-fragment": six() / IPv6ExtHdrFragment(id=5) / UDP(sport=1, dport=2) / Raw(b"a"),
    "no-next-header": six(nh=59) / Raw(b"x" * 8),
}


def six_fragments(destination: str) -> list[bytes]:
    """A UDP datagram of 4,000 bytes as its sender fragments it."""
    whole = IPv6(src=address6(1, 5), dst=destination) / IPv6ExtHdrFragment(id=9) / UDP(sport=1, dport=2)
    return [bytes(part) for part in fragment6(whole / Raw(b"z" * 4000), 1280)]


@pytest.mark.parametrize("frame", [bytes(kind) for kind in KINDS.values()], ids=list(KINDS))
def test_frame_crosses_unchanged(pair: Pair, frame: bytes) -> None:
    pair.a.host.peer.inject(frame)
    assert pair.b.host.take() == (PLAIN, frame)
    assert pair.a.drops() == pair.b.drops() == {}


def test_trailing_bytes_are_cut(pair: Pair) -> None:
    frame = bytes(KINDS["udp4"])
    pair.a.host.peer.inject(frame + b"trailer")
    assert pair.b.host.take() == (PLAIN, frame)


def test_ipv6_fragments_cross(pair: Pair) -> None:
    fragments = six_fragments(address6(2, 6))
    assert len(fragments) > 3
    for frame in fragments:
        pair.a.host.peer.inject(frame)
    assert [pair.b.host.take() for _ in fragments] == [(PLAIN, frame) for frame in fragments]


def test_all_kinds_together_lose_nothing(pair: Pair) -> None:
    frames = [bytes(kind) for kind in KINDS.values()]
    for frame in frames * 4:
        pair.a.host.peer.inject(frame)
    got = collect(pair.b.host, len(frames) * 4)
    assert sorted(got) == sorted(frames * 4)


def collect(port: HarnessPort, count: int) -> list[bytes]:
    """Wire packets until there are `count` of them."""
    frames: list[Frame] = []
    while len(wire_packets(frames)) < count:
        frames.append(port.take())
    return wire_packets(frames)


SUPERFRAMES = [
    pytest.param(family, protocol, size, gso, more, id=f"{'udp' if protocol == 17 else 'tcp'}{family}-{size}-{gso}-{i}")
    for i, (protocol, size, gso, more) in enumerate(
        [
            (TCP_NUMBER, 14000, 1370, {}),
            (TCP_NUMBER, 64000, 1378, {"flags": ACK | PSH}),
            (TCP_NUMBER, 1391, 1390, {"options": b""}),
            (TCP_NUMBER, 9000, 1378, {"flags": ACK | FIN | PSH, "tos": 2}),
            (TCP_NUMBER, 9000, 1378, {"flags": ACK | CWR | ECE, "tos": 2}),
            (TCP_NUMBER, 30000, 536, {"seq": 2**32 - 5000}),
            (UDP_NUMBER, 14000, 1370, {}),
            (UDP_NUMBER, 6400, 100, {}),
            (UDP_NUMBER, 1001, 1000, {"tos": 0xB9}),
        ]
    )
    for family in (4, 6)
]


@pytest.mark.parametrize(("family", "protocol", "size", "gso", "more"), SUPERFRAMES)
def test_superframe_is_cut_as_the_kernel_would(
    pair: Pair, family: int, protocol: int, size: int, gso: int, more: dict[str, object]
) -> None:
    packet = superframe(family, protocol, size, (1, 5), (2, 6), **more)
    expected = naive_split(packet, gso)
    pair.a.host.peer.inject(packet.build(), superframe_header(packet, gso))
    assert collect(pair.b.host, len(expected)) == expected
    assert pair.a.drops() == pair.b.drops() == {}
    assert pair.a.count("egress_packets") == pair.b.count("ingress_packets") == len(expected)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", [TCP_NUMBER, UDP_NUMBER])
def test_superframe_is_merged_back_to_the_same_bytes(pair: Pair, family: int, protocol: int) -> None:
    packet = superframe(family, protocol, 13700, (1, 5), (2, 6), fragment=DF)
    header = superframe_header(packet, 1370)
    pair.a.host.peer.inject(packet.build(), header)
    assert pair.b.host.take() == (header, packet.build())
    assert pair.a.count("egress_superframes") == 1


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", [TCP_NUMBER, UDP_NUMBER])
def test_partial_checksum_of_a_single_packet_is_finished(pair: Pair, family: int, protocol: int) -> None:
    packet = superframe(family, protocol, 333, (1, 5), (2, 6))
    header = superframe_header(packet, 0)._replace(gso_type=0)
    pair.a.host.peer.inject(packet.build(), header)
    assert pair.b.host.take() == (PLAIN, naive_split(packet, 2000)[0])


@pytest.mark.parametrize("options", [{"segmentation": False}, {"gro": False}, {"source_ports": 1}], ids=str)
def test_offloads_off_change_nothing_but_speed(fabric: Fabric, options: dict[str, object]) -> None:
    a, b = fabric.add_node(1, **options), fabric.add_node(2, **options)
    fabric.publish()
    packet = superframe(4, TCP_NUMBER, 41100, (1, 5), (2, 6))
    a.host.peer.inject(packet.build(), superframe_header(packet, 1370))
    assert collect(b.host, 30) == naive_split(packet, 1370)
    assert a.count("send_datagrams") == 30
    assert (a.count("send_messages") == 30) == (options.get("segmentation") is False)


def test_port_without_offloads_gets_single_packets(fabric: Fabric) -> None:
    a, b = fabric.add_node(1), fabric.add_node(2, features=Features.NONE)
    fabric.publish()
    packet = superframe(6, TCP_NUMBER, 13700, (1, 5), (2, 6))
    a.host.peer.inject(packet.build(), superframe_header(packet, 1370))
    assert [b.host.take() for _ in range(10)] == [(PLAIN, part) for part in naive_split(packet, 1370)]


def test_interleaved_flows_keep_their_order(pair: Pair) -> None:
    flows = [superframe(4, TCP_NUMBER, 27400, (1, 5), (2, 6), sport=1000 + i) for i in range(8)]
    singles = [naive_split(flow, 1370) for flow in flows]
    for round_ in zip(*singles, strict=True):
        for part in round_:
            pair.a.host.peer.inject(part)
    got = collect(pair.b.host, 8 * 20)
    for flow, parts in zip(flows, singles, strict=True):
        assert [part for part in got if part[20:22] == flow.sport.to_bytes(2, "big")] == parts


def test_small_frames_of_one_drain_leave_as_a_train(pair: Pair) -> None:
    """Equal sizes to one VTEP share a send: 32 frames take far fewer messages."""
    before = pair.a.count("send_messages")
    frame = bytes(KINDS["udp4"])
    for _ in range(320):
        pair.a.host.peer.inject(frame)
    collect(pair.b.host, 320)
    assert wait_for(lambda: pair.a.count("send_datagrams") == 320)
    assert pair.a.count("send_messages") - before <= 320


def superframe_from_kernel(pair: Pair, family: int, protocol: int, size: int) -> tuple[bytes, int]:
    packet = superframe(family, protocol, size, (3, 5), (2, 6))
    pair.raw.send_inner(pair.b, packet.build())
    return packet.build(), packet.header_length


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", [2000, 20000, 64000])
def test_kernel_peer_superframe_in_one_datagram_is_written_whole(pair: Pair, family: int, size: int) -> None:
    """A kernel VXLAN device behind a veth hands over inner superframes unsegmented with partial checksums."""
    frame, header_length = superframe_from_kernel(pair, family, TCP_NUMBER, size)
    header, got = pair.b.host.take()
    assert got == frame
    assert header.gso_type == (1 if family == 4 else 4)
    assert header.gso_size == pair.b.mtu - header_length
    assert header.hdr_len == header_length


def test_kernel_peer_partial_checksum_of_one_packet_is_left_to_the_kernel(pair: Pair) -> None:
    packet = superframe(4, UDP_NUMBER, 500, (3, 5), (2, 6))
    pair.raw.send_inner(pair.b, packet.build())
    header, got = pair.b.host.take()
    assert got == packet.build()
    assert (header.flags, header.csum_start, header.csum_offset) == (1, 20, 6)


def test_node_without_peers_still_answers(fabric: Fabric) -> None:
    node: Node = fabric.add_node(1)
    fabric.publish()
    node.host.peer.inject(bytes(KINDS["udp4"]))
    node.wait_drop("no_route")
