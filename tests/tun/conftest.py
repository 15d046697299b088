"""Network namespaces with real devices, and the kernel's side of a device as a packet socket."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import pytest

from tun.device import Device
from tun.netns import run_in_netns
from tun.port import Frame
from tun.vnet import VnetHeader

T = TypeVar("T")

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 3


def wait_for(condition: Callable[[], T | None], seconds: float = 10.0) -> T:
    """The first true result of `condition`; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s: {condition}"
        select.select([], [], [], 0.005)
    assert result is not None
    return result


class Namespace:
    """A named network namespace, without IPv6 so that nothing is sent unasked."""

    def __init__(self) -> None:
        self.name = f"fabtest-{uuid.uuid4().hex[:8]}"
        self.path = f"/run/netns/{self.name}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        for scope in ("all", "default"):
            setting = Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
            if setting.exists():
                self.run(partial(setting.write_text, "1"))

    def run(self, function: Callable[[], T]) -> T:
        return run_in_netns(self.path, function)

    def command(self, *words: str) -> str:
        command = ["ip", "netns", "exec", self.name, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def delete(self) -> None:
        if Path(self.path).exists():
            subprocess.run(["ip", "netns", "del", self.name], check=True)


class PacketPeer:
    """Puts frames into a device's queue and takes what was written to it; same methods as tun.memory.MemoryPeer."""

    def __init__(self, namespace: Namespace, device: Device) -> None:
        self._namespace = namespace
        self._device = device
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = namespace.run(lambda: socket.socket(socket.AF_PACKET, kind, 0))
        self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self._socket.bind((device.name, ETH_P_ALL))

    def inject(self, frame: bytes, header: VnetHeader | None = None) -> None:
        self._socket.send((header or VnetHeader()).emit() + frame)

    def take(self, timeout: float = 0.0) -> Frame | None:
        if not select.select([self._socket], [], [], timeout)[0]:
            return None
        data = self._socket.recv(10 + 65535)
        return VnetHeader.parse(data), data[10:]

    def close(self) -> None:
        """Deletes the device."""
        self._namespace.command("ip", "link", "del", self._device.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@pytest.fixture
def make_namespace() -> Iterator[Callable[[], Namespace]]:
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    yield make
    for namespace in made:
        namespace.delete()


@pytest.fixture
def namespace(make_namespace: Callable[[], Namespace]) -> Namespace:
    return make_namespace()


@pytest.fixture(scope="module")
def shared_namespace() -> Iterator[Namespace]:
    shared = Namespace()
    yield shared
    shared.delete()


def checksum16(data: bytes) -> int:
    """Folded one's-complement sum of big-endian words (RFC 1071), not inverted."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4_frame(protocol: int, transport: bytes, payload: bytes) -> bytes:
    """An IPv4 frame 192.0.2.1 -> 192.0.2.2 with a good header checksum; the transport header is taken as it is."""
    addresses = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2")
    length = 20 + len(transport) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 1, 0x4000, 64, protocol, 0) + addresses
    return head[:10] + struct.pack("!H", checksum16(head) ^ 0xFFFF) + head[12:] + transport + payload


def udp_frame(payload: bytes) -> bytes:
    return ipv4_frame(17, struct.pack("!HHHH", 4000, 9, 8 + len(payload), 0), payload)


def tcp_superframe(payload: bytes, gso_size: int) -> Frame:
    """A TCPv4 superframe as a socket makes it: partial checksum, one header of 40 bytes."""
    pseudo = socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + struct.pack("!HH", 6, 20 + len(payload))
    tcp = struct.pack("!HHIIBBHHH", 4000, 9, 1, 1, 5 << 4, 0x10, 1024, checksum16(pseudo), 0)
    return VnetHeader(1, 1, 40, gso_size, 20, 16), ipv4_frame(6, tcp, payload)
