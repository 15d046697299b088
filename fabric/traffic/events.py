"""A descriptor that becomes readable when anybody in this network namespace changed the ruleset, and who it was."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from fabric.traffic.messages import NETLINK_NETFILTER
from fabric.traffic.nft import NEWGEN, generation_of

NFNLGRP_NFTABLES = 7
SO_ATTACH_FILTER = 26
READS_AT_ONCE = 64
LOAD_HALF_ABSOLUTE, JUMP_EQUAL, RETURN = 0x28, 0x15, 0x06
"""Classic BPF (linux/bpf_common.h): BPF_LD|BPF_H|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K."""
TYPE_OFFSET = 4
"""Of nlmsg_type in struct nlmsghdr."""


class GenerationEvents:
    """A socket that gets one short message for each transaction.

    The multicast group carries every table, chain and rule that changes, which a service proxy does by the thousand; a
    filter in the kernel lets through only what ends each transaction: its number and the name of who made it.
    `receive_buffer` in bytes, as given to SO_RCVBUF: a message takes about a kilobyte of it.
    """

    def __init__(self, receive_buffer: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self._attach_filter()
            self._socket.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def drain(self) -> tuple[dict[int, str], int]:
        """(generation number to the name of the program that made it, overruns) of what is waiting. Bounded.

        An overrun (ENOBUFS) says that messages were lost; the socket goes on.
        """
        generations: dict[int, str] = {}
        overruns = 0
        for _ in range(READS_AT_ONCE):
            try:
                number, name = generation_of(self._socket.recv(4096))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                overruns += 1
                continue
            generations[number] = name
        return generations, overruns

    def _attach_filter(self) -> None:
        # The filter reads two bytes in network order, the kernel writes the type in host order.
        wanted = int.from_bytes(struct.pack("=H", NEWGEN), "big")
        program = [
            (LOAD_HALF_ABSOLUTE, 0, 0, TYPE_OFFSET),
            (JUMP_EQUAL, 0, 1, wanted),
            (RETURN, 0, 0, 0xFFFFFFFF),
            (RETURN, 0, 0, 0),
        ]
        instructions = b"".join(struct.pack("=HBBI", *each) for each in program)
        buffer = ctypes.create_string_buffer(instructions, len(instructions))
        self._socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(buffer))
        )
