"""Who floods, and who answers a flood: programs that `flood` runs in pods. They end with their standard input."""

from __future__ import annotations

import argparse
import select
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import Literal, get_args

from tests.scenarios.outsider import ipv4, ones_sum

Kind = Literal["half-open", "unanswered", "answered"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PORT = 8000
ANSWERING = range(9000, 9064)
"""Where datagrams are answered. Below PORT nobody does."""
GRANT = 1000


class Told:
    """What standard input says: a line for GRANT packets more, its end for the end."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.granted = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for _ in sys.stdin:
            self.granted += GRANT
        self.ended.set()

    def wait(self, sent: int) -> bool:
        """Until there may be more than `sent`; False at the end."""
        while self.granted <= sent and not self.ended.wait(0.001):
            pass
        return not self.ended.is_set()


def packets(kind: Kind, source: str, target: str) -> Iterator[bytes]:
    """Each of a new flow."""
    protocol = 6 if kind == "half-open" else 17
    rest = struct.pack("!IIBBHHH", 1, 0, 0x50, 2, 8192, 0, 0) if protocol == 6 else struct.pack("!HH", 8, 0)
    head = ipv4(source, target, bytes(4 + len(rest)), protocol)[:20]
    known = ones_sum(
        ip_address(source).packed + ip_address(target).packed + struct.pack("!HH", protocol, 4 + len(rest)) + rest
    )
    for port in ANSWERING if kind == "answered" else range(1, PORT):
        for sport in range(1024, 65_536):
            body = struct.pack("!HH", sport, port) + rest
            if protocol == 6:  # UDP may go without
                check = ones_sum(struct.pack("!HHH", known, sport, port)) ^ 0xFFFF
                body = body[:16] + struct.pack("!H", check) + body[18:]
            yield head + body


def send(kind: Kind, source: str, target: str, told: Told) -> None:
    """As fast as one socket takes them, as long as they are granted."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as out:
        for sent, packet in enumerate(packets(kind, source, target)):
            if not told.wait(sent):
                return
            with suppress(OSError):
                out.sendto(packet, (target, 0))


def answer(address: str, ended: threading.Event) -> None:
    """Send datagrams back."""
    with ExitStack() as stack:
        poll = select.poll()
        made = {}
        for port in ANSWERING:
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.setblocking(False)
            sock.bind((address, port))
            poll.register(sock, select.POLLIN)
            made[sock.fileno()] = sock
        print("ready", flush=True)
        while not ended.is_set():
            for fd, _ in poll.poll(50):
                with suppress(OSError):
                    while True:
                        data, sender = made[fd].recvfrom(64)
                        made[fd].sendto(data, sender)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--send", nargs=3, metavar=("KIND", "SOURCE", "TARGET"))
    parser.add_argument("--answer", metavar="ADDRESS")
    options = parser.parse_args()
    told = Told()
    if options.answer:
        answer(options.answer, told.ended)
    else:
        print("ready", flush=True)
        send(*options.send, told)


if __name__ == "__main__":
    main()
