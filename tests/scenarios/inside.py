"""Sockets and files of other network namespaces, used from the test's own process.

A socket stays in the namespace where it was made, so a thread enters, opens it, and the test uses it from outside.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tun.netns import run_in_netns

T = TypeVar("T")
NETNS_DIR = Path("/run/netns")

IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
PMTUDISC_DONT, PMTUDISC_DO = 0, 2
IP_RECVERR, IPV6_RECVERR = 11, 25
MSG_ERRQUEUE = 0x2000
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32


def family_of(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def command_lines() -> list[str]:
    """Of all processes, words separated by spaces."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def call(netns: str, function: Callable[[], T]) -> T:
    """`function()` in the namespace of that name."""
    return run_in_netns(NETNS_DIR / netns, function)


def open_socket(netns: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of that namespace."""
    return call(netns, lambda: socket.socket(family, kind, protocol))


def open_udp(netns: str, ip: str, port: int = 0, *, fragment: bool | None = None) -> socket.socket:
    """A bound datagram socket with room for a burst; `fragment` True never sets DF, False always does."""
    made = open_socket(netns, family_of(ip), socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
    made.settimeout(5)
    if fragment is not None:
        set_discover(made, PMTUDISC_DONT if fragment else PMTUDISC_DO)
    made.bind((ip, port))
    return made


def set_discover(sock: socket.socket, how: int) -> None:
    """Path MTU discovery of a socket: whether DF is set."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, how)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, how)


def listen(netns: str, ip: str) -> socket.socket:
    """A listening stream socket on a free port."""
    made = open_socket(netns, family_of(ip), socket.SOCK_STREAM)
    made.settimeout(10)
    made.bind((ip, 0))
    made.listen(8)
    return made


def connect(netns: str, ip: str, port: int, seconds: float = 10.0) -> socket.socket:
    """A connected stream socket."""
    made = open_socket(netns, family_of(ip), socket.SOCK_STREAM)
    made.settimeout(seconds)
    made.connect((ip, port))
    return made


def watch_errors(sock: socket.socket) -> None:
    """Keep ICMP errors about this socket's packets for `error_of`."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def error_of(sock: socket.socket) -> tuple[int, int, int, str] | None:
    """ICMP type, code, MTU and sender of the next error in the queue (struct sock_extended_err); None when empty.

    Errors of this host's own stack (no ICMP involved) come as type 0, code 0.
    """
    try:
        _, control, _, _ = sock.recvmsg(2048, 1024, MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            return None
        raise
    for _level, _kind, data in control:
        _errno, origin, icmp_type, code, _pad, info, _more = struct.unpack_from("=IBBBBII", data)
        offender = ""
        if origin == 2:
            offender = socket.inet_ntop(socket.AF_INET, data[20:24])
        elif origin == 3:
            offender = socket.inet_ntop(socket.AF_INET6, data[24:40])
        return (icmp_type, code, info, offender) if origin in (2, 3) else (0, 0, info, "")
    return None


def ip_json(netns: str, *words: str) -> Any:
    """`ip -j WORDS` in a namespace."""
    done = subprocess.run(["ip", "-n", netns, "-j", *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def ip(netns: str, *words: str) -> None:
    """`ip WORDS` in a namespace."""
    subprocess.run(["ip", "-n", netns, *words], capture_output=True, text=True, check=True)


def links(netns: str) -> set[str]:
    """Names of the devices in a namespace."""
    return {link["ifname"] for link in ip_json(netns, "link", "show")}


def checksum_errors(netns: str) -> dict[str, int]:
    """Every counter of wrong checksums in a namespace that is not zero."""

    def read() -> dict[str, int]:
        found: dict[str, int] = {}
        lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            found |= {names[0] + name: int(value) for name, value in zip(names[1:], values[1:], strict=True)}
        for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines():
            name, value = line.split()
            found[name] = int(value)
        return {name: value for name, value in found.items() if "Csum" in name and value}

    return call(netns, read)


def host_ip(*words: str) -> None:
    """`ip WORDS` in the test's own namespace: for namespaces only, it gets no device."""
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
