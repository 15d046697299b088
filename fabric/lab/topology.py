"""Namespaces, bridges and veth pairs of a lab, made with a handful of `ip -batch` calls.

    host namespace: nothing at all
    fablab-underlay      bridge `underlay` 192.0.2.1, 2001:db8:0:1::1; one port per node, named after it
    fablab-nodeN         eth0 192.0.2.(10+N) on the underlay, default route
    fablab-nodeN-podM    empty; the CNI plugin makes eth0 (`fabric.lab.runtime`)

Lab modes (what the underlay passes on):

* wire: segmentation offloads off, GRO on at both ends of every underlay veth: packets as a physical wire has them;
* veth: the defaults, all offloads pass through;
* bare: segmentation and GRO off: one packet per step everywhere.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Sequence

from fabric.lab import system
from fabric.lab.plan import GATEWAY, GATEWAY6, UNDERLAY, UNDERLAY_BRIDGE, UNDERLAY_MTU, LabError, Mode, Node, Pod

SEGMENTATION = re.compile(r"tx-(?!generic).*segmentation|tx-gso-list")
QUIET = "net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.accept_ra=0"

# The underlay stands for a wire: no netfilter hooks in its bridge. The nodes' own bridges keep the kernel's default.
WIRE = [f"net.bridge.bridge-nf-call-{table}=0" for table in ("iptables", "ip6tables", "arptables")]


def make_pod(pod: Pod) -> None:
    """The namespace of one more pod."""
    system.batch([f"netns add {pod.netns}"])
    set_sysctls(pod.netns, QUIET.split())
    system.batch(["link set lo up"], pod.netns)


def make_namespaces(nodes: Sequence[Node]) -> None:
    """All namespaces at once, loopback up, forwarding as its role needs."""
    names = [UNDERLAY, *(node.netns for node in nodes), *(pod.netns for node in nodes for pod in node.pods)]
    system.batch(f"netns add {name}" for name in names)
    routers = {node.netns for node in nodes}
    for name in names:
        settings = QUIET.split()
        if name == UNDERLAY:
            settings += WIRE
        if name in routers:
            settings += ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0"]
        set_sysctls(name, settings)
        system.batch(["link set lo up"], name)


def set_sysctls(netns: str, settings: Iterable[str]) -> None:
    """Write `name=value` settings under /proc/sys in a namespace; one the kernel lacks (no IPv6) is skipped."""
    script = ";".join(
        f"[ ! -w /proc/sys/{name.replace('.', '/')} ] || echo {value} > /proc/sys/{name.replace('.', '/')}"
        for name, _, value in (setting.partition("=") for setting in settings)
    )
    system.run(netns, ["sh", "-c", script])


def make_underlay(nodes: Sequence[Node]) -> None:
    """The underlay bridge and every node's eth0 with addresses and default routes."""
    lines = [
        f"link add {UNDERLAY_BRIDGE} mtu {UNDERLAY_MTU} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"link set {UNDERLAY_BRIDGE} up",
        f"addr add {GATEWAY}/24 dev {UNDERLAY_BRIDGE}",
        f"addr add {GATEWAY6}/64 dev {UNDERLAY_BRIDGE} nodad",
    ]
    for node in nodes:
        lines += [
            f"link add {node.name} mtu {UNDERLAY_MTU} type veth peer name eth0 mtu {UNDERLAY_MTU} netns {node.netns}",
            f"link set {node.name} master {UNDERLAY_BRIDGE} up",
        ]
    system.batch(lines, UNDERLAY)
    for node in nodes:
        system.batch(
            [
                "link set eth0 up",
                f"addr add {node.underlay_ip}/24 dev eth0",
                f"addr add {node.underlay_ip6}/64 dev eth0 nodad",
                f"route add default via {GATEWAY} dev eth0",
                f"route add default via {GATEWAY6} dev eth0",
            ],
            node.netns,
        )


@functools.cache
def changeable(netns: str, device: str) -> frozenset[str]:
    """Offload features of a device that are not marked [fixed]."""
    lines = system.run(netns, ["ethtool", "-k", device]).splitlines()
    names = (re.match(r"\s*([\w-]+): \w+(.*)", line) for line in lines)
    return frozenset(name[1] for name in names if name and "[fixed]" not in name[2])


def set_mode(nodes: Sequence[Node], mode: Mode) -> None:
    """Switch the offloads of both ends of every underlay veth; takes effect at once."""
    if not nodes:
        return
    offered = changeable(nodes[0].netns, "eth0")
    if mode != "veth" and "tx-udp-segmentation" not in offered:
        raise LabError(f"this kernel's veth cannot switch UDP segmentation off; mode {mode} would not mean anything")
    segmentation = "on" if mode == "veth" else "off"
    # veth starts without GRO, and with offloads passing there is nothing to merge.
    gro = "on" if mode == "wire" else "off"
    switches = {name: segmentation for name in sorted(offered) if SEGMENTATION.fullmatch(name)}
    switches |= {"gso": segmentation, "gro": gro}
    features = [word for switch in switches.items() for word in switch]
    for node in nodes:
        system.run(node.netns, ["ethtool", "-K", "eth0", *features])
    script = "".join(f"ethtool -K {node.name} {' '.join(features)};" for node in nodes)
    system.run(UNDERLAY, ["sh", "-ec", script])


def wait_routes(nodes: Sequence[Node], seconds: float = 15.0) -> None:
    """Wait until every node has a route to every other node's subnets; LabError names the one that is missing."""
    deadline = time.monotonic() + seconds
    for node in nodes:
        wanted = {s for other in nodes if other is not node for s in (other.subnet, other.subnet6) if s}
        while missing := wanted - known_routes(node):
            if time.monotonic() > deadline:
                raise LabError(f"{node.name} has no route to {min(missing)} after {seconds:g} s; see its fabricd.log")
            time.sleep(0.02)


def known_routes(node: Node) -> set[str]:
    """Destinations of the node's main routing tables."""
    found = set()
    for family in ("-4", "-6"):
        lines = system.run(node.netns, ["ip", family, "route", "show"]).splitlines()
        found |= {line.split()[0] for line in lines if line.strip()}
    return found
