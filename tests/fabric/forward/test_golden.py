"""Golden bytes: every kind of packet a worker emits, decoded by scapy and by tshark, which we did not write."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Scapy
from scapy.packet import Raw
from scapy.utils import wrpcap

from tests.fabric.forward.harness import Fabric, Node, RawPeer, address4, address6, node_mac
from tests.fabric.forward.packets import inner, superframe, udp4, udp6
from tests.fabric.forward.test_frames import KINDS, six_fragments
from tests.tun.packets import ACK, CWR, FIN, PSH, naive_split, superframe_header
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import UDP as UDP_NUMBER

SENT_WRONG = {"tcp4-bad-checksum", "first-fragment4", "udp4-no-checksum"}


class Emitted(NamedTuple):
    """One UDP payload that left node 1 for raw peer 3, and the inner packet it has to hold (None: made by us)."""

    kind: str
    payload: bytes
    source_port: int
    tos: int
    packet: bytes | None


def to_raw(packet: Scapy) -> bytes:
    """A packet for node 2 of the table of frames, addressed to node 3 and with checksums of its own."""
    copy = packet.copy()
    copy.dst = address4(3, 6) if copy.version == 4 else address6(3, 6)
    if IPv6ExtHdrSegmentRouting in copy:
        # The last destination, of which the checksum is made, stands here (RFC 8754).
        copy[IPv6ExtHdrSegmentRouting].addresses = [copy.dst]
    return bytes(copy)


def take(raw: RawPeer, kind: str, expected: list[bytes | None]) -> Iterator[Emitted]:
    for packet in expected:
        payload, (_, port), tos = raw.receive_from()
        yield Emitted(kind, payload, port, tos, packet)


def emit_all(node: Node, raw: RawPeer) -> Iterator[Emitted]:
    """Everything a worker can send, by making it do so."""
    for name, packet in KINDS.items():
        if name not in SENT_WRONG:
            frame = to_raw(packet)
            node.host.peer.inject(frame)
            yield from take(raw, name, [frame])
    for frame in six_fragments(address6(3, 6)):
        node.host.peer.inject(frame)
        yield from take(raw, "fragment6", [frame])
    for family in (4, 6):
        for protocol, size, gso, more in (
            (TCP_NUMBER, 13700, 1370, {"flags": ACK | PSH | FIN}),
            (TCP_NUMBER, 5000, 1378, {"flags": ACK | CWR, "tos": 2}),
            (UDP_NUMBER, 4000, 1000, {}),
        ):
            big = superframe(family, protocol, size, (1, 5), (3, 6), **more)
            node.host.peer.inject(big.build(), superframe_header(big, gso))
            yield from take(raw, f"superframe-{family}-{protocol}", list(naive_split(big, gso)))
            single = superframe(family, protocol, 700, (1, 5), (3, 6))
            node.host.peer.inject(single.build(), superframe_header(single, 0)._replace(gso_type=0))
            yield from take(raw, f"partial-{family}-{protocol}", list(naive_split(single, 2000)))
    node.host.peer.inject(udp4(address4(1, 5), address4(3, 6), bytes(range(250)) * 16, id=4711))
    yield from take(raw, "fragmented-by-us", [None] * 3)
    errors = {
        "time-exceeded-4": udp4(address4(3, 5), address4(1, 10), ttl=1),
        "time-exceeded-6": udp6(address6(3, 5), address6(1, 10), hlim=1),
        "too-big-4": udp4(address4(3, 5), address4(1, 10), b"x" * 1400, flags="DF"),
        "too-big-6": udp6(address6(3, 5), address6(1, 10), b"x" * 1390),
    }
    for name, cause in errors.items():
        raw.send_inner(node, cause)
        yield from take(raw, name, [None])


@pytest.fixture(scope="module")
def emitted() -> list[Emitted]:
    with Fabric() as fabric:
        node, raw = fabric.add_node(1), fabric.add_raw_peer(3)
        node.add_pod(10, mtu=1300)
        fabric.publish()
        return list(emit_all(node, raw))


def recomputed(packet: Scapy) -> bytes:
    """The packet with every checksum made by scapy."""
    fresh = inner(bytes(packet))
    layers = {IP: "chksum", TCP: "chksum", UDP: "chksum", ICMP: "chksum", SCTP: "chksum", ICMPv6TimeExceeded: "cksum"}
    layers |= {ICMPv6PacketTooBig: "cksum", ICMPv6DestUnreach: "cksum", ICMPv6EchoRequest: "cksum"}
    part: Scapy = fresh
    while part and type(part) not in (Raw, ICMPv6TimeExceeded, ICMPv6PacketTooBig, ICMPv6DestUnreach, ICMP):
        if type(part) in layers:
            delattr(part, layers[type(part)])
        part = part.payload
    if type(part) in layers:
        delattr(part, layers[type(part)])
    return bytes(fresh)


def is_fragment(packet: Scapy) -> bool:
    if packet.version == 4:
        return bool(int(packet.frag) or packet.flags.MF)
    return "IPv6ExtHdrFragment" in [layer.__name__ for layer in packet.layers()] and packet.nh == 44


def test_table_covers_what_we_emit(emitted: list[Emitted]) -> None:
    assert len({case.kind for case in emitted}) >= 36
    assert len(emitted) >= 70


def test_scapy_reads_every_header_field(emitted: list[Emitted]) -> None:
    for case in emitted:
        frame = VXLAN(case.payload)
        assert (int(frame.flags), frame.vni, frame.reserved1, frame.reserved2) == (8, 1, 0, 0), case.kind
        ether = frame[Ether]
        macs = tuple(bytes.fromhex(mac.replace(":", "")) for mac in (ether.dst, ether.src))
        assert macs == (node_mac(3), node_mac(1)), case.kind
        packet = ether.payload
        assert ether.type == (0x0800 if packet.version == 4 else 0x86DD), case.kind
        assert type(packet) is (IP if ether.type == 0x0800 else IPv6), case.kind
        assert len(case.payload) == 22 + (packet.len if packet.version == 4 else packet.plen + 40), case.kind
        assert case.tos == (packet.tos if packet.version == 4 else packet.tc) & 3, case.kind
        if case.packet is not None:
            assert bytes(packet) == case.packet, case.kind


def test_scapy_computes_the_same_checksums(emitted: list[Emitted]) -> None:
    for case in emitted:
        data = case.payload[22:]
        if is_fragment(inner(data)):
            # Only the network header's checksum belongs to one fragment.
            data = data[: (data[0] & 15) * 4] if data[0] >> 4 == 4 else data[:40]
        assert recomputed(inner(data)) == data, case.kind


def write_capture(emitted: list[Emitted], file: Path) -> None:
    """A capture as it would be on an Ethernet: outer headers around the payloads that the socket received."""
    frames = []
    for number, case in enumerate(emitted):
        outer = IP(src="192.0.2.1", dst="192.0.2.3", tos=case.tos, id=number)
        udp = UDP(sport=case.source_port, dport=8472)
        frames.append(Ether(src="02:00:00:00:00:aa", dst="02:00:00:00:00:bb") / outer / udp / Raw(case.payload))
    wrpcap(str(file), frames)


def tshark(file: Path, *arguments: str) -> str:
    options = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "udp", "tcp")]
    command = ["tshark", "-n", "-r", str(file), "-d", "udp.port==8472,vxlan", *options, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


CHECKED = ("ip", "udp", "tcp", "icmp", "icmpv6")
BAD = " || ".join(["_ws.malformed", *(f"{name}.checksum.status == 0" for name in CHECKED)])
SPOILED = ("udp4", "tcp4-data", "udp6", "superframe-6-6", "time-exceeded-6")


@pytest.fixture(scope="module")
def capture(emitted: list[Emitted], tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert shutil.which("tshark"), "tshark is missing: apt-get install tshark"
    file = tmp_path_factory.mktemp("golden") / "emitted.pcap"
    write_capture(emitted, file)
    return file


def test_tshark_finds_nothing_wrong(capture: Path) -> None:
    assert tshark(capture, "-Y", BAD) == ""


def test_tshark_would_have_found_it(emitted: list[Emitted], tmp_path: Path) -> None:
    """The check above checks something: one flipped byte in each packet's end is seen in all that have a checksum."""
    chosen = [case for case in emitted if case.kind in SPOILED]
    spoiled = [case._replace(payload=case.payload[:-1] + bytes([case.payload[-1] ^ 1])) for case in chosen]
    write_capture(spoiled, tmp_path / "spoiled.pcap")
    lines = tshark(tmp_path / "spoiled.pcap", "-Y", BAD).splitlines()
    assert len(lines) == len(spoiled) > 10


def test_tshark_reads_the_same_fields(emitted: list[Emitted], capture: Path) -> None:
    decoded: list[dict[str, Any]] = json.loads(tshark(capture, "-T", "json", "--no-duplicate-keys"))
    assert len(decoded) == len(emitted)
    for case, record in zip(emitted, decoded, strict=True):
        layers = record["_source"]["layers"]
        assert layers["vxlan"]["vxlan.vni"] == "1", case.kind
        assert layers["vxlan"]["vxlan.flags"] == "0x0800", case.kind
        _, inside = layers["eth"]
        assert (inside["eth.dst"], inside["eth.src"]) == ("02:00:00:00:00:03", "02:00:00:00:00:01"), case.kind
        packet = inner(case.payload[22:])
        if packet.version == 4:
            ip = layers["ip"][1]
            assert (ip["ip.src"], ip["ip.dst"]) == (packet.src, packet.dst), case.kind
            assert int(ip["ip.len"]) == packet.len == len(case.payload) - 22, case.kind
            assert int(ip["ip.ttl"]) == packet.ttl, case.kind
            assert int(ip["ip.id"], 16) == packet.id, case.kind
            assert ip["ip.checksum.status"] == "1", case.kind
        else:
            ip = layers["ipv6"]
            assert (ip["ipv6.src"], ip["ipv6.dst"]) == (packet.src, packet.dst), case.kind
            assert int(ip["ipv6.plen"]) == packet.plen == len(case.payload) - 62, case.kind
            assert int(ip["ipv6.hlim"]) == packet.hlim, case.kind
        if case.kind.startswith(("superframe", "partial")):
            name = "tcp" if TCP in packet else "udp"
            transport = layers[name] if name == "tcp" else layers["udp"][1]
            assert transport[f"{name}.checksum.status"] == "1", case.kind
            assert int(transport[f"{name}.checksum"], 16) == packet[name.upper()].chksum, case.kind
            if name == "tcp":
                assert int(transport["tcp.seq_raw"]) == packet[TCP].seq, case.kind
