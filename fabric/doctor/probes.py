"""The tries. Everything here touches the network; nothing changes it."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from time import monotonic
from typing import Any

from fabric.capture import libpcap
from fabric.capture.bpf import Program
from fabric.capture.session import RefusedPackets
from fabric.capture.taps import Frame, Tap
from fabric.control_client import ControlClient
from fabric.doctor.checksums import is_wrong
from fabric.doctor.evidence import POLICY, NodeEvidence, PeerEvidence, Port
from fabric.lab.echo import ping
from routes.lookup import route_get
from routes.vxlan import vxlan_devices

SECONDS = 0.5
KERNEL_WAY = "vxlan (kernel)"
CLOSED_PORT = 1  # tcpmux: nobody has it
Object = Mapping[str, Any]


@dataclass(slots=True)
class Watched:
    """What was seen while the block ran."""

    sent: int = 0
    received: int = 0
    bad_checksums: int = 0
    counters: Counter[str] = field(default_factory=Counter)
    checksum_errors: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def node(client: ControlClient, status: Object, pods: Sequence[Object], refused: Mapping[str, int]) -> NodeEvidence:
    """This node's own state."""
    store = status["store"]
    families = {ip_network(text).version for text in status["subnets"]}
    paths = {4: ("IPv4", "ipv4/ip_forward"), 6: ("IPv6", "ipv6/conf/all/forwarding")}
    return NodeEvidence(
        ready=status["ready"],
        store="" if store["available"] else store["reason"] or "unknown",
        problems=tuple(line for part in ("health", "kernel", "firewall") for line in status[part]["problems"]),
        forwarding={paths[version][0]: _sysctl(paths[version][1]) for version in sorted(families)},
        kernel_pods=sum(1 for pod in pods if pod["kind"] in ("veth", "bridge")),
        vxlan_devices=tuple(_strangers(status)),
        refused=refused,
    )


def _sysctl(path: str) -> bool:
    try:
        return Path("/proc/sys/net", path).read_text().strip() != "0"
    except OSError:
        return True


def _strangers(status: Object) -> Iterator[str]:
    backend = status["backend"]
    own = {status["device"], f"flannel-v6.{backend['vni']}"} if backend["kernel"] else set()
    for device in vxlan_devices():
        if device.link.name not in own and (device.vni == backend["vni"] or device.port == backend["port"]):
            yield device.link.name


def peer(
    client: ControlClient, status: Object, item: Object, routes: Sequence[Object], ports: Mapping[str, int]
) -> PeerEvidence:
    """One peer, reached in whatever way."""
    public, way = item["public"][0] if item["public"] else "", item["way"]
    name = item.get("node") or public or item["key"]
    plain = PeerEvidence(name, public, item["state"], item["reason"], way)
    if item["state"] not in ("used", "remembered") or not item["subnets"]:
        return plain
    prefix = item["subnets"][0]
    address = prefix.split("/")[0]
    route: Object = next((route for route in routes if route["prefix"] == prefix), {})
    mtu, by_kernel = route.get("mtu", status["mtu"]), way == KERNEL_WAY
    port = ports.get("vxlan" if by_kernel else way, 0)
    big, fits, tcp = False, 0, None
    with watching(client, status, public, port) as watched:
        small = ping([address], count=3, timeout=SECONDS)[0].reachable
        if small:
            big, fits = _sizes(address, mtu)
            tcp = _tcp(address)
    return replace(
        plain, device=_device(address), expected_device=route.get("device", ""), mtu=mtu, small=small, big=big,
        fits=fits, tcp=tcp, tunnel=bool(port), port=port,
        underlay=small or ping([public], timeout=SECONDS)[0].reachable,
        tunnel_port="silent" if small or not port else _port(public, port),
        other_port="silent" if small else _port(public, CLOSED_PORT),
        sent=watched.sent, received=watched.received,
        taken=watched.received if by_kernel else watched.counters["receive_datagrams"],
        bad_checksums=watched.bad_checksums, kernel_checksum_errors=watched.checksum_errors,
        write_bad_checksum=watched.counters["write_bad_checksum"], send_refused=watched.counters["drop_send_refused"],
        refused=watched.refused,
    )  # fmt: skip


@contextmanager
def watching(client: ControlClient, status: Object, public: str, port: int) -> Iterator[Watched]:
    """What passes the underlay to and from `public` on the tunnel's port, what is refused, what is counted."""
    watched = Watched()
    with ExitStack() as stack:
        tap = _tap(stack, status, public, port) if port else None
        refused = RefusedPackets(client, lambda data, length: True, frozenset())
        before, errors = client.ask("counters"), _checksum_errors()
        yield watched
        after = client.ask("counters")
        watched.counters.update({name: value - before.get(name, 0) for name, value in after.items()})
        watched.checksum_errors = _checksum_errors() - errors
        for packet, _ in refused.read()[0]:
            # What a local port was refused is no news of the peer, unless policy refused it: it may have been for it.
            if packet["source"] == public or (not packet["source"] and packet["reason"].startswith(POLICY)):
                watched.refused[packet["reason"]] += 1
        while tap is not None and (frame := tap.read()) is not None:
            _count(watched, frame, tap.link)


def _tap(stack: ExitStack, status: Object, public: str, port: int) -> Tap:
    def program(link: int) -> Program:
        return libpcap.compile(f"udp port {port} and host {public}", libpcap.DLT_EN10MB if link == 1 else
                               libpcap.DLT_RAW, 2048)  # fmt: skip

    tap = Tap("underlay", status["interface"], "", 2048, program)
    stack.callback(tap.close)
    return tap


def _count(watched: Watched, frame: Frame, link: int) -> None:
    if frame.outgoing:
        watched.sent += 1
        return
    watched.received += 1
    whole = len(frame.data) == frame.length and not frame.unfinished
    if whole and is_wrong(frame.data[14 if link == 1 else 0 :]):
        watched.bad_checksums += 1


def _checksum_errors() -> int:
    """UDP datagrams that this host's kernel threw away for their checksum."""
    total = 0
    lines = Path("/proc/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Udp:"))
    total += int(dict(zip(names, values, strict=True)).get("InCsumErrors", 0))
    for line in Path("/proc/net/snmp6").read_text().splitlines() if Path("/proc/net/snmp6").exists() else ():
        if line.startswith("Udp6InCsumErrors"):
            total += int(line.split()[1])
    return total


def _sizes(address: str, mtu: int) -> tuple[bool, int]:
    """Whether a packet of `mtu` bytes comes back, else the largest that does."""
    head = 48 if ":" in address else 28

    def passes(size: int, count: int = 2) -> bool:
        answer = ping([address], count=count, timeout=SECONDS / 2, size=size - head, dont_fragment=True)[0]
        return answer.reachable

    if passes(mtu, 3):
        return True, mtu
    low, high = 100, mtu
    while high - low > 4:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return False, low


def _device(address: str) -> str:
    try:
        return route_get(address).interface
    except OSError:
        return ""


def _port(public: str, port: int) -> Port:
    """What a datagram to that port is answered with, by the kernel or a firewall there."""
    family = socket.AF_INET6 if ":" in public else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.settimeout(SECONDS / 2)
        try:
            probe.connect((public, port))
            for _ in range(2):
                probe.send(b"\0")
                try:
                    probe.recv(64)
                except TimeoutError:
                    continue
        except ConnectionRefusedError:
            return "refused"
        except OSError as error:
            unreachable = (errno.EHOSTUNREACH, errno.EACCES, errno.ENETUNREACH, errno.EPERM)
            return "prohibited" if error.errno in unreachable else "silent"
    return "silent"


def _tcp(address: str) -> bool:
    """Whether a connection attempt is answered, by a refusal or otherwise."""
    end = monotonic() + 3 * SECONDS
    while monotonic() < end:
        with socket.socket(socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET) as probe:
            probe.settimeout(1.5 * SECONDS)
            try:
                probe.connect((address, CLOSED_PORT))
            except ConnectionRefusedError:
                return True
            except OSError:
                continue
            return True
    return False
