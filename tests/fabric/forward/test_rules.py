"""Forwarding rules of a router: TTL, MTU, fragments, ICMP errors, and what pods may not do."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.packet import Raw

from tests.fabric.forward.conftest import Pair
from tests.fabric.forward.harness import PLAIN, Fabric, HarnessPort, address4, address6, wait_for
from tests.fabric.forward.packets import (
    echo4,
    echo6,
    icmp6_time_exceeded,
    inner,
    make,
    superframe,
    tcp4,
    udp4,
    udp6,
    wire_packets,
)
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import UDP as UDP_NUMBER
from tests.tun.packets import inet_sum, naive_split, superframe_header
from tun.offload import Features

POD_A, POD_B = (1, 10), (2, 10)


def ttl_of(packet: bytes) -> int:
    return packet[8] if packet[0] >> 4 == 4 else packet[7]


def check_quote(packet: bytes, quoted: bytes) -> None:
    """An error quotes the start of the packet, at most with the TTL changed (RFC 1812 section 4.3.2.3)."""
    same = {8, 10, 11} if packet[0] >> 4 == 4 else {7}
    assert quoted
    assert all(a == b for i, (a, b) in enumerate(zip(packet, quoted, strict=False)) if i not in same)


@pytest.mark.parametrize("family", [4, 6])
def test_pod_to_pod_lowers_ttl_on_both_nodes(pair: Pair, family: int) -> None:
    packet = make(family, POD_A, POD_B)
    pair.pod_a.peer.inject(packet)
    _, got = pair.pod_b.take()
    assert ttl_of(got) == 62
    assert raise_ttl(got, 2) == packet


def raise_ttl(packet: bytes, hops: int) -> bytes:
    """The packet as it was `hops` hops ago, IPv4 header checksum recomputed by scapy."""
    parsed = inner(packet)
    if parsed.version == 4:
        parsed.ttl += hops
        del parsed.chksum
    else:
        parsed.hlim += hops
    return bytes(parsed)


@pytest.mark.parametrize("family", [4, 6])
def test_node_port_lowers_no_ttl(pair: Pair, family: int) -> None:
    """The host's kernel has routed the packet to or from the node port and counted that hop itself."""
    packet = make(family, (1, 5), (2, 6))
    pair.a.host.peer.inject(packet)
    assert pair.b.host.take() == (PLAIN, packet)


@pytest.mark.parametrize("family", [4, 6])
def test_pod_of_the_same_node_is_one_hop_away(pair: Pair, family: int) -> None:
    other = pair.a.add_pod(11)
    pair.a.publish()
    packet = make(family, POD_A, (1, 11))
    pair.pod_a.peer.inject(packet)
    _, got = other.take()
    assert raise_ttl(got, 1) == packet
    assert pair.a.count("send_datagrams") == 0


@pytest.mark.parametrize("family", [4, 6])
def test_pod_to_outside_goes_to_the_host_unchanged(pair: Pair, family: int) -> None:
    packet = udp4(address4(*POD_A), "192.0.2.9") if family == 4 else udp6(address6(*POD_A), "2001:db8:ffff::9")
    pair.pod_a.peer.inject(packet)
    assert pair.a.host.take() == (PLAIN, packet)


def test_nat64_destination_is_the_hosts_business(pair: Pair) -> None:
    packet = udp6(address6(*POD_A), "64:ff9b::c000:209")
    pair.pod_a.peer.inject(packet)
    assert pair.a.host.take() == (PLAIN, packet)


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("to", [POD_B, (1, 11)], ids=["remote", "local"])
def test_time_exceeded_4(pair: Pair, ttl: int, to: tuple[int, int]) -> None:
    pair.a.add_pod(11)
    pair.a.publish()
    packet = udp4(address4(*POD_A), address4(*to), ttl=ttl)
    pair.pod_a.peer.inject(packet)
    error = inner(pair.pod_a.take()[1])
    assert (error.src, error.dst, error[ICMP].type, error[ICMP].code) == (address4(1, 0), address4(*POD_A), 11, 0)
    check_checksums(error)
    check_quote(packet, bytes(error[ICMP].payload))
    pair.a.wait_drop("ttl_expired")


@pytest.mark.parametrize("to", [POD_B, (1, 11)], ids=["remote", "local"])
def test_time_exceeded_6(pair: Pair, to: tuple[int, int]) -> None:
    pair.a.add_pod(11)
    pair.a.publish()
    packet = udp6(address6(*POD_A), address6(*to), hlim=1)
    pair.pod_a.peer.inject(packet)
    error = inner(pair.pod_a.take()[1])
    assert ICMPv6TimeExceeded in error
    assert (error.src, error.dst, error[ICMPv6TimeExceeded].code) == ("2001:db8:1::", address6(*POD_A), 0)
    check_checksums(error)
    pair.a.wait_drop("ttl_expired")


def check_checksums(packet: IP | IPv6) -> None:
    """Every checksum is what scapy computes."""
    fresh = inner(bytes(packet))
    for layer in (IP, ICMP, UDP, TCP, ICMPv6TimeExceeded, ICMPv6PacketTooBig, ICMPv6DestUnreach):
        if layer in fresh:
            name = "cksum" if layer.__name__.startswith("ICMPv6") else "chksum"
            delattr(fresh[layer], name)
    assert bytes(fresh) == bytes(packet)


@pytest.mark.parametrize("family", [4, 6])
def test_time_exceeded_at_the_far_node_goes_back_through_the_tunnel(pair: Pair, family: int) -> None:
    packet = (
        udp4(address4(*POD_A), address4(*POD_B), ttl=2) if family == 4
        else udp6(address6(*POD_A), address6(*POD_B), hlim=2)
    )  # fmt: skip
    pair.pod_a.peer.inject(packet)
    error = inner(pair.pod_a.take()[1])
    assert error.src == (address4(2, 0) if family == 4 else "2001:db8:2::")
    assert (ICMP if family == 4 else ICMPv6TimeExceeded) in error
    check_checksums(inner(raise_ttl(bytes(error), 1)))
    pair.b.wait_drop("ttl_expired")


@pytest.mark.parametrize("mtu", [1450, 1300, 1280])
@pytest.mark.parametrize("port", ["host", "pod_a"])
def test_fragmentation_needed_tells_this_peers_mtu(pair: Pair, mtu: int, port: str) -> None:
    pair.fabric.set_mtu(pair.a, 2, mtu)
    source: HarnessPort = getattr(pair.a, port) if port == "host" else pair.pod_a
    fits, over = (
        bytes(IP(src=address4(*POD_A), dst=address4(*POD_B), flags="DF") / UDP() / Raw(b"x" * (mtu - 28 + extra)))
        for extra in (0, 1)
    )
    source.peer.inject(fits)
    pair.pod_b.take()
    source.peer.inject(over)
    error = inner(source.take()[1])
    assert (error[ICMP].type, error[ICMP].code, error[ICMP].nexthopmtu) == (3, 4, mtu)
    check_checksums(error)
    check_quote(over, bytes(error[ICMP].payload))
    assert len(error) <= 576
    pair.a.wait_drop("too_big")


@pytest.mark.parametrize("mtu", [1450, 1300, 1280])
def test_packet_too_big_tells_this_peers_mtu(pair: Pair, mtu: int) -> None:
    pair.fabric.set_mtu(pair.a, 2, mtu)
    fits, over = (udp6(address6(*POD_A), address6(*POD_B), b"x" * (mtu - 48 + extra)) for extra in (0, 1))
    pair.pod_a.peer.inject(fits)
    pair.pod_b.take()
    pair.pod_a.peer.inject(over)
    error = inner(pair.pod_a.take()[1])
    assert error[ICMPv6PacketTooBig].mtu == mtu
    assert len(error) <= 1280
    check_checksums(error)
    pair.a.wait_drop("too_big")


def test_mtu_is_per_peer(pair: Pair) -> None:
    pair.fabric.set_mtu(pair.a, 2, 1300)
    to_raw = udp4(address4(1, 5), address4(3, 9), b"x" * (1450 - 28), flags="DF")
    pair.a.host.peer.inject(to_raw)
    assert pair.raw.receive()[22:] == to_raw
    pair.a.host.peer.inject(udp4(address4(1, 5), address4(2, 9), b"x" * (1450 - 28), flags="DF"))
    pair.a.wait_drop("too_big")


@pytest.mark.parametrize("family", [4, 6])
def test_superframe_with_segments_above_the_path_mtu_is_answered(pair: Pair, family: int) -> None:
    packet = superframe(family, TCP_NUMBER, 9000, POD_A, POD_B)
    pair.pod_a.peer.inject(packet.build(), superframe_header(packet, 1441))
    error = inner(pair.pod_a.take()[1])
    told = error[ICMP].nexthopmtu if family == 4 else error[ICMPv6PacketTooBig].mtu
    assert told == 1450
    pair.a.wait_drop("too_big")


OPTIONS = {"none": b"", "copied": b"\x94\x04\0\0", "not-copied": b"\x07\x07\x04\0\0\0\0\0"}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [1431, 3000, 9001, 65000])
def test_without_df_a_large_packet_is_fragmented(pair: Pair, options: str, size: int) -> None:
    option = OPTIONS[options]
    packet = superframe(4, UDP_NUMBER, size, (1, 5), (3, 9), check="full", fragment=0, ip_options=option).build()
    header = 20 + len(option)
    pair.a.host.peer.inject(packet)
    parts: list[bytes] = []
    while not parts or parts[-1][6] & 0x20:
        parts.append(pair.raw.receive()[22:])
    assert all(len(part) <= 1450 for part in parts)
    assert all((len(part) - header) % 8 == 0 for part in parts[:-1])
    for part in parts:
        assert inet_sum(part[:header]) == 0xFFFF
        assert part[4:6] == packet[4:6]
    assert reassembled(parts, len(packet) - header) == packet[header:]
    assert parts[0][20:header] == option
    for part in parts[1:]:
        assert part[20:header] == (option if options == "copied" else b"\x01" * 7 + b"\0" if option else b"")
    assert pair.a.count("egress_packets") == len(parts)


def reassembled(parts: list[bytes], size: int) -> bytes:
    """IPv4 payload put together by offset, holes and overlaps refused."""
    out = bytearray()
    for part in parts:
        header = (part[0] & 15) * 4
        assert (int.from_bytes(part[6:8], "big") & 0x1FFF) * 8 == len(out)
        out += part[header:]
    assert len(out) == size
    return bytes(out)


def test_fragmented_packet_is_what_scapy_reassembles(pair: Pair) -> None:
    packet = udp4(address4(1, 5), address4(2, 6), bytes(range(256)) * 30, id=99)
    pair.a.host.peer.inject(packet)
    parts = [IP(pair.b.host.take()[1]) for _ in range(6)]
    whole = defragment(parts)
    assert len(whole) == 1
    assert bytes(whole[0][UDP]) == packet[20:]


def test_fragment_of_a_fragment_keeps_offset_and_more(pair: Pair) -> None:
    packet = bytes(IP(src=address4(1, 5), dst=address4(3, 9), id=5, frag=100, flags="MF", proto=17) / Raw(b"m" * 2800))
    pair.a.host.peer.inject(packet)
    parts = [IP(pair.raw.receive()[22:]) for _ in range(2)]
    assert [int(part.frag) for part in parts] == [100, 100 + (len(parts[0]) - 20) // 8]
    assert all("MF" in str(part.flags) for part in parts)


def test_no_route_from_the_host_is_net_unreachable(pair: Pair) -> None:
    packet = udp4(address4(1, 5), address4(200, 9))
    pair.a.host.peer.inject(packet)
    error = inner(pair.a.host.take()[1])
    assert (error[ICMP].type, error[ICMP].code) == (3, 0)
    check_checksums(error)
    pair.a.host.peer.inject(udp6(address6(1, 5), "2001:db8:200::9"))
    error = inner(pair.a.host.take()[1])
    assert error[ICMPv6DestUnreach].code == 0
    check_checksums(error)
    pair.a.wait_drop("no_route", 2)


@pytest.mark.parametrize("family", [4, 6])
def test_own_subnet_without_such_a_pod_is_host_unreachable(pair: Pair, family: int) -> None:
    """From the host; a pod's packet for such an address is the host's to answer."""
    pair.a.host.peer.inject(make(family, (1, 5), (1, 77)))
    error = inner(pair.a.host.take()[1])
    if family == 4:
        assert (error[ICMP].type, error[ICMP].code) == (3, 1)
    else:
        assert error[ICMPv6DestUnreach].code == 3
    pair.a.wait_drop("no_route")


NEVER: dict[str, Callable[[], bytes]] = {
    "time-exceeded": lambda: bytes(
        IP(src=address4(*POD_A), dst=address4(*POD_B), ttl=1) / ICMP(type=11) / Raw(b"q" * 28)
    ),
    "unreachable": lambda: bytes(IP(src=address4(*POD_A), dst=address4(*POD_B), ttl=1) / ICMP(type=3) / Raw(b"q" * 28)),
    "redirect": lambda: bytes(IP(src=address4(*POD_A), dst=address4(*POD_B), ttl=1) / ICMP(type=5) / Raw(b"q" * 28)),
    "later-fragment": lambda: bytes(
        IP(src=address4(*POD_A), dst=address4(*POD_B), ttl=1, frag=10, proto=17) / Raw(b"q" * 40)
    ),
    "icmp6-error": lambda: icmp6_time_exceeded(address6(*POD_A), address6(*POD_B), hlim=1),
}


@pytest.mark.parametrize("kind", NEVER)
def test_no_error_about(pair: Pair, kind: str) -> None:
    pair.pod_a.peer.inject(NEVER[kind]())
    pair.a.wait_drop("ttl_expired")
    pair.pod_a.peer.inject(echo4(address4(*POD_A), address4(*POD_B), ttl=1))
    answer = inner(pair.pod_a.take()[1])
    assert answer[ICMP].type == 11, "the only answer is the one about the echo request"
    assert bytes(answer[ICMP].payload)[20] == 8
    assert pair.pod_a.take_all() == []


def test_errors_are_rate_limited_per_port(pair: Pair) -> None:
    start = time.monotonic()
    for _ in range(400):
        pair.pod_a.peer.inject(udp4(address4(*POD_A), address4(*POD_B), ttl=1))
    wait_for(lambda: pair.a.count("drop_ttl_expired") == 400)
    elapsed = time.monotonic() - start
    sent, limited = pair.a.count("egress_icmp_sent"), pair.a.count("egress_icmp_limited")
    assert sent + limited == 400
    assert 100 <= sent <= 101 + 100 * elapsed
    assert len(pair.pod_a.take_all()) == sent
    other = pair.a.add_pod(11)
    pair.a.publish()
    other.peer.inject(udp4(address4(1, 11), address4(*POD_B), ttl=1))
    assert inner(other.take()[1])[ICMP].type == 11, "another port has a bucket of its own"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", [TCP_NUMBER, UDP_NUMBER])
def test_superframe_to_a_pod_of_the_same_node_stays_whole(pair: Pair, family: int, protocol: int) -> None:
    other = pair.a.add_pod(11)
    pair.a.publish()
    packet = superframe(family, protocol, 40000, POD_A, (1, 11))
    header = superframe_header(packet, 1370)
    pair.pod_a.peer.inject(packet.build(), header)
    got_header, got = other.take()
    assert got_header == header
    assert raise_ttl(got, 1)[:12] == packet.build()[:12]
    assert got[packet.l4 :] == packet.build()[packet.l4 :]


def test_superframe_to_a_local_pod_without_offloads_is_cut(pair: Pair) -> None:
    other = pair.a.add_pod(11, features=Features.NONE)
    pair.a.publish()
    packet = superframe(4, TCP_NUMBER, 13700, POD_A, (1, 11), ttl=65)
    pair.pod_a.peer.inject(packet.build(), superframe_header(packet, 1370))
    expected = naive_split(superframe(4, TCP_NUMBER, 13700, POD_A, (1, 11), ttl=64), 1370)
    assert wire_packets([other.take() for _ in range(10)]) == expected


@pytest.mark.parametrize("features", [Features.ALL, Features.NONE], ids=["offload", "plain"])
def test_partial_checksum_to_a_local_pod(pair: Pair, features: Features) -> None:
    other = pair.a.add_pod(11, features=features)
    pair.a.publish()
    packet = superframe(4, TCP_NUMBER, 500, POD_A, (1, 11))
    header = superframe_header(packet, 0)._replace(gso_type=0)
    pair.pod_a.peer.inject(packet.build(), header)
    got_header, got = other.take()
    if features:
        assert got_header.flags == 1
        assert got[36:38] == packet.build()[36:38]
    else:
        assert got_header == PLAIN
        check_checksums(IP(got))


def test_local_pod_with_a_smaller_mtu(pair: Pair) -> None:
    """With DF the sender is told; without it the packet is handed over, as it is when it comes from the tunnel."""
    other = pair.a.add_pod(11, mtu=1300)
    pair.a.publish()
    pair.pod_a.peer.inject(tcp4(address4(*POD_A), address4(1, 11), b"x" * 1400, flags="DF"))
    assert inner(pair.pod_a.take()[1])[ICMP].nexthopmtu == 1300
    pair.a.wait_drop("too_big")
    pair.pod_a.peer.inject(udp4(address4(*POD_A), address4(1, 11), b"x" * 1400))
    assert len(other.take()[1]) == 1428


SPOOFED = {
    "other-pod": udp4(address4(1, 11), address4(*POD_B)),
    "other-node": udp4(address4(2, 10), address4(*POD_B)),
    "outside": udp4("192.0.2.1", address4(*POD_B)),
    "loopback": udp4("127.0.0.1", address4(*POD_B)),
    "node-address": udp4(address4(1, 0), address4(*POD_B)),
    "zero": udp4("0.0.0.0", address4(*POD_B)),
    "other-pod-6": udp6(address6(1, 11), address6(*POD_B)),
    "link-local": udp6("fe80::1", address6(*POD_B)),
    "unspecified": udp6("::", "ff02::2"),
}


@pytest.mark.parametrize("name", SPOOFED)
def test_pod_sends_from_its_own_addresses_only(pair: Pair, name: str) -> None:
    pair.pod_a.peer.inject(SPOOFED[name])
    pair.a.wait_drop("source_spoofed")
    assert pair.a.count("send_datagrams") == 0
    assert pair.pod_a.take_all() == pair.a.host.take_all() == []


def test_pod_without_an_address_of_the_family(fabric: Fabric) -> None:
    node = fabric.add_node(1)
    pod = node.add_pod(10, families="4")
    fabric.publish()
    pod.peer.inject(udp6("::", "2001:db8:2::1"))
    node.wait_drop("source_spoofed")


@pytest.mark.parametrize("to", ["127.0.0.2", "127.0.0.1", "127.0.0.3"], ids=["peer", "own", "raw"])
def test_pod_may_not_speak_to_a_tunnel_port(pair: Pair, to: str) -> None:
    pair.pod_a.peer.inject(udp4(address4(*POD_A), to, dport=pair.a.port))
    pair.a.wait_drop("pod_to_vtep")


def test_pod_may_use_other_ports_of_a_node(pair: Pair) -> None:
    packet = udp4(address4(*POD_A), "198.51.100.1", dport=pair.a.port)
    pair.pod_a.peer.inject(packet)
    assert pair.a.host.take() == (PLAIN, packet)


@pytest.mark.parametrize(
    "packet",
    [
        udp4(address4(*POD_A), "224.0.0.251"),
        udp4(address4(*POD_A), "255.255.255.255"),
        udp4(address4(*POD_A), "0.0.0.0"),
        udp4(address4(*POD_A), "127.0.0.1"),
        udp6(address6(*POD_A), "ff02::1"),
        udp6(address6(*POD_A), "fe80::1"),
        udp6(address6(*POD_A), "::1"),
        udp6(address6(*POD_A), "::ffff:192.0.2.1"),
        udp6(address6(*POD_A), "::"),
    ],
    ids=["multicast", "broadcast", "zero", "loopback", "multicast6", "link-local", "loopback6", "mapped", "zero6"],
)
@pytest.mark.parametrize("from_host", [False, True], ids=["pod", "host"])
def test_only_unicast_is_routed(pair: Pair, packet: bytes, from_host: bool) -> None:
    (pair.a.host if from_host else pair.pod_a).peer.inject(packet)
    pair.a.wait_drop("not_unicast")
    assert pair.a.count("send_datagrams") == 0


def test_echo_both_ways(pair: Pair) -> None:
    for make_echo, address in ((echo4, address4), (echo6, address6)):
        pair.pod_a.peer.inject(make_echo(address(*POD_A), address(*POD_B)))
        pair.pod_b.take()
        pair.pod_b.peer.inject(make_echo(address(*POD_B), address(*POD_A)))
        pair.pod_a.take()
    assert pair.a.drops() == pair.b.drops() == {}


MALFORMED = {
    "inner_short": b"E\0\0\x10",
    "inner_version": b"\x55" + bytes(40),
    "inner_header": b"\x44" + bytes(40),
    "inner_checksum": b"\x45\0\0\x1c" + bytes(30),
    "superframe": superframe(4, TCP_NUMBER, 9000, POD_A, POD_B).build(),
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_malformed_frames_of_a_pod(pair: Pair, reason: str) -> None:
    header = superframe_header(superframe(4, TCP_NUMBER, 9000, POD_A, POD_B), 1300)._replace(csum_start=24)
    pair.pod_a.peer.inject(MALFORMED[reason], header if reason == "superframe" else PLAIN)
    pair.a.wait_drop(reason)


@pytest.mark.parametrize(("start", "offset"), [(0xFFFF, 16), (20, 0xFFFF), (1000, 0), (519, 0)])
def test_checksum_offsets_outside_the_frame(pair: Pair, start: int, offset: int) -> None:
    packet = udp4(address4(*POD_A), address4(*POD_B), b"x" * 492)
    pair.pod_a.peer.inject(packet, PLAIN._replace(flags=1, csum_start=start, csum_offset=offset))
    pair.a.wait_drop("superframe")
