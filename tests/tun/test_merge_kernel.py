"""The kernel as the twin: it cuts our superframes while forwarding them and has to give back what came in."""

import os
import select
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tun.merging import chain, normal
from tests.tun.packets import ACK, ECE, PSH, TCP, UDP, Packet
from tun.batch import ALL_FEATURES, write_merged
from tun.checksum import checksum, finish
from tun.device import Device, create_in_netns
from tun.netns import run_in_netns
from tun.offload import Features
from tun.split import split
from tun.vnet import GSO_NONE, VNET_NEEDS_CSUM, VnetHeader

pytestmark = pytest.mark.root

BOTH = [(4, TCP), (4, UDP), (6, TCP), (6, UDP)]
SETTINGS = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/rp_filter": "0"}


def configure() -> None:
    for name, value in SETTINGS.items():
        Path("/proc/sys/net", name).write_text(value)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"fabtest-merge-{os.getpid()}"
    ip("netns", "add", name)
    try:
        run_in_netns(f"/run/netns/{name}", configure)
        yield name
    finally:
        ip("netns", "del", name)


def device(netns: str, name: str, features: Features, *routes: str) -> Device:
    made = create_in_netns(f"/run/netns/{netns}", name, allowed=features, mtu=1450, up=True)
    for route in routes:
        ip("-n", netns, "route", "add", route, "dev", name)
    return made


def read_packets(fd: int, count: int) -> list[bytes]:
    """Packets forwarded to the device, superframes cut, partial checksums finished; up to `count`, for at most 5 s."""
    packets: list[bytes] = []
    deadline = time.monotonic() + 5
    while len(packets) < count and select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data = os.read(fd, 65545)
        header, frame = VnetHeader.parse(data), data[10:]
        if frame[0] >> 4 == 6 and frame[8] != 0x20:
            continue  # the kernel's own link-local traffic
        if header.gso_type != GSO_NONE:
            packets += split(frame, header)
        elif header.flags & VNET_NEEDS_CSUM:
            packets.append(finish(frame, header.csum_start, header.csum_offset))
        else:
            packets.append(frame)
    return packets


def forwarded(packet: Packet) -> bytes:
    check = "full" if packet.check == "partial" else packet.check
    return replace(packet, ttl=packet.ttl - 1, check=check).build()


def traffic(family: int, protocol: int) -> list[Packet]:
    packets = chain(Packet(family, protocol, os.urandom(1000)), 20)
    packets.append(packets[-1].next(payload=b"short", flags=ACK | PSH))
    packets += chain(packets[-1].next(flags=ACK | ECE, payload=bytes(200)), 3)
    packets.append(packets[-1].next(check="bad"))
    packets += [replace(p, check="partial") for p in chain(packets[-1].next(payload=os.urandom(600), check="full"), 3)]
    return packets


@pytest.mark.parametrize(("family", "protocol"), BOTH)
@pytest.mark.parametrize("features", [Features.NONE, Features.ALL])
def test_kernel_gives_back_what_was_merged(netns: str, family: int, protocol: int, features: Features) -> None:
    packets = traffic(family, protocol)
    with (
        device(netns, "in0", Features.ALL, "192.0.2.1/32", "2001:db8::1/128") as near,
        device(netns, "out0", features, "192.0.2.2/32", "2001:db8::2/128") as far,
    ):
        counters = write_merged(near.fds[0], [p.build() for p in packets], features=int(near.features))
        seen = read_packets(far.fds[0], len(packets))
    assert (counters.frames, counters.bad_checksum) == (len(packets), 1)
    assert counters.errors_again == counters.errors_down == counters.errors_gone == counters.errors_other == 0
    assert counters.merged > 20 or near.features != ALL_FEATURES  # Linux before 6.2 takes no UDP superframes
    assert list(map(normal, seen)) == [normal(forwarded(p)) for p in packets]
    assert family == 6 or all(checksum(frame[:20]) == 0 for frame in seen)
