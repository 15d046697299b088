"""Nodes in one process: workers with memory ports for devices and loopback UDP for the underlay. Needs no privilege.

    with Fabric() as fabric:
        a, b = fabric.add_node(1), fabric.add_node(2)    # 127.0.0.x, 10.244.x.0/24, 2001:db8:x::/64
        raw = fabric.add_raw_peer(3)                     # a VTEP that is only a socket: sees and makes every byte
        fabric.publish()
        a.host.peer.inject(frame)                        # the kernel's side of the node port
        header, frame = b.host.peer.take(5)

All receive sockets of a format share one ephemeral UDP port number, as 8472 is shared by real nodes.
"""

from __future__ import annotations

import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from types import TracebackType
from typing import Self, TypeVar

from encap.sockets import open_receive_socket, open_transmit_sockets
from encap.vxlan import encapsulate
from fabric.forward.enforcement import Enforcement
from fabric.forward.flows import FlowTable
from fabric.forward.snapshot import Snapshot, compile_tables
from fabric.forward.worker import Worker
from fabric.model import ForwardingState, LocalVtep, Peer
from tun.memory import MemoryPort
from tun.offload import Features
from tun.port import Frame
from tun.vnet import VnetHeader

T = TypeVar("T")
VNI = 1
PATIENCE = 10.0
MOST_PROCESSES = 16
PLAIN = VnetHeader()


def wait_for(condition: Callable[[], T | None], seconds: float = PATIENCE) -> T:
    """The first true result of `condition`; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        select.select([], [], [], 0.001)
    assert result is not None
    return result


def any_port(taken: Collection[int] = ()) -> int:
    """A number for all nodes to bind, below those that the kernel gives to anybody, and of no other test process."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while (port := random.randrange(10_000 + process % MOST_PROCESSES, 32_000, MOST_PROCESSES)) in taken:
        pass
    return port


def node_mac(number: int) -> bytes:
    return bytes([0x02, 0, 0, 0, 0, number])


def address4(node: int, host: int) -> str:
    return f"10.244.{node}.{host}"


def address6(node: int, host: int) -> str:
    return f"2001:db8:{node}::{host:x}"


class HarnessPort(MemoryPort):
    """A memory port with what a snapshot reads from `fabric.forward.ports.WorkerPort`."""

    ethernet: tuple[bytes, bytes] | None = None
    bridged = False
    slot = 0

    def __init__(
        self, name: str, addresses: Sequence[str] = (), mtu: int = 1450, features: Features = Features.ALL
    ) -> None:
        super().__init__(name, mtu, features)
        self.addresses = tuple(ip_address(address) for address in addresses)
        self.workers = 1
        self.fds = (self.fd,)

    def take(self, seconds: float = PATIENCE) -> Frame:
        """The next frame the worker wrote; AssertionError when none comes."""
        frame = self.peer.take(seconds)
        assert frame is not None, f"{self.name}: no frame within {seconds} s"
        return frame

    def take_all(self) -> list[Frame]:
        """What is there now."""
        return list(iter(self.peer.take, None))


class RawPeer:
    """A VTEP that is a plain UDP socket: `receive` gives whole UDP payloads, `send` takes any bytes."""

    def __init__(self, number: int, address: str, port: int, encapsulation: str = "vxlan") -> None:
        self.number = number
        self.encapsulation = encapsulation
        self.address = ip_address(address)
        family = socket.AF_INET if self.address.version == 4 else socket.AF_INET6
        self.socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        if self.address.version == 4:
            self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        else:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        self.socket.bind((address, port))
        self.port = self.socket.getsockname()[1]
        self.socket.settimeout(PATIENCE)

    def receive(self) -> bytes:
        return self.socket.recv(65536)

    def receive_from(self) -> tuple[bytes, tuple[str, int], int]:
        """(UDP payload, (source address, source port), outer TOS)."""
        data, ancillary, _, source = self.socket.recvmsg(65536, 64)
        tos = next((value[0] for _, kind, value in ancillary if kind in (socket.IP_TOS, socket.IPV6_TCLASS)), 0)
        return data, source[:2], tos

    def receive_all(self) -> list[bytes]:
        """Datagrams that are there now."""
        found = []
        while select.select([self.socket], [], [], 0)[0]:
            found.append(self.socket.recv(65536))
        return found

    def send(self, node: Node, payload: bytes, tos: int = 0, form: str = "") -> None:
        """Any bytes, to the node's port of our own format or of `form`."""
        level, kind = (
            (socket.IPPROTO_IP, socket.IP_TOS)
            if self.address.version == 4
            else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        )
        self.socket.setsockopt(level, kind, tos)
        self.socket.sendto(payload, (str(node.address), node.tunnel_ports[form] if form else self.port))

    def wrap(self, node: Node, packet: bytes, *, vni: int = VNI, source: bytes = b"") -> bytes:
        """The VXLAN payload a well-behaved peer sends for an inner packet."""
        return encapsulate(packet, vni=vni, destination=node.mac, source=source or node_mac(self.number))

    def send_inner(self, node: Node, packet: bytes, tos: int = 0) -> None:
        self.send(node, self.wrap(node, packet) if self.encapsulation == "vxlan" else packet, tos)

    def as_peer(self, mtu: int, own: str = "vxlan") -> Peer:
        return make_peer(self.number, self.address, self.encapsulation, mtu, own)

    def close(self) -> None:
        self.socket.close()


def prefixes_of(number: int) -> tuple[object, ...]:
    return (ip_network(f"10.244.{number}.0/24"), ip_network(f"2001:db8:{number}::/64"))


def make_peer(number: int, address: object, encapsulation: str | None, mtu: int, own: str = "vxlan") -> Peer:
    """As a node of the type `own` sees it."""
    accepts = frozenset(form for form in (encapsulation, own) if form)
    mac = node_mac(number) if encapsulation == "vxlan" else bytes(6)
    return Peer(
        f"peer{number}", address, prefixes_of(number), encapsulation, mac, mtu, accepts, encapsulation != "vxlan"  # type: ignore[arg-type]
    )


@dataclass
class Node:
    """One worker with its sockets and ports.

    `tunnel_ports` is the fabric's: the port of each format that somebody has bound. `second_format` opens one more
    receive socket, for that format.
    """

    number: int
    address: IPv4Address | IPv6Address
    tunnel_ports: dict[str, int]
    encapsulation: str = "vxlan"
    strict: bool = True
    gro: bool = True
    segmentation: bool = True
    source_ports: int = 8
    features: Features = Features.ALL
    mtu: int = 1450
    second_format: str = ""
    flows: FlowTable | None = field(default_factory=lambda: FlowTable(1024))
    enforcement: Enforcement | None = None
    ports: list[HarnessPort] = field(default_factory=list)
    ports_version: int = 1
    generation: int = 0
    peers: dict[str, Peer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mac = node_mac(self.number)
        self.receive_socket = self.bind(self.encapsulation)
        self.port = self.tunnel_ports[self.encapsulation]
        self.transmit_sockets = open_transmit_sockets(self.address, self.source_ports)
        self.host = HarnessPort(f"node{self.number}", (), self.mtu, self.features)
        self.ports.append(self.host)
        fds = [sock.fileno() for sock in self.transmit_sockets]
        four, six = (fds, []) if self.address.version == 4 else ([], fds)
        receive = [(self.receive_socket.fileno(), self.encapsulation)]
        self.second_socket = self.bind(self.second_format) if self.second_format else None
        if self.second_socket:
            receive.append((self.second_socket.fileno(), self.second_format))
        self.worker = Worker(0, receive, four, six)
        self.worker.set_segmentation(self.segmentation)
        self.threads = [
            threading.Thread(target=body, daemon=True) for body in (self.worker.run_egress, self.worker.run_ingress)
        ]

    def bind(self, form: str) -> socket.socket:
        """A receive socket on the fabric's port of this format; the first to bind it chooses the number."""
        port = self.tunnel_ports.get(form) or any_port(self.tunnel_ports.values())
        sock = open_receive_socket(self.address, port, gro=self.gro)
        self.tunnel_ports[form] = sock.getsockname()[1]
        return sock

    def add_pod(
        self, host: int, *, mtu: int | None = None, features: Features | None = None, families: str = "46"
    ) -> HarnessPort:
        """A pod port with address .host / ::host of this node's subnets; call `publish` after it."""
        addresses = [make(self.number, host) for make, tag in ((address4, "4"), (address6, "6")) if tag in families]
        port = HarnessPort(
            f"pod{self.number}-{host}", addresses, mtu or self.mtu, self.features if features is None else features
        )
        self.ports.append(port)
        self.ports_version += 1
        return port

    def remove_pod(self, port: HarnessPort) -> None:
        """Takes the port from the next snapshot; the caller closes it after `publish`."""
        self.ports.remove(port)
        self.ports_version += 1

    def state(self) -> ForwardingState:
        own = LocalVtep(self.address, self.mac, prefixes_of(self.number))  # type: ignore[arg-type]
        return ForwardingState(VNI, (own,), tuple(self.peers.values()))

    def publish(self) -> None:
        """Compile the node's state and wait until both threads have left the older ones."""
        self.generation += 1
        tunnel_ports = {"vxlan": 1, "udp": 1, **self.tunnel_ports}
        state = self.state()
        slots = {peer.name: slot for slot, peer in enumerate(state.peers, 1)}
        snapshot = Snapshot(
            self.generation, state, self.ports, self.ports_version, tunnel_ports, self.strict, self.flows,  # type: ignore[arg-type]
            self.enforcement, compile_tables(state, tunnel_ports, self.ports, slots),  # type: ignore[arg-type]
        )
        self.worker.swap(snapshot)
        for thread in self.threads:
            if thread.ident is None:
                thread.start()
        wait_for(lambda: self.worker.reap() == 0)

    def count(self, name: str) -> int:
        return self.worker.counters()[name]

    def drops(self) -> dict[str, int]:
        """Counted drops by reason name, zeros left out."""
        return {k.removeprefix("drop_"): v for k, v in self.worker.counters().items() if k.startswith("drop_") and v}

    def wait_drop(self, reason: str, count: int = 1) -> None:
        """Until `reason` counts `count`; then nothing else may have been dropped."""
        wait_for(lambda: self.count(f"drop_{reason}") >= count or None)
        assert self.drops() == {reason: count}

    def close(self) -> None:
        self.worker.stop()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join(PATIENCE)
                assert not thread.is_alive(), "a worker thread did not stop"
        for sock in (self.receive_socket, *self.transmit_sockets, self.second_socket):
            if sock:
                sock.close()
        for port in self.ports:
            port.close()


class Fabric:
    """Nodes and raw peers that know each other. Closes everything it made."""

    def __init__(self, base: str = "127.0.0.") -> None:
        self.base = base
        self.tunnel_ports: dict[str, int] = {}
        self.nodes: list[Node] = []
        self.raw_peers: list[RawPeer] = []

    def add_node(self, number: int, **options: object) -> Node:
        node = Node(number, ip_address(f"{self.base}{number}"), self.tunnel_ports, **options)  # type: ignore[arg-type]
        self.nodes.append(node)
        return node

    def add_raw_peer(self, number: int, encapsulation: str = "vxlan") -> RawPeer:
        """On the fabric's port of its format."""
        peer = RawPeer(number, f"{self.base}{number}", self.tunnel_ports.get(encapsulation, 0), encapsulation)
        self.tunnel_ports[encapsulation] = peer.port
        self.raw_peers.append(peer)
        return peer

    def publish(self, mtu: int = 1450) -> None:
        """Everybody knows everybody, with this inner MTU."""
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.peers[f"peer{other.number}"] = make_peer(
                        other.number, other.address, other.encapsulation, mtu, node.encapsulation
                    )
            for raw in self.raw_peers:
                node.peers[f"peer{raw.number}"] = raw.as_peer(mtu, node.encapsulation)
            node.publish()

    def set_mtu(self, node: Node, peer: int, mtu: int) -> None:
        """Another MTU on the way from `node` to one peer."""
        name = f"peer{peer}"
        node.peers[name] = replace(node.peers[name], mtu=mtu)
        node.publish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for node in self.nodes:
            node.close()
        for peer in self.raw_peers:
            peer.close()
