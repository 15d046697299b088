"""What the hot-function benchmarks work on: packets, and tables of any size.

Peer i owns one /26 of 10.244.0.0/16 (there are 1,023 of them behind our own, the first), so a table of 1,000 peers
has 1,000 prefixes; `prefixes` makes larger ones. Underlay addresses of peers come from 198.18.0.0/15 (RFC 2544).
"""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from encap.checksum import checksum as header_checksum
from encap.vtep import VtepTable
from encap.vxlan import encapsulate
from fabric.forward.enforcement import Enforcement, RuleHits
from fabric.forward.flows import FlowTable
from fabric.forward.snapshot import Snapshot, compile_tables, to_vtep
from fabric.model import Address, ForwardingState, LocalVtep, Peer
from fabric.policy import Namespace, Node, Pod, PolicySnapshot, compile_policies
from routes.fib import Fib
from tun.checksum import checksum
from tun.vnet import GSO_TCPV4, VNET_NEEDS_CSUM, VnetHeader

VNI = 1
PORT = 8472
OWN_UNDERLAY = IPv4Address("192.0.2.11")
OWN_MAC = bytes.fromhex("020000000001")
OWN_POD = IPv4Address("10.244.0.2")
POD_NETWORK = int(IPv4Address("10.244.0.0"))
PEER_UNDERLAY = IPv4Address("198.18.0.0")
MAX_PEERS = 1023
FRAMES = 1000
MOST_FLOWS = 131_072
ADDRESSES = 4096


@dataclass(frozen=True)
class FakePort:
    """A node port as `Snapshot` reads it."""

    fds: tuple[int, ...]
    features: int = 7
    mtu: int = 1450
    addresses: tuple[Address, ...] = ()
    workers: int = 1
    name: str = "node"
    ethernet: None = None
    bridged: bool = False
    slot: int = 0


def peer_mac(number: int) -> bytes:
    """Locally administered, one per peer."""
    return b"\x02\x01" + number.to_bytes(4, "big")


def peer_subnet(number: int) -> IPv4Network:
    """/26 of the `number`th peer, from 1; number 0 is ours."""
    return IPv4Network((POD_NETWORK + 64 * number, 26))


def peer_underlay(number: int, base: IPv4Address = PEER_UNDERLAY) -> IPv4Address:
    """Underlay address of the `number`th peer."""
    return base + number


def state(peers: int, base: IPv4Address = PEER_UNDERLAY) -> ForwardingState:
    """This node with `peers` VXLAN peers."""
    own = LocalVtep(OWN_UNDERLAY, OWN_MAC, (peer_subnet(0),))
    others = (
        Peer(f"peer{i}", peer_underlay(i, base), (peer_subnet(i),), "vxlan", peer_mac(i), 1450)
        for i in range(1, peers + 1)
    )
    return ForwardingState(VNI, (own,), tuple(others))


def snapshot(
    peers: int,
    fd: int = -1,
    *,
    port: int = PORT,
    base: IPv4Address = PEER_UNDERLAY,
    features: int = 7,
    tracking: bool = True,
    rules: int | None = None,
) -> Snapshot:
    """The compiled tables of `state`; the node port writes to `fd` and merges as far as `features` allows.

    With `rules` every flow of OWN_POD is judged by a policy of so many (`policy`).
    """
    ports, formats = [FakePort((fd,), features)], {"vxlan": port, "udp": 8285}
    flows = FlowTable(MOST_FLOWS) if tracking else None
    world, slots = state(peers, base), {f"peer{i}": i for i in range(1, peers + 1)}  # each is counted, as in a daemon
    tables = compile_tables(world, formats, ports, slots)  # type: ignore[arg-type]
    return Snapshot(1, world, ports, 1, formats, True, flows, enforcement(rules), tables)  # type: ignore[arg-type]


def enforcement(rules: int | None) -> Enforcement | None:
    """What a generation knows of policy; None: nothing."""
    if rules is None:
        return None
    snapshot, hits = policy(rules), RuleHits()
    hits.reserve(snapshot.names.next)
    return Enforcement(1, snapshot, False, (), hits)


@cache
def policy(rules: int) -> PolicySnapshot:
    """OWN_POD may send to every pod by the last of so many rules, each other about one address and a port."""
    one = [f"{IPv4Address(POD_NETWORK + 37 * i % 65536)}/32" for i in range(max(0, rules - 1))]
    peers = [(cidr, 1000 + i % 7) for i, cidr in enumerate(one)] + [(f"{peer_subnet(0)[0]}/16", 9)] * (rules > 0)
    egress = [
        {"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"protocol": "UDP", "port": port}]} for cidr, port in peers
    ]
    objects = [
        {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": f"p{at}", "namespace": "default"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": egress[at : at + 1000]},
        }
        for at in range(0, rules, 1000)
    ]  # fmt: skip
    pod = Pod("default", "own", {}, (OWN_POD,), "own")
    return compile_policies(objects, [pod], [Namespace("default")], [Node("own")])


def udp_packet(source: Address, destination: Address, size: int = 64, sport: int = 40000) -> bytes:
    """A whole IPv4 UDP packet with `size` bytes of payload and complete checksums."""
    payload = bytes(range(256)) * (size // 256 + 1)
    udp = struct.pack("!HHHH", sport, 9, 8 + size, 0) + payload[:size]
    pseudo = source.packed + destination.packed + struct.pack("!HH", 17, len(udp))
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    return ip_header(source, destination, 17, len(udp)) + udp


def tcp_packet(source: Address, destination: Address, size: int, sequence: int = 1) -> bytes:
    """A whole IPv4 TCP packet (ACK, timestamps) with `size` bytes of payload and complete checksums."""
    tcp = struct.pack("!HHIIBBHHH", 40000, 80, sequence, 1, 0x80, 0x10, 512, 0, 0)
    tcp += bytes.fromhex("0101080a0000000100000002") + bytes(range(256)) * (size // 256) + bytes(size % 256)
    pseudo = source.packed + destination.packed + struct.pack("!HH", 6, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    return ip_header(source, destination, 6, len(tcp)) + tcp


def ip_header(source: Address, destination: Address, protocol: int, length: int) -> bytes:
    """IPv4 header without options, DF set, TTL 64."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0x4000, 64, protocol, 0)
    head += source.packed + destination.packed
    return head[:10] + struct.pack("!H", header_checksum(head)) + head[12:]


def udp6_packet(size: int = 64) -> bytes:
    """An IPv6 UDP packet; the parser does not look at its checksum."""
    udp = struct.pack("!HHHH", 40000, 9, 8 + size, 0x1234) + bytes(size)
    source, destination = IPv6Network("2001:db8::/64")[1].packed, IPv6Network("2001:db8::/64")[2].packed
    return struct.pack("!IHBB", 0x60000000, len(udp), 17, 64) + source + destination + udp


def superframe(segments: int = 46, size: int = 1398) -> tuple[bytes, bytes]:
    """A TCP superframe as a TUN port gives it, and its virtio-net header."""
    packet = tcp_packet(OWN_POD, IPv4Address("10.244.1.2"), segments * size)
    return packet, VnetHeader(VNET_NEEDS_CSUM, GSO_TCPV4, 52, size, 20, 16).emit()


def order(peers: int, seed: int = 1) -> list[int]:
    """FRAMES peer numbers in an order that no cache can guess, each peer as often as any other."""
    numbers = [1 + i % peers for i in range(FRAMES)]
    random.Random(seed).shuffle(numbers)
    return numbers


def frames_to(peers: int) -> list[bytes]:
    """64-byte UDP packets from our pod to pods of all peers, mixed."""
    return [udp_packet(OWN_POD, peer_subnet(i)[2]) for i in order(peers)]


def packets_of(flows: int, seed: int = 1) -> list[bytes]:
    """64-byte UDP packets of as many flows, each twice, in an order that no cache can guess."""
    targets = [peer_subnet(i)[2] for i in range(1, MAX_PEERS + 1)]
    mixed = [udp_packet(OWN_POD, targets[i % MAX_PEERS], sport=1024 + i // MAX_PEERS) for i in range(flows)] * 2
    random.Random(seed).shuffle(mixed)
    return mixed


def datagrams_from(peers: int) -> list[tuple[bytes, int]]:
    """The same traffic the other way: UDP payloads with the outer source of the peer that sent them."""
    return [
        (
            encapsulate(udp_packet(peer_subnet(i)[2], OWN_POD), vni=VNI, destination=OWN_MAC, source=peer_mac(i)),
            int(peer_underlay(i)),
        )
        for i in order(peers)
    ]


@cache
def table(peers: int) -> VtepTable:
    """VTEPs of `peers` peers."""
    return VtepTable(
        (f"peer{i}", peer_underlay(i), PORT, peer_mac(i), OWN_MAC, 1450, "vxlan", VNI, ("vxlan",), False, i)
        for i in range(1, peers + 1)
    )


def underlay_addresses(peers: int) -> array[int]:
    """Underlay addresses of the peers, mixed."""
    return array("I", [int(peer_underlay(i)) for i in order(peers)])


@cache
def prefixes(count: int) -> Fib:
    """`count` IPv4 prefixes: the /26 of peers first, then host routes (pods) inside them."""
    nets: list[IPv4Network] = [peer_subnet(i) for i in range(1, min(count, MAX_PEERS) + 1)]
    number = 0
    while len(nets) < count:
        nets.append(IPv4Network((POD_NETWORK + 64 + 5 * number, 32)))
        number += 1
    return Fib((net, to_vtep(i)) for i, net in enumerate(nets))


@cache
def prefixes6(count: int) -> Fib:
    """`count` IPv6 /64 prefixes."""
    base = int(IPv6Network("2001:db8::/32").network_address)
    return Fib((IPv6Network((base + (i << 64), 64)), i) for i in range(1, count + 1))


def addresses4(count: int, seed: int = 1) -> array[int]:
    """Addresses spread over what `prefixes(count)` covers."""
    span = 64 * min(count, MAX_PEERS)
    rng = random.Random(seed)
    return array("I", [POD_NETWORK + 64 + rng.randrange(span) for _ in range(ADDRESSES)])


def addresses6(count: int, seed: int = 1) -> array[int]:
    """Addresses inside `prefixes6(count)`, as pairs of 64-bit halves."""
    rng = random.Random(seed)
    base = int(IPv6Network("2001:db8::/32").network_address)
    numbers = [base + (rng.randrange(1, count + 1) << 64) + rng.getrandbits(63) for _ in range(ADDRESSES)]
    return array("Q", halves(numbers))


def halves(numbers: Sequence[int]) -> list[int]:
    """Upper and lower 64 bits of each number in turn."""
    return [half for number in numbers for half in (number >> 64, number & (1 << 64) - 1)]
