"""Packets that try to get past a policy, one named case each: the 41 captures of suricata-verify's `tests/ipv6-evasion`
(made with THC-IPv6's `fragmentation6`, `denial6`, `covert_send6`, `toobig6`, `kill_router6`, `smurf6` and `rsmurf6`) by
what is in them.

Nothing here is captured: each case builds the same offsets, flags, lengths and header chains between the ends that it
is given. `LEAK` is in every byte string that an attack wants to see arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_RA,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.packet import Packet, Raw

LEAK, OTHER = b"LEAK-ONE", b"LEAK-TWO"
NUMBER = 0xFACE0000


@dataclass(frozen=True, slots=True)
class Attack:
    """Who attacks whom with what: `upper` builds the transport packet of a length that is forbidden."""

    source: str
    target: str
    kind: str  # "icmp" or "udp"
    port: int
    number: int = 1

    @property
    def protocol(self) -> int:
        return 58 if self.kind == "icmp" else 17

    def head(self, hops: int = 64, **more: int) -> Packet:
        return IPv6(src=self.source, dst=self.target, hlim=hops, **more)

    def upper(self, length: int, fill: bytes = LEAK) -> bytes:
        """The forbidden packet with a correct checksum."""
        body = (fill * (length // len(fill) + 1))[: max(length - 8, 0)]
        if self.kind == "icmp":
            whole = bytes(self.head() / ICMPv6EchoRequest(id=0xFACE, seq=0xBABE, data=body))
        else:
            whole = bytes(self.head() / UDP(sport=40_000 + self.number % 20_000, dport=self.port) / Raw(body))
        return whole[40:]

    def piece(self, offset: int, more: bool, data: bytes, hops: int = 64, ident: int = 0, nh: int = 0) -> bytes:
        """One fragment."""
        header = IPv6ExtHdrFragment(
            nh=nh or self.protocol, offset=offset // 8, m=int(more), id=NUMBER ^ self.number ^ ident << 16
        )
        return bytes(self.head(hops, nh=44) / header / Raw(data))


Case = Callable[[Attack], list[bytes]]


def fill(text: bytes, length: int) -> bytes:
    return (text * (length // len(text) + 1))[:length]


def twice(first: bytes, second: bytes, hops: tuple[int, int] = (64, 64)) -> Case:
    """The middle of three fragments comes twice, with other bytes."""

    def build(a: Attack) -> list[bytes]:
        message = a.upper(1208)
        return [
            a.piece(0, True, message[:408]),
            a.piece(408, True, fill(first, 400), hops[0]),
            a.piece(408, True, fill(second, 400), hops[1]),
            a.piece(808, False, message[808:]),
        ]

    return build


def overlapping_end(a: Attack) -> list[bytes]:
    message = a.upper(1208)
    return [a.piece(0, True, message[:408]), a.piece(408, True, message[408:808]), a.piece(680, False, message[680:])]


def overlapping_middle(a: Attack) -> list[bytes]:
    message = a.upper(1208)
    return [
        a.piece(0, True, message[:408]),
        a.piece(808, False, fill(OTHER, 400)),
        a.piece(408, True, message[408:936]),
    ]


def nested(count: int, data: int) -> Case:
    """So many fragment headers in a row, each of a whole packet."""

    def build(a: Attack) -> list[bytes]:
        headers = b"".join(
            bytes(IPv6ExtHdrFragment(nh=44 if i + 1 < count else a.protocol, id=(i << 16) + a.number))
            for i in range(count)
        )
        return [bytes(a.head(255, nh=44) / Raw(headers + a.upper(data)))]

    return build


def too_long(first: int, step: int, last_offset: int, last: int, text: bytes = LEAK, small: int = 0) -> Case:
    """Fragments whose sum is more than a packet can be."""

    def build(a: Attack) -> list[bytes]:
        made = [a.piece(0, True, a.upper(first))]
        offset = first
        while offset + step < last_offset:
            made.append(a.piece(offset, True, fill(text, step)))
            offset += step
        made.append(a.piece(offset, True, fill(text, small or last_offset - offset)))
        return [*made, a.piece(last_offset, False, fill(text, last))]

    return build


def holes(second: int, last: int) -> Case:
    """A fragment that is no multiple of 8 although more follow, and holes around it."""

    def build(a: Attack) -> list[bytes]:
        return [
            a.piece(0, True, a.upper(408)), a.piece(second, True, fill(LEAK, 175)),
            a.piece(last, False, fill(LEAK, 400)),
        ]  # fmt: skip

    return build


def ended_by(offset: int, data: bytes) -> Case:
    """Two fragments and then an end that lies in the first one."""

    def build(a: Attack) -> list[bytes]:
        message = a.upper(808)
        return [
            a.piece(0, True, message[:408]), a.piece(408, True, message[408:]), a.piece(offset, False, data),
        ]  # fmt: skip

    return build


def atomic(data: bytes) -> Case:
    """A packet that is its only fragment, of TCP, too short for it."""
    return lambda a: [a.piece(0, False, data, nh=6)]


def inside_fragments(depth: int) -> Case:
    """A fragmented packet whose payload is a fragment of another packet, which goes on outside."""

    def build(a: Attack) -> list[bytes]:
        message = a.upper(200)
        idents = range(1, depth + 1)
        inner = message
        for ident in reversed(idents[1:]):
            nh = a.protocol if ident == depth else 44
            inner = bytes(IPv6ExtHdrFragment(nh=nh, offset=0, m=1, id=NUMBER ^ a.number ^ ident << 16)) + inner
        made = [a.piece(0, True, inner, ident=1, nh=44), a.piece(len(inner), False, fill(LEAK, 200), ident=1)]
        middle = [a.piece(len(inner) + 192, False, fill(LEAK, 200), ident=ident) for ident in idents[1:-1]]
        if depth == 2:
            middle = [a.piece(400, True, fill(LEAK, 200), ident=2)]
        return [*made, *middle, a.piece(600, False, fill(LEAK, 608), ident=depth)]

    return build


def options(kind: type[Packet], count: int, data: int = 0) -> Case:
    """Very many options that nobody knows, then the packet."""

    def build(a: Attack) -> list[bytes]:
        body = b"".join(bytes([0x10 + i % 14, data]) + bytes(data) for i in range(count))
        body += bytes(-(len(body) + 2) % 8)
        header = bytes([a.protocol, (len(body) + 2) // 8 - 1]) + body
        return [bytes(a.head(254, nh=0 if kind is IPv6ExtHdrHopByHop else 60) / Raw(header + a.upper(24)))]

    return build


def headers(*kinds: type[Packet]) -> Case:
    """Headers of these kinds one after the other."""

    def build(a: Attack) -> list[bytes]:
        packet = a.head(255)
        for kind in kinds:
            packet /= kind(options=[PadN(optdata=bytes(4))])
        whole = bytes(packet / Raw(a.upper(24)))
        at = 6 if not kinds else 40 + 8 * (len(kinds) - 1)
        return [whole[:at] + bytes([a.protocol]) + whole[at + 1 :]]

    return build


def authenticated(a: Attack) -> list[bytes]:
    """An authentication header of 16 bytes in front, 64 times."""
    header = bytes([a.protocol, 2]) + bytes(14)
    return [bytes(a.head(255, nh=51) / Raw(header + a.upper(24)))] * 64


def many_first_fragments(a: Attack) -> list[bytes]:
    """First fragments without end, each of another packet, behind hop-by-hop options."""
    option = bytes([44, 0, 5, 2, 0, 0, 0, 0])
    return [
        bytes(a.head(255, nh=0) / Raw(option + bytes(a.piece(0, True, a.upper(24), ident=i)[40:]))) for i in range(200)
    ]


def atomic_whole(a: Attack) -> list[bytes]:
    return [a.piece(0, False, a.upper(1208), 255)]


def too_big(a: Attack) -> list[bytes]:
    """A question, and then an error about an answer that was never sent."""
    answer = IPv6(src=a.target, dst=a.source) / ICMPv6EchoRequest(type=129, id=0xFACE, data=fill(LEAK, 1100))
    return [
        bytes(a.head(255, nh=a.protocol) / Raw(a.upper(1161))),
        bytes(a.head(255) / ICMPv6PacketTooBig(mtu=1200) / Raw(bytes(answer)[:1161])),
    ]


def kill_router(a: Attack) -> list[bytes]:
    """The router says that it is none, to all and to one."""
    notice = ICMPv6ND_RA(routerlifetime=0, prf=1) / Raw(b"\xfd\x02" + LEAK + bytes(6))
    return [
        bytes(IPv6(src=source, dst=target, hlim=255) / notice)
        for source in ("fe80::1", a.source)
        for target in ("ff02::1", a.target)
    ]


def smurf(a: Attack) -> list[bytes]:
    """A question to all in the name of the victim."""
    echo = ICMPv6EchoRequest(id=0xFACE, data=LEAK)
    return [bytes(IPv6(src=a.target, dst=target, hlim=255) / echo) for target in ("ff02::1", "ff02::2", a.target)]


def reverse_smurf(a: Attack) -> list[bytes]:
    """A question in the name of all."""
    echo = ICMPv6EchoRequest(id=0xFACE, data=LEAK)
    return [bytes(IPv6(src="ff02::1", dst=target, hlim=255) / echo) for target in ("ff02::1", a.target)]


CAPTURES: dict[str, Case] = {
    "atomic-fragments-toobig": too_big,
    "covert-dstopts": options(IPv6ExtHdrDestOpt, 5, 250),
    "dos-with-ext-headers-1": options(IPv6ExtHdrHopByHop, 600),
    "dos-with-ext-headers-2": options(IPv6ExtHdrDestOpt, 600),
    "dos-with-ext-headers-3": headers(IPv6ExtHdrHopByHop, *[IPv6ExtHdrDestOpt] * 150),
    "dos-with-ext-headers-4": headers(*[IPv6ExtHdrDestOpt] * 150),
    "dos-with-ext-headers-5": authenticated,
    "dos-with-ext-headers-6": many_first_fragments,
    "dos-with-ext-headers-7": headers(*[IPv6ExtHdrHopByHop] * 150),
    "kill-router-gateway": kill_router,
    "malformed-fragments-1": twice(OTHER, LEAK, (1, 64)),
    "malformed-fragments-2": twice(LEAK, OTHER, (64, 1)),
    "malformed-fragments-3": twice(LEAK, OTHER),
    "malformed-fragments-4": twice(OTHER, LEAK),
    "malformed-fragments-6": overlapping_end,
    "malformed-fragments-7": lambda a: overlapping_end(a) + overlapping_end(a)[2:],
    "malformed-fragments-8": overlapping_middle,
    "malformed-fragments-9": atomic_whole,
    "malformed-fragments-10": nested(2, 1208),
    "malformed-fragments-11": nested(137, 128),
    "malformed-fragments-12": nested(160, 16),
    "malformed-fragments-15": too_long(1232, 1232, 65296, 247),
    "malformed-fragments-16": too_long(1376, 1376, 65512, 1376),
    "malformed-fragments-17": twice(OTHER, LEAK, (64, 64)),
    "malformed-fragments-18": twice(LEAK, OTHER, (64, 64)),
    "malformed-fragments-22": holes(1400, 2800),
    "malformed-fragments-23": holes(4400, 8880),
    "malformed-fragments-24": holes(16400, 32800),
    "malformed-fragments-25": atomic(b""),
    "malformed-fragments-26": atomic(b"\0"),
    "malformed-fragments-27": ended_by(0, b""),
    "malformed-fragments-28": ended_by(0, b"\x80"),
    "malformed-fragments-29": ended_by(8, b"L"),
    "malformed-fragments-30": too_long(408, 1376, 65528, 7),
    "malformed-fragments-31": too_long(408, 1376, 65528, 8),
    "malformed-fragments-32": too_long(408, 1376, 65528, 9, small=174),
    "malformed-fragments-33": too_long(408, 1376, 65528, 1376, small=174),
    "malformed-fragments-35": inside_fragments(2),
    "malformed-fragments-36": inside_fragments(3),
    "rsmurf": reverse_smurf,
    "smurf": smurf,
}
