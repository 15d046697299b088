"""Packets that try to get past a policy in either family, beside the captures of `evasions`: fragments in every order,
headers that hide or move the ports, lengths that lie, protocols without ports, errors about nothing.

Every case carries a datagram to a forbidden port. Those of `SMUGGLED` begin with something that is allowed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from tests.scenarios.evasions import LEAK, OTHER, fill
from tests.scenarios.outsider import ones_sum, udp

TCP, UDP, SCTP, DCCP, UDPLITE = 6, 17, 132, 33, 136
HEAD = 8  # of UDP
PADDING = b"\1\4" + bytes(4)


@dataclass(frozen=True, slots=True)
class Try:
    """One family's ends of an attack, and the ports that are allowed and forbidden."""

    source: str
    target: str
    allowed: int
    forbidden: int
    number: int

    @property
    def six(self) -> bool:
        return ":" in self.source

    def sport(self, protocol: int = UDP) -> int:
        return 20_000 + (self.number * 7 + protocol) % 40_000

    def whole(self, payload: bytes, protocol: int = UDP, **more: int) -> bytes:
        """One packet."""
        return self._six(payload, protocol) if self.six else self._four(payload, protocol, **more)

    def _six(self, payload: bytes, protocol: int) -> bytes:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return head + ip_address(self.source).packed + ip_address(self.target).packed + payload

    def _four(self, payload: bytes, protocol: int, word: int = 0, total: int = 0, options: bytes = b"") -> bytes:
        length = 20 + len(options)
        fields = (0x40 | length // 4, 0, total or length + len(payload), self.number & 0xFFFF, word, 64, protocol, 0)
        head = struct.pack("!BBHHHBBH", *fields) + ip_address(self.source).packed + ip_address(self.target).packed
        head += options
        return head[:10] + struct.pack("!H", ones_sum(head) ^ 0xFFFF) + head[12:] + payload

    def piece(self, offset: int, more: bool, data: bytes, protocol: int = UDP) -> bytes:
        """A fragment."""
        if not self.six:
            return self._four(data, protocol, offset // 8 | more << 13)
        return self._six(struct.pack("!BBHI", protocol, 0, offset | more, 0xBAD00000 + self.number) + data, 44)

    def datagram(self, port: int, length: int = 64, text: bytes = LEAK) -> bytes:
        return udp(self.source, self.target, fill(text, length - HEAD), self.sport(), port)

    def bad(self, length: int = 64) -> bytes:
        return self.datagram(self.forbidden, length)

    def good(self, length: int = 64, text: bytes = OTHER) -> bytes:
        return self.datagram(self.allowed, length, text)

    def pieces(self, message: bytes, size: int = 24, protocol: int = UDP) -> list[bytes]:
        """A message in fragments of so many bytes, a multiple of 8."""
        return [
            self.piece(at, at + size < len(message), message[at : at + size], protocol)
            for at in range(0, len(message), size)
        ]

    def syn(self, port: int) -> bytes:
        """A TCP segment that asks for a connection."""
        head = struct.pack("!HHIIBBHHH", self.sport(TCP), port, 1, 0, 0x50, 2, 1000, 0, 0) + LEAK
        ends = ip_address(self.source).packed + ip_address(self.target).packed
        check = ones_sum(ends + struct.pack("!HH", TCP, len(head)) + head) ^ 0xFFFF
        return head[:16] + struct.pack("!H", check) + head[18:]


Case = Callable[[Try], list[bytes]]


def in_order(*order: int) -> Case:
    """Three fragments of a forbidden datagram in this order."""
    return lambda t: [t.pieces(t.bad())[i] for i in order]


def tcp_in(size: int) -> Case:
    """A forbidden SYN, whose ports or flags are in different fragments."""
    return lambda t: t.pieces(t.syn(t.forbidden), size, TCP)


def of_protocol(protocol: int) -> Case:
    """A protocol whose ports, if any, stand where UDP's stand."""
    return lambda t: [t.whole(t.bad(), protocol)]


def behind(*kinds: int, data: Sequence[bytes] = ()) -> Case:
    """Extension headers of these kinds in front of a forbidden datagram (IPv6)."""

    def build(t: Try) -> list[bytes]:
        chain = b""
        for i, kind in enumerate(kinds):
            following = kinds[i + 1] if i + 1 < len(kinds) else UDP
            body = data[i] if i < len(data) else (bytes([1, 4]) + bytes(4) if kind in (0, 60) else bytes(6))
            size = (len(body) + 2) // 4 - 2 if kind == 51 else (len(body) + 2) // 8 - 1
            chain += bytes([following, size]) + body
        return [t.whole(chain + t.bad(), kinds[0])]

    return build


def lying(total: int) -> Case:
    """The IP header says that the packet has so many bytes more than it has (IPv4), or fewer."""

    def build(t: Try) -> list[bytes]:
        if not t.six:
            return [t.whole(t.bad(), total=84 + total)]
        packet = t.whole(t.bad())
        return [packet[:4] + struct.pack("!H", 64 + total) + packet[6:]]

    return build


def long_udp(length: int) -> Case:
    """UDP's own length."""
    return lambda t: [t.whole(t.bad()[:4] + struct.pack("!H", length) + t.bad()[6:])]


def error_about(quoted: Callable[[Try], bytes]) -> Case:
    """Destination unreachable, port, about a packet of the victim's that never was."""

    def build(t: Try) -> list[bytes]:
        kind = bytes([1, 4]) if t.six else bytes([3, 3])
        body = kind + bytes(6) + quoted(Try(t.target, t.source, t.forbidden, t.allowed, t.number))
        ends = ip_address(t.source).packed + ip_address(t.target).packed + struct.pack("!HH", 58, len(body))
        check = ones_sum((ends if t.six else b"") + body) ^ 0xFFFF
        return [t.whole(body[:2] + struct.pack("!H", check) + body[4:], 58 if t.six else 1)]

    return build


def jumbogram(t: Try) -> list[bytes]:
    """RFC 2675: payload length 0 and the real one in an option."""
    body = t.bad()
    option = bytes([UDP, 0, 0xC2, 4]) + struct.pack("!I", 8 + len(body))
    packet = t.whole(option + body, 0)
    return [packet[:4] + b"\0\0" + packet[6:]]


def with_options(options: bytes) -> Case:
    """IPv4 options in front of a forbidden datagram."""
    return lambda t: [t.whole(t.bad(), options=options)]


def word(version: int) -> Case:
    """First byte of the IP header."""
    return lambda t: [bytes([version]) + t.whole(t.bad())[1:]]


BOTH: dict[str, Case] = {
    "fragments in order": in_order(0, 1, 2),
    "last fragment first": in_order(2, 0, 1),
    "first fragment last": in_order(1, 2, 0),
    "backwards": in_order(2, 1, 0),
    "first fragment twice": in_order(0, 0, 1, 2),
    "no first fragment": in_order(1, 2),
    "smallest fragments": lambda t: t.pieces(t.bad(), 8),
    "smallest fragments backwards": lambda t: t.pieces(t.bad(), 8)[::-1],
    "TCP: ports alone": tcp_in(8),
    "TCP: without flags": tcp_in(16),
    "TCP: whole header": tcp_in(24),
    "TCP: ports alone, backwards": lambda t: t.pieces(t.syn(t.forbidden), 8, TCP)[::-1],
    "a fragment at offset 1 of TCP alone": lambda t: [t.piece(8, False, t.syn(t.forbidden)[8:], TCP)],
    "end before the beginning": lambda t: [t.piece(0, True, t.bad()[:24]), t.piece(0, False, t.bad())],
    "overlap of the header": lambda t: [t.piece(0, True, t.bad(32)), t.piece(8, False, t.bad()[8:])],
    "empty fragments": lambda t: [t.piece(0, True, b""), t.piece(8, False, b""), *t.pieces(t.bad())],
    "a single fragment with an offset": lambda t: [t.piece(65_528, False, t.bad()[:7])],
    "past the end of a packet": lambda t: [*t.pieces(t.bad())[:2], t.piece(65_528, False, t.bad())],
    "reserved flag": lambda t: [t.whole(t.bad(), word=0x8000) if not t.six else t.piece(6, False, t.bad())],
    "SCTP": of_protocol(SCTP),
    "DCCP": of_protocol(DCCP),
    "UDP-Lite": of_protocol(UDPLITE),
    "ESP": of_protocol(50),
    "GRE": of_protocol(47),
    "an experimental protocol": of_protocol(253),
    "IPv4 inside": lambda t: [t.whole(Try("10.1.1.1", "10.1.1.2", 1, 2, 3).whole(t.bad()), 4)],
    "IPv6 inside": lambda t: [t.whole(Try("2001:db8::1", "2001:db8::2", 1, 2, 3).whole(t.bad()), 41)],
    "longer by its header": lying(8),
    "shorter by its header": lying(-60),
    "no room for a transport header": lying(-62),
    "UDP longer than it is": long_udp(600),
    "UDP shorter than its header": long_udp(4),
    "UDP of length 0": long_udp(0),
    "UDP with other bytes behind": long_udp(20),
    "an error about a datagram that never was": error_about(lambda t: t.whole(t.bad())),
    "an error that quotes too little": error_about(lambda t: t.whole(t.bad())[:-60]),
    "an error about a later fragment": error_about(lambda t: t.piece(64, False, t.bad())),
    "an error about an error": error_about(lambda t: error_about(lambda u: u.whole(u.bad()))(t)[0]),
    "version 5": word(0x50),
    "version 0": word(0),
}
FOUR: dict[str, Case] = {
    "header of 16 bytes": word(0x44),
    "header beyond the packet": word(0x4F),
    "loose source route": with_options(bytes([131, 7, 4, 10, 1, 1, 1, 0])),
    "strict source route": with_options(bytes([137, 7, 4, 10, 1, 1, 1, 0])),
    "router alert": with_options(bytes([148, 4, 0, 0])),
    "an option without length": with_options(bytes([7, 0, 0, 0])),
    "40 bytes of options": with_options(bytes([1]) * 40),
    "wrong checksum": lambda t: [t.whole(t.bad())[:10] + b"\x12\x34" + t.whole(t.bad())[12:]],
}
SIX: dict[str, Case] = {
    "hop-by-hop options": behind(0),
    "destination options": behind(60),
    "destination options twice": behind(60, 60),
    "hop-by-hop and destination options": behind(0, 60),
    "routing header type 0": behind(43, data=[bytes([0, 0]) + bytes(4)]),
    "routing header type 2": behind(43, data=[bytes([2, 0]) + bytes(4)]),
    "routing header type 4": behind(43, data=[bytes([4, 0]) + bytes(4)]),
    "routing header with segments left": behind(43, data=[bytes([253, 1]) + bytes(4)]),
    "authentication header": behind(51, data=[bytes(14)]),
    "mobility header": behind(135),
    "host identity": behind(139),
    "shim6": behind(140),
    "no next header": behind(60, 59),
    "all of them": behind(0, 60, 43, 51, 60, data=[PADDING, PADDING, b"\2\0" + bytes(4), bytes(14)]),
    "hop-by-hop options later": behind(60, 0),
    "hop-by-hop options twice": behind(0, 0),
    "nine headers": behind(*[60] * 9),
    "300 bytes of options": behind(60, data=[bytes(302)]),
    "a header longer than the packet": lambda t: [t.whole(bytes([UDP, 200]) + t.bad(), 60)],
    "jumbogram": jumbogram,
    "atomic fragment": lambda t: [t.piece(0, False, t.bad())],
    "atomic fragment behind options": lambda t: [
        t.whole(bytes([44, 0, 1, 4, 0, 0, 0, 0]) + t.piece(0, False, t.bad())[40:], 60)
    ],
    "options in the first fragment": lambda t: t.pieces(bytes([UDP, 0, 1, 4, 0, 0, 0, 0]) + t.bad(), 24, 60),
    "ports behind the first fragment": lambda t: t.pieces(bytes([UDP, 2, 1, 20]) + bytes(20) + t.bad(), 24, 60),
    "another protocol in the later fragments": lambda t: [
        t.piece(0, True, t.bad()[:24], UDP), t.piece(24, False, t.bad()[24:], 59)
    ],
}  # fmt: skip


def smuggled(*parts: Callable[[Try], bytes]) -> Case:
    return lambda t: [part(t) for part in parts]


SMUGGLED: dict[str, Case] = {
    "ports that change": smuggled(
        lambda t: t.piece(0, True, t.good(32)[:24]), lambda t: t.piece(0, True, t.bad()[:24]),
        lambda t: t.piece(24, False, t.bad()[24:])),
    "ports that change back": smuggled(
        lambda t: t.piece(0, True, t.bad()[:24]), lambda t: t.piece(0, True, t.good(32)[:24]),
        lambda t: t.piece(24, False, t.bad()[24:])),
    "ports of a fragment that ends": smuggled(
        lambda t: t.piece(0, True, t.good(32)[:24]), lambda t: t.piece(0, False, t.bad())),
    "a header at offset 8": smuggled(
        lambda t: t.piece(0, True, t.good(64)[:48]), lambda t: t.piece(8, False, t.bad())),
    "first of one, rest of another": smuggled(
        lambda t: t.piece(0, True, t.good()[:24]), *[lambda t, i=i: t.pieces(t.bad())[i] for i in (1, 2, 0)]),
    "rest, then a first that may": smuggled(
        lambda t: t.pieces(t.bad())[1], lambda t: t.pieces(t.bad())[2], lambda t: t.pieces(t.bad())[0],
        lambda t: t.piece(0, True, t.good()[:24])),
    "rest of another protocol": smuggled(
        lambda t: t.piece(0, True, t.good()[:24]), lambda t: t.piece(24, True, t.bad()[24:48], SCTP),
        lambda t: t.piece(0, False, t.bad()[:24], SCTP)),
    "a datagram behind the packet": lambda t: [t.whole(t.good()) + t.whole(t.bad())],
    "a datagram behind the fragment": lambda t: [t.piece(0, True, t.good()[:24]) + t.whole(t.bad())],
    "nothing but a first fragment": lambda t: [t.piece(0, True, t.good()[:24])],
}  # fmt: skip
SMUGGLED_SIX: dict[str, Case] = {
    # The options make the first fragment's port lie at offset 8, and again, once it has gone, somewhere else.
    "options that move the port": lambda t: [
        t.piece(0, True, bytes([UDP, 0, 1, 4, 0, 0, 0, 0]) + t.good()[:16], 60),
        t.piece(8, False, t.bad(), 60),
        t.piece(8, False, t.bad(), 60),
        t.piece(0, True, bytes([UDP, 0, 1, 4, 0, 0, 0, 0]), 60),
        t.piece(0, True, bytes([UDP, 0, 1, 4, 0, 0, 0, 0]) + t.good()[:8], 60),
    ],
    "an atomic fragment of the same number": lambda t: [
        t.piece(0, True, t.good()[:24]), t.piece(0, False, t.bad()), t.piece(24, False, t.bad()[24:]),
    ],
}  # fmt: skip
