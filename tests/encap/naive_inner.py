"""The twin of `encap.inner`: the same rules written once more from the RFCs, slowly and with Python's own tools."""

from __future__ import annotations

import ipaddress

from encap.drops import DropReason

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
WITH_PORTS = {TCP: 20, UDP: 8, 132: 8, 136: 8, 33: 8}
MINIMUM = {**WITH_PORTS, ICMP: 8, ICMPV6: 8}
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60


class Refused(Exception):
    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.name)
        self.reason = reason


def number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def ones_sum(data: bytes) -> int:
    total = sum(number(data[i : i + 2].ljust(2, b"\0")) for i in range(0, len(data), 2))
    while total > 0xFFFF:
        total = total % 0x10000 + total // 0x10000
    return total


def demand(condition: bool, reason: DropReason) -> None:
    if not condition:
        raise Refused(reason)


def parse(data: bytes) -> dict[str, object]:
    """The fields of `parse_packet` without `hash`; {"reason": n} alone for a refused packet."""
    try:
        demand(len(data) >= 20, DropReason.INNER_SHORT)
        version = data[0] >> 4
        demand(version in (4, 6), DropReason.INNER_VERSION)
        return parse4(data) if version == 4 else parse6(data)
    except Refused as refused:
        return {"reason": int(refused.reason)}


def parse4(data: bytes) -> dict[str, object]:
    size, total = data[0] % 16 * 4, number(data[2:4])
    demand(20 <= size <= min(len(data), total), DropReason.INNER_HEADER)
    demand(total <= len(data), DropReason.INNER_LENGTH)
    demand(ones_sum(data[:size]) == 0xFFFF, DropReason.INNER_CHECKSUM)
    payload = data[size:total]
    flags, start = data[6] >> 5, number(data[6:8]) % 0x2000 * 8
    fields: dict[str, object] = {
        "reason": 0, "family": 4, "length": total, "l4": size, "protocol": data[9], "tos": data[1], "ttl": data[8],
        "dont_fragment": flags >> 1 & 1, "src": number(data[12:16]), "dst": number(data[16:20]),
        "fragment": fragment_kind(start, bool(flags & 1), payload, tcp_second=data[9] == TCP),
    }  # fmt: skip
    return fields | transport(payload, data[9], fields["fragment"])


def fragment_kind(start: int, more: bool, payload: bytes, *, tcp_second: bool) -> int:
    """0 whole, 1 first, 2 later; RFC 791, 1858 section 4 (the second eight bytes of TCP), 8200 section 4.5."""
    if not start and not more:
        return 0
    whole_words = len(payload) % 8 == 0 or not more
    demand(bool(payload) and whole_words and start + len(payload) <= 65535, DropReason.INNER_FRAGMENT)
    demand(not (tcp_second and start == 8), DropReason.INNER_FRAGMENT)
    return 2 if start else 1


def parse6(data: bytes) -> dict[str, object]:
    demand(len(data) >= 40, DropReason.INNER_SHORT)
    total = 40 + number(data[4:6])
    demand(total <= len(data), DropReason.INNER_LENGTH)
    data = data[:total]
    fields: dict[str, object] = {
        "reason": 0, "family": 6, "length": total, "tos": number(data[:2]) >> 4 & 0xFF, "ttl": data[7],
        "dont_fragment": 1, "src": number(data[8:24]), "dst": number(data[24:40]),
    }  # fmt: skip
    protocol, offset, fragment = walk6(data)
    fields |= {"l4": offset, "protocol": protocol, "fragment": fragment}
    return fields | transport(data[offset:], protocol, fragment)


def walk6(data: bytes) -> tuple[int, int, int]:
    """(upper protocol, its offset, fragment kind); RFC 8200 section 4, 5095, 7112."""
    kind, offset, fragment = data[6], 40, 0
    seen: list[int] = []
    while kind in (HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION):
        allowed = 2 if kind == DESTINATION else 1
        demand(seen.count(kind) < allowed and len(seen) < 8, DropReason.INNER_EXTENSION)
        demand(kind != HOP_BY_HOP or not seen, DropReason.INNER_EXTENSION)
        seen.append(kind)
        header = data[offset:]
        demand(len(header) >= 8, DropReason.INNER_EXTENSION)
        size = {FRAGMENT: 8, AH: (header[1] + 2) * 4}.get(kind, (header[1] + 1) * 8)
        demand(size <= len(header) and offset + size <= 40 + 256, DropReason.INNER_EXTENSION)
        demand(not (kind == ROUTING and header[2] == 0), DropReason.INNER_EXTENSION)
        if kind == FRAGMENT:
            start, more = number(header[2:4]) & 0xFFF8, bool(header[3] & 1)
            payload = header[8:]
            demand(
                bool(payload) and (len(payload) % 8 == 0 or not more) and start + len(payload) <= 65535,
                DropReason.INNER_FRAGMENT,
            )
            if start:
                return header[0], offset + 8, 2
            fragment = 1 if more else 0
        kind, offset = header[0], offset + size
    return kind, offset, fragment


def transport(payload: bytes, protocol: int, fragment: object) -> dict[str, object]:
    if fragment == 2:
        return {"sport": 0, "dport": 0}
    short = DropReason.INNER_FRAGMENT if fragment else DropReason.INNER_TRANSPORT
    need = MINIMUM.get(protocol, 0)
    if protocol == TCP and len(payload) >= 20:
        need = payload[12] // 16 * 4
        demand(need >= 20, DropReason.INNER_TRANSPORT)
    if protocol == UDP and len(payload) >= 8 and not fragment:
        need = number(payload[4:6])
        demand(need >= 8, DropReason.INNER_TRANSPORT)
    demand(len(payload) >= need, short)
    if protocol not in WITH_PORTS:
        return {"sport": 0, "dport": 0}
    return {"sport": number(payload[:2]), "dport": number(payload[2:4])}


def address(value: object, family: int) -> str:
    """Text of an address that a parser gave as an integer."""
    assert isinstance(value, int)
    return str(ipaddress.IPv4Address(value) if family == 4 else ipaddress.IPv6Address(value))
