"""Filters behind tunnel headers: the moved program says of a frame what libpcap's says of the packet inside."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN

from fabric.capture import bpf, libpcap
from fabric.capture.libpcap import DLT_EN10MB, DLT_RAW, FilterError, Matcher

INNER = {
    "tcp": IP(src="10.244.1.2", dst="10.244.2.2") / TCP(sport=40000, dport=80) / (b"x" * 40),
    "options": IP(src="10.244.1.2", dst="10.244.2.2", options=b"\x01\x01\x01\x00") / TCP(dport=80),
    "udp": IP(src="10.244.1.2", dst="10.244.3.2") / UDP(sport=53, dport=5353),
    "ping": IP(src="10.244.2.2", dst="10.244.1.2") / ICMP(),
    "tcp6": IPv6(src="2001:db8:42::1", dst="2001:db8:43::2") / TCP(dport=443),
    "fragment": IP(src="10.244.1.2", dst="10.244.2.2", frag=10) / b"12345678",
}
FILTERS = (
    "tcp", "udp or icmp", "host 10.244.1.2", "net 10.244.2.0/24", "tcp dst port 80", "not tcp", "ip6",
    "tcp[13] & 2 != 0", "host 2001:db8:43::2 and tcp port 443",
    "src 10.244.1.2 and not (udp port 53 or tcp port 1)", "ip[8] > 60",
)  # fmt: skip


def ether(**fields: int) -> Ether:
    """Both ends given: scapy would go and look for the far one."""
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", **fields)


def vxlan(inner: bytes, six: bool, port: int = 8472) -> bytes:
    ethernet = ether(type=0x86DD if inner[0] >> 4 == 6 else 0x800) / inner
    outer = IPv6(src="2001:db8::1", dst="2001:db8::2") if six else IP(src="192.0.2.1", dst="192.0.2.2")
    return bytes(ether() / outer / UDP(sport=50000, dport=port) / VXLAN(vni=1, flags=8) / ethernet)


def flannel_udp(inner: bytes, six: bool) -> bytes:
    outer = IPv6(src="2001:db8::1", dst="2001:db8::2") if six else IP(src="192.0.2.1", dst="192.0.2.2")
    return bytes(ether() / outer / UDP(sport=8285, dport=8285) / inner)


@pytest.mark.parametrize("text", FILTERS)
def test_inside_and_alone_are_judged_alike(text: str) -> None:
    program = libpcap.compile(text, DLT_RAW, 65535)
    alone, tunnel = Matcher(program), Matcher(bpf.behind(program, bpf.tunnels(8472, 8285)))
    plain = Matcher(bpf.behind(program, bpf.ethernet()))
    for name, packet in INNER.items():
        inner = bytes(packet)
        expected = alone(inner, len(inner))
        frames = [made(inner, six) for made in (vxlan, flannel_udp) for six in (False, True)]
        assert [tunnel(frame, len(frame)) for frame in frames] == [expected] * 4, name
        frame = bytes(ether(type=0x86DD if inner[0] >> 4 == 6 else 0x800) / inner)
        assert plain(frame, len(frame)) == expected, name


def test_what_is_no_tunnel_does_not_pass() -> None:
    inner = bytes(INNER["tcp"])
    tunnel = Matcher(bpf.behind(libpcap.compile("", DLT_RAW, 65535), bpf.tunnels(8472, 0)))
    others = [
        vxlan(inner, False, 4789), vxlan(inner, True, 4789), flannel_udp(inner, False), bytes(ether() / ARP()),
        bytes(ether() / inner), b"", vxlan(inner, False)[:30],
        bytes(ether() / IP(frag=3) / inner), bytes(ether() / IP(options=b"\x01\x01\x01\x00") / UDP(dport=8472) / inner),
    ]  # fmt: skip
    assert [tunnel(frame, len(frame)) for frame in others] == [False] * len(others)
    assert tunnel(vxlan(inner, False), 200)


@pytest.mark.parametrize("first", ["udp port 8472", "udp port 8472 and host 192.0.2.1", "tcp", "host 192.0.2.9", ""])
def test_both(first: str) -> None:
    outer = libpcap.compile(first, DLT_EN10MB, 65535)
    inner = bpf.behind(libpcap.compile("tcp", DLT_RAW, 65535), bpf.tunnels(8472, 0))
    joined = Matcher(bpf.both(outer, inner))
    for packet in INNER.values():
        frame = vxlan(bytes(packet), False)
        expected = Matcher(outer)(frame, len(frame)) and Matcher(inner)(frame, len(frame))
        assert joined(frame, len(frame)) == expected


@pytest.mark.parametrize("text", ["less 100", "len > 5"])
def test_lengths_of_inner_packets_are_refused(text: str) -> None:
    with pytest.raises(bpf.BpfError, match="whole frames"):
        bpf.behind(libpcap.compile(text, DLT_RAW, 65535), bpf.tunnels(8472, 0))


@pytest.mark.parametrize(("text", "reason"), [("tpc", "syntax error"), ("ether host x", "filter"), ("tcp\0", "null")])
def test_a_bad_filter_is_one_line(text: str, reason: str) -> None:
    with pytest.raises(FilterError, match=reason) as error:
        libpcap.compile(text, DLT_RAW, 65535)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_filter_that_is_too_long() -> None:
    program = libpcap.compile(" or ".join(f"host 10.244.{i // 250}.{i % 250}" for i in range(1500)), DLT_RAW, 65535)
    with pytest.raises(bpf.BpfError, match="too long"):
        bpf.behind(program, bpf.tunnels(8472, 8285))
