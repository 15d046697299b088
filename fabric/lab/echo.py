"""ICMP and ICMPv6 echo over raw sockets, so that the lab needs no `ping` package. Needs root.

Limits: one probe size and one interval for all targets; a duplicated answer counts once; replies are matched by
identifier and sequence number (RFC 792, RFC 4443 section 4).
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

HEADER = struct.Struct("!BBHHH")
REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
REPLY = {socket.AF_INET: 0, socket.AF_INET6: 129}
ICMPV6_FILTER = 1
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO, PMTUDISC_DONT = 10, 23, 2, 0


@dataclass(slots=True)
class Answer:
    """What one target answered: `sent` probes and the round trips of the answered ones in seconds."""

    target: str
    sent: int = 0
    times: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def reachable(self) -> bool:
        """Whether anything came back."""
        return bool(self.times)


def family_of(address: str) -> socket.AddressFamily:
    """Address family of a numeric address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071); ICMPv6 leaves it to the kernel."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - ((total & 0xFFFF) + (total >> 16))


def request(family: int, identifier: int, sequence: int, size: int) -> bytes:
    """An echo request with `size` bytes of payload."""
    payload = bytes(i & 0xFF for i in range(size))
    head = HEADER.pack(REQUEST[socket.AddressFamily(family)], 0, 0, identifier, sequence)
    check = checksum(head + payload) if family == socket.AF_INET else 0
    return HEADER.pack(REQUEST[socket.AddressFamily(family)], 0, check, identifier, sequence) + payload


def parse_reply(family: int, packet: bytes) -> tuple[int, int] | None:
    """Identifier and sequence number of an echo reply as a raw socket gives it, None for anything else."""
    offset = (packet[0] & 0x0F) * 4 if family == socket.AF_INET and packet else 0
    if len(packet) < offset + HEADER.size:
        return None
    kind, code, _, identifier, sequence = HEADER.unpack_from(packet, offset)
    return (identifier, sequence) if (kind, code) == (REPLY[socket.AddressFamily(family)], 0) else None


def open_socket(family: int, dont_fragment: bool) -> socket.socket:
    """A non-blocking raw ICMP socket; without `dont_fragment` big probes may be fragmented by the sender."""
    discover = PMTUDISC_DO if dont_fragment else PMTUDISC_DONT
    if family == socket.AF_INET6:
        raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        passed = bytearray(b"\xff" * 32)
        passed[REPLY[socket.AF_INET6] // 32 * 4] &= 0xFF ^ (1 << (REPLY[socket.AF_INET6] % 32))
        raw.setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, bytes(passed))
        raw.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, discover)
    else:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        raw.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)
    raw.setblocking(False)
    return raw


class Pinger:
    """Probes several targets of both families at once and gathers the answers."""

    def __init__(self, targets: Sequence[str], size: int = 56, dont_fragment: bool = False) -> None:
        self.answers = {target: Answer(target) for target in targets}
        self._size = size
        self._identifier = os.getpid() & 0xFFFF
        self._sequence = 0
        self._waiting: dict[int, tuple[str, float]] = {}
        self._sockets = {
            family: open_socket(family, dont_fragment) for family in sorted({family_of(target) for target in targets})
        }
        self._selector = selectors.DefaultSelector()
        for family, raw in self._sockets.items():
            self._selector.register(raw, selectors.EVENT_READ, family)

    def close(self) -> None:
        """Close the sockets."""
        self._selector.close()
        for raw in self._sockets.values():
            raw.close()

    def send(self, target: str) -> None:
        """One probe to `target`; a local error (too big, no route) is kept in the answer."""
        family = family_of(target)
        self._sequence = (self._sequence + 1) & 0xFFFF
        packet = request(family, self._identifier, self._sequence, self._size)
        self.answers[target].sent += 1
        self._waiting[self._sequence] = (target, time.monotonic())
        try:
            self._sockets[family].sendto(packet, (target, 0))
        except OSError as error:
            self.answers[target].error = error.strerror or str(error)
            del self._waiting[self._sequence]

    def gather(self, seconds: float, until_all: bool = True) -> None:
        """Take answers for `seconds`, with `until_all` less when nothing is outstanding."""
        deadline = time.monotonic() + seconds
        while self._waiting or not until_all:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            for key, _ in self._selector.select(left):
                self._take(key.data, self._sockets[key.data].recv(65536))

    def _take(self, family: int, packet: bytes) -> None:
        found = parse_reply(family, packet)
        if found is None or found[0] != self._identifier:
            return
        probe = self._waiting.pop(found[1], None)
        if probe is not None:
            self.answers[probe[0]].times.append(time.monotonic() - probe[1])


def ping(
    targets: Sequence[str],
    *,
    count: int = 1,
    interval: float = 0.0,
    timeout: float = 1.0,
    size: int = 56,
    dont_fragment: bool = False,
) -> list[Answer]:
    """Ping every target `count` times; one Answer per target in order.

    The first round goes to all targets at once. In later rounds targets that have answered get their probe one by
    one, so that those round trips do not contain each other, and the silent ones all at once. `timeout` bounds each
    wait; `interval` is the pause between rounds.
    """
    pinger = Pinger(targets, size, dont_fragment)
    try:
        for round_number in range(count):
            answered = [target for target in targets if pinger.answers[target].reachable]
            for target in targets:
                if target not in answered:
                    pinger.send(target)
            pinger.gather(timeout)
            for target in answered:
                pinger.send(target)
                pinger.gather(timeout)
            if interval and round_number < count - 1:
                pinger.gather(interval, until_all=False)
        return [pinger.answers[target] for target in targets]
    finally:
        pinger.close()
