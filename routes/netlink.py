"""One conversation with the kernel over rtnetlink: requests in, answers or errors out. Synchronous and short-lived.

Messages come encoded (wire.py), or are pyroute2's (codec.py), which is not loaded here. The talking is ours, for three
reasons measured with 0.9.7. AsyncIPRoute cannot run under uvloop (`create_datagram_endpoint` refuses AF_NETLINK
sockets). IPRoute runs a private asyncio loop in each thread and waits for one answer at a time. And a batch of requests
sent at once needs one system call for 64 of them, which is what programming 1,000 peers wants.

Limits: not for two threads at once; opened in the network namespace of the calling thread.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

from routes.wire import HEADER, explanation

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x001, 0x004, 0x010
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND, NLM_F_DUMP = 0x100, 0x200, 0x400, 0x800, 0x300
SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12

ERROR_CODE = struct.Struct("=i")
BATCH = 64
DUMP_ATTEMPTS = 3
TIMEOUT = 5.0
"""Seconds without an answer after which the kernel is held to be stuck (something keeps its rtnl lock)."""

Message = Any
"""What follows the nlmsghdr, as bytes; or a pyroute2 message: dynamic by design, so no type says more."""
Request = tuple[int, int, Message]
"""(message type, extra flags, message)."""


class Netlink:
    """An rtnetlink socket; a context manager. Raises OSError with the kernel's own explanation where it gives one.

    `protocol` is for subclasses that talk to another part of the kernel. `port` is this end's number, by which the
    kernel's announcements of what was asked for here can be told from others (0: the kernel chooses).
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE, port: int = 0) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(TIMEOUT)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            try:
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            except OSError:  # kernels before 4.20 explain and filter less; our own filters do not rely on it
                continue
        self._socket.bind((port, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation; what the kernel keeps for as long as the socket lives goes too."""
        self._socket.close()

    def dump(self, kind: int, message: Message) -> Iterator[tuple[int, bytes]]:
        """(message type, whole message) of every object; a dump the kernel calls inconsistent is repeated.

        After three inconsistent dumps the last one is used: what it missed is found by the next reconcile.
        """
        for _ in range(DUMP_ATTEMPTS):
            answers, interrupted = self._dump_once(kind, message)
            if not interrupted:
                break
        yield from answers

    def ask(self, kind: int, message: Message) -> bytes:
        """The one message that answers a question about one object. Raises OSError, ENODEV and the like included."""
        sequence = self._send([(kind, 0, message)])
        for _, _, answer_sequence, data in self._receive():
            if answer_sequence == sequence:
                raise_error(data)
                return data
        raise OSError(errno.EPROTO, "the kernel gave no answer")

    def ask_each(self, kind: int, messages: Iterable[Message]) -> list[bytes | OSError]:
        """The answer to each of many questions, in order; where there is none, why."""
        answers = self._exchange((kind, 0, message) for message in messages)
        return [(error_of(data) or data) if data else lost() for data in answers]

    def perform(self, requests: Iterable[Request]) -> list[OSError | None]:
        """Do all `requests` in order; one result each, None for done. One failing does not keep the others back."""
        acknowledged = ((kind, flags | NLM_F_ACK, message) for kind, flags, message in requests)
        return [error_of(data) if data else lost() for data in self._exchange(acknowledged)]

    def _exchange(self, requests: Iterable[Request]) -> Iterator[bytes | None]:
        """The message that answers each request, None where it was lost; BATCH requests are on their way at a time."""
        pending = iter(requests)
        while batch := list(islice(pending, BATCH)):
            yield from self._exchange_batch(batch)

    def _exchange_batch(self, batch: list[Request]) -> Sequence[bytes | None]:
        first = self._send(batch)
        answers: list[bytes | None] = [None] * len(batch)
        waiting = len(batch)
        while waiting:
            try:
                for _, _, sequence, data in self._receive():
                    if 0 <= sequence - first < len(batch):
                        answers[sequence - first] = data
                        waiting -= 1
            except OSError:  # answers dropped or late: those requests count as failed and are tried again
                break
        return answers

    def _dump_once(self, kind: int, message: Message) -> tuple[list[tuple[int, bytes]], bool]:
        sequence = self._send([(kind, NLM_F_DUMP, message)])
        answers: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            for answer_kind, flags, answer_sequence, data in self._receive():
                if answer_sequence != sequence:
                    continue
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if answer_kind in (NLMSG_DONE, NLMSG_ERROR):
                    raise_error(data)
                    return answers, interrupted
                answers.append((answer_kind, data))

    def _send(self, requests: list[Request]) -> int:
        """Send `requests` at once and return the sequence number of the first."""
        first = self._sequence + 1
        parts = []
        for kind, flags, message in requests:
            self._sequence += 1
            parts.append(encoded(kind, flags | NLM_F_REQUEST, self._sequence, message))
        self._socket.send(b"".join(parts))
        return first

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(type, flags, sequence number, whole message) of each message in one datagram."""
        data = self._socket.recv(1 << 16)
        offset = 0
        while offset + HEADER.size <= len(data):
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
            yield kind, flags, sequence, data[offset : offset + length]
            offset += (length + 3) & ~3


def encoded(kind: int, flags: int, sequence: int, message: Message) -> bytes:
    if isinstance(message, bytes):
        return HEADER.pack(HEADER.size + len(message), kind, flags, sequence, 0) + message
    message["header"].update(type=kind, flags=flags, sequence_number=sequence, pid=0)
    message.reset()
    message.encode()
    return bytes(message.data)


def lost() -> OSError:
    return OSError(errno.ENOBUFS, "the kernel's answer was lost")


def error_of(data: bytes) -> OSError | None:
    """The error that an NLMSG_ERROR or NLMSG_DONE message reports, None for success."""
    _, kind, _, _, _ = HEADER.unpack_from(data)
    code = -ERROR_CODE.unpack_from(data, HEADER.size)[0] if len(data) >= HEADER.size + ERROR_CODE.size else 0
    if kind not in (NLMSG_ERROR, NLMSG_DONE) or code == 0:
        return None
    words = explanation(data) if kind == NLMSG_ERROR else ""
    return OSError(code, words or os.strerror(code))


def raise_error(data: bytes) -> None:
    error = error_of(data)
    if error is not None:
        try:
            raise error
        finally:
            error = None  # its traceback has this frame: no cycle, or all that the callers hold waits for the collector
