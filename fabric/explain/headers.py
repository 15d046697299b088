"""What is in a packet, in words, header by header. Pure, total: what is cut off is said to be."""

from __future__ import annotations

import struct

from encap.inner import parse_packet
from fabric.capture.comments import ends_of
from fabric.explain.packets import FLAGS, ICMP, ICMPV6, PROTOCOLS, TCP, UDP

NAMES = {number: name.upper() for name, number in PROTOCOLS.items()} | {ICMPV6: "ICMPv6"}
ICMP_TYPES = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
ICMPV6_TYPES = {1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request", 129: "echo reply",
                135: "neighbour solicitation", 136: "neighbour advertisement"}  # fmt: skip
FRAGMENTS = ("", ", first fragment", ", later fragment")


def protocol_name(number: int) -> str:
    """`TCP`, or `protocol 47`."""
    return NAMES.get(number, f"protocol {number}")


def packet_line(packet: bytes) -> str:
    """One line about an IP packet."""
    found = parse_packet(packet)
    ends = ends_of(packet)
    if ends is None:
        return f"{len(packet)} bytes that are no IP packet"
    if found["reason"]:
        protocol = packet[6] if packet[0] >> 4 == 6 else packet[9]
        return f"{protocol_name(protocol)} from {ends[0]} to {ends[1]}, {len(packet)} bytes, malformed"
    flags = f"{_what(packet, found)}{FRAGMENTS[found['fragment']]}"
    df = ", may not be cut" if found["family"] == 4 and found["dont_fragment"] else ""
    source, target = (_end(str(end), found[port]) for end, port in zip(ends, ("sport", "dport"), strict=True))
    return (
        f"{protocol_name(found['protocol'])} from {source} to {target}{flags}, {found['length']} bytes,"
        f" TTL {found['ttl']}{df}"
    )


def _end(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _what(packet: bytes, found: dict[str, int]) -> str:
    at = found["l4"]
    if found["fragment"] == 2:
        return ""
    if found["protocol"] == TCP:
        names = "".join(flag for bit, flag in enumerate(FLAGS) if packet[at + 13] >> bit & 1)
        return f" [{names or 'no flags'}]"
    if found["protocol"] in (ICMP, ICMPV6):
        kinds = ICMP_TYPES if found["protocol"] == ICMP else ICMPV6_TYPES
        kind, code = packet[at], packet[at + 1]
        return f" {kinds.get(kind, f'type {kind}')}" + (f" code {code}" if code else "")
    return ""


def tunnel_lines(payload: bytes) -> list[str]:
    """The headers of a VXLAN payload: VXLAN, inner Ethernet, and the packet."""
    if len(payload) < 22:
        return [f"{len(payload)} bytes, too short for VXLAN and Ethernet"]
    flags, vni = payload[0], int.from_bytes(payload[4:7], "big")
    return [f"VXLAN flags {flags:#04x}, VNI {vni}", *frame_lines(payload[8:])]


def frame_lines(frame: bytes) -> list[str]:
    """The headers of an Ethernet frame."""
    kind = int.from_bytes(frame[12:14], "big")
    return [f"Ethernet from {frame[6:12].hex(':')} to {frame[:6].hex(':')}, type {kind:#06x}", *ip_lines(frame[14:])]


def ip_lines(packet: bytes) -> list[str]:
    """IP and transport header."""
    found = parse_packet(packet)
    ends = ends_of(packet)
    if ends is None or found["reason"]:
        return [packet_line(packet)]
    lines = [f"IPv{found['family']} from {ends[0]} to {ends[1]}, {found['length']} bytes, TTL {found['ttl']},"
             f" TOS {found['tos']:#04x}{_cut(packet)}"]  # fmt: skip
    if found["fragment"] == 2:
        return lines
    at, name = found["l4"], protocol_name(found["protocol"])
    if found["protocol"] == TCP:
        sequence, ack = struct.unpack_from(">II", packet, at + 4)
        lines.append(f"TCP {found['sport']} to {found['dport']}{_what(packet, found)}, seq {sequence}, ack {ack}")
    elif found["protocol"] == UDP:
        lines.append(f"UDP {found['sport']} to {found['dport']}, {struct.unpack_from('>H', packet, at + 4)[0]} bytes")
    elif found["protocol"] in (ICMP, ICMPV6):
        lines.append(f"{name}{_what(packet, found)}{_mtu(packet, at, found)}")
    else:
        lines.append(f"{name} {found['sport']} to {found['dport']}" if found["dport"] else name)
    return lines


def _cut(packet: bytes) -> str:
    """What an IPv4 header says about fragments."""
    if packet[0] >> 4 != 4:
        return ""
    word = struct.unpack_from(">H", packet, 6)[0]
    found = ", DF" if word & 0x4000 else ""
    if word & 0x3FFF:
        found += f", fragment at {(word & 0x1FFF) * 8}{', more follow' if word & 0x2000 else ''}"
    return found


def _mtu(packet: bytes, at: int, found: dict[str, int]) -> str:
    """The MTU that an error names (RFC 1191, RFC 4443 section 3.2)."""
    if len(packet) < at + 8:
        return ""
    if found["protocol"] == ICMP and packet[at : at + 2] == b"\x03\x04":
        return f", fragmentation needed, MTU {struct.unpack_from('>H', packet, at + 6)[0]}"
    if found["protocol"] == ICMPV6 and packet[at] == 2:
        return f", MTU {struct.unpack_from('>I', packet, at + 4)[0]}"
    return ""


def headers_length(payload: bytes, skip: int) -> int:
    """How many bytes of a payload are headers, when the IP packet begins at `skip`."""
    found = parse_packet(payload[skip:])
    if found["reason"]:
        return min(len(payload), skip + 40)
    at = found["l4"]
    if found["fragment"] != 2:
        sizes = {TCP: (payload[skip + at + 12] >> 4) * 4 if found["protocol"] == TCP else 0, UDP: 8, ICMP: 8, ICMPV6: 8}
        at += sizes.get(found["protocol"], 0)
    return min(len(payload), skip + at)
