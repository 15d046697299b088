"""A node with two pods, the outside and another node's pod, as network namespaces:

    pod1 10.244.1.5  --\\                            /-- eth0 --  outside 192.0.2.100
                        >--  node (10.244.1.1)  ----<
    pod2 10.244.1.6  --/                            \\-- fl0  --  far 10.244.2.7 (10.244.1.0 is the node there)

and the same in IPv6. `fl0` stands for the overlay device. Everything is routed, the node forwards both families.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tests.scenarios import inside

T = TypeVar("T")
NUMBERS = itertools.count()
PODS = {"pod1": ("10.244.1.5", "2001:db8:f4:1::5"), "pod2": ("10.244.1.6", "2001:db8:f4:1::6")}
GATEWAY = ("10.244.1.1", "2001:db8:f4:1::1")
OVERLAY = ("10.244.1.0", "2001:db8:f4:1::")
FAR, FAR_GATEWAY = ("10.244.2.7", "2001:db8:f4:2::7"), ("10.244.2.0", "2001:db8:f4:2::")
NODE, OUTSIDE = ("192.0.2.1", "2001:db8:1::1"), ("192.0.2.100", "2001:db8:1::100")
SNAT = ("192.0.2.200", "2001:db8:1::200")
SYSCTLS = ("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv6.conf.default.accept_dad=0")
FORWARDING = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
PAYLOAD = b"which source do you see?"


def command(netns: str, *words: str, script: str = "") -> str:
    """A command in a namespace; its output."""
    done = subprocess.run(
        ["ip", "netns", "exec", netns, *words], input=script, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"
    return done.stdout


@contextmanager
def namespace(role: str) -> Iterator[str]:
    """A network namespace with loopback up; its name."""
    name = f"fabtest-tr{os.getpid()}-{next(NUMBERS)}-{role}"
    inside.host_ip("netns", "add", name)
    try:
        command(name, "sysctl", "-qw", *SYSCTLS)
        inside.ip(name, "link", "set", "lo", "up")
        yield name
    finally:
        inside.host_ip("netns", "del", name)


@dataclass(frozen=True, slots=True)
class Site:
    """The namespaces by role: node, pod1, pod2, outside, far."""

    names: dict[str, str]

    def call(self, role: str, function: Callable[[], T]) -> T:
        return inside.call(self.names[role], function)

    def command(self, role: str, *words: str, script: str = "") -> str:
        return command(self.names[role], *words, script=script)

    def socket(self, role: str, source: str) -> socket.socket:
        """A datagram socket of `role` at `source` and a free port."""
        return inside.open_udp(self.names[role], source)


@contextmanager
def site() -> Iterator[Site]:
    """The namespaces, addresses and routes above."""
    with ExitStack() as stack:
        roles = ("node", *PODS, "outside", "far")
        made = Site({role: stack.enter_context(namespace(role)) for role in roles})
        made.command("node", "sysctl", "-qw", *FORWARDING)
        for pod, addresses in PODS.items():
            _link(made, pod, addresses, GATEWAY)
        _link(made, "far", FAR, OVERLAY, device="fl0", also=FAR_GATEWAY, onlink=("10.244.2.0/24", "2001:db8:f4:2::/64"))
        _underlay(made)
        yield made


def _link(
    made: Site,
    role: str,
    addresses: tuple[str, str],
    gateway: tuple[str, str],
    device: str = "",
    also: tuple[str, str] | None = None,
    onlink: tuple[str, str] | None = None,
) -> None:
    """A pair of devices between the node and `role`, whose default routes go through `gateway`, an address there."""
    node, other, device = made.names["node"], made.names[role], device or role
    inside.ip(node, "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", other)
    inside.ip(node, "link", "set", device, "up")
    inside.ip(other, "link", "set", "eth0", "up")
    for index, address in enumerate(addresses):
        length = "/128" if ":" in address else "/32"
        inside.ip(node, "addr", "replace", gateway[index] + length, "dev", device)
        for each in (address, *((also[index],) if also else ())):
            inside.ip(other, "addr", "add", each + length, "dev", "eth0")
        inside.ip(other, "route", "add", "default", "via", gateway[index], "dev", "eth0", "onlink")
        if onlink and also:
            inside.ip(node, "route", "add", onlink[index], "via", also[index], "dev", device, "onlink")
        else:
            inside.ip(node, "route", "add", address + length, "dev", device)


def _underlay(made: Site) -> None:
    node, outside = made.names["node"], made.names["outside"]
    inside.ip(node, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", outside)
    for netns, addresses in ((node, NODE), (outside, OUTSIDE)):
        inside.ip(netns, "link", "set", "eth0", "up")
        for address in addresses:
            inside.ip(netns, "addr", "add", f"{address}/{64 if ':' in address else 24}", "dev", "eth0")
    for network, own, gateway in zip(("10.244.0.0/16", "2001:db8:f4::/48"), SNAT, NODE, strict=True):
        inside.ip(node, "addr", "add", own, "dev", "lo")
        inside.ip(outside, "route", "add", own, "via", gateway)
        inside.ip(outside, "route", "add", network, "via", gateway)
