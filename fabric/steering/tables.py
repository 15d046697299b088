"""The two nftables tables, as requests in bytes: `bridge podfabric_steer` and `inet podfabric_steer`.

    bridge, prerouting   neighbour discovery of IPv6 as it is; IP from one of our addresses to another: to the bridge
    bridge, forward      neighbour discovery, ARP; IP from and to our subnets, and all else from a pod's port: dropped
    inet, prerouting     from the bridge port: not tracked. From a pod's interface: the host's own address as source:
                         dropped; to an address of the host: as ever; else marked, and not tracked
    inet, translated     once the host has translated it, to our subnets, but from the bridge port: marked (another bit)

A pod port's frames match by its name; the addresses match also before the name of a new one is known here.

Source: include/uapi/linux/netfilter/nf_tables.h. A table is written whole, and each rule carries a comment that is a
digest of the table, by which a look sees that it is the one that was written (`is_written`).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from fabric.model import Network
from fabric.steering.rules import HOST_MARK, MARK, Steering
from fabric.traffic import nft
from fabric.traffic.expressions import (
    NF_ACCEPT,
    NFT_CMP_EQ,
    NFT_CMP_NEQ,
    NFT_META_MARK,
    NFT_META_PROTOCOL,
    NFT_PAYLOAD_NETWORK_HEADER,
    NFT_REG_1,
    NFT_REG_VERDICT,
    NFT_RETURN,
)
from routes.netlink import NLM_F_APPEND, NLM_F_CREATE, Netlink, Request
from routes.wire import HEADER, attributes

TABLE = "podfabric_steer"
FAMILIES = {"bridge": 7, "inet": 1}
NESTED = 0x8000
NF_DROP = 0
NFT_META_IIFNAME, NFT_META_PKTTYPE = 6, 19
NFT_PAYLOAD_LINK_HEADER = 0
NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR = 3, 1, 2
RTN_LOCAL = 2
RAW = -450
"""NF_IP_PRI_RAW_BEFORE_DEFRAG: what is not tracked is not joined from its fragments either (-400). A frame that passes
br_netfilter would stay joined, and be too big for the next interface."""
AFTER_DNAT = -90
DNAT_BRIDGE, FILTER_BRIDGE = -300, -200
"""NF_BR_PRI_NAT_DST_BRIDGED and NF_BR_PRI_FILTER_BRIDGED. br_netfilter takes a frame at -1 of the forward hook, and
behind it the kernel passes over what stands at 0 there."""
ETHER_TYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
ARP = b"\x08\x06"
ICMPV6 = 58
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
IFNAMSIZ = 16
Program = bytes


@dataclass(frozen=True, slots=True)
class PodSide:
    """The interfaces behind which pods are: all of them, the bridges among them with their MACs, and their ports."""

    interfaces: tuple[str, ...] = ()
    bridges: tuple[tuple[str, bytes], ...] = ()
    ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain of type filter that accepts what no rule decides about."""

    name: str
    hook: int
    priority: int
    rules: tuple[Program, ...]


def chains(family: str, wanted: Steering, side: PodSide) -> tuple[Chain, ...]:
    """What the table of this family should hold."""
    if family == "inet":
        return (
            Chain("prerouting", 0, RAW, tuple(_from_pods(wanted, side))),
            Chain("translated", 0, AFTER_DNAT, tuple(_to_pods(wanted))),
        )
    return (
        Chain("prerouting", 0, DNAT_BRIDGE, tuple(_to_the_bridge(wanted, side))),
        Chain("forward", 2, FILTER_BRIDGE, tuple(_between_ports(wanted, side))),
    )


def requests(family: str, made: Sequence[Chain]) -> list[Request]:
    """The transaction that makes the table like this: its chains get other rules at once, or are made."""
    mark = digest(made)
    found: list[Request] = [(nft.NEWTABLE, NLM_F_CREATE, _message(family, _name(1, TABLE)))]
    for chain in made:
        hook = _attribute(1, _number(chain.hook)) + _attribute(2, _number(chain.priority))
        base = _name(1, TABLE) + _name(3, chain.name) + _nest(4, hook) + _attribute(5, _number(1)) + _name(7, "filter")
        found.append((nft.NEWCHAIN, NLM_F_CREATE, _message(family, base)))
        names = _name(1, TABLE) + _name(2, chain.name)
        found.append((nft.DELRULE, 0, _message(family, names)))
        for program in chain.rules:
            body = names + _nest(4, program) + _attribute(7, nft.comment_attribute(mark)[1])
            found.append((nft.NEWRULE, NLM_F_CREATE | NLM_F_APPEND, _message(family, body)))
    return found


def deletion(family: str) -> Request:
    """The request that removes the table."""
    return nft.DELTABLE, 0, _message(family, _name(1, TABLE))


def exists(netlink: Netlink, family: str) -> bool:
    """Whether the table is there. Raises OSError."""
    try:
        netlink.ask(nft.GETTABLE, _message(family, _name(1, TABLE)))
    except OSError as error:
        if error.errno in (errno.ENOENT, *nft.UNSUPPORTED):
            return False
        raise
    return True


def is_written(netlink: Netlink, family: str, made: Sequence[Chain]) -> bool:
    """Whether the table holds as many rules as it should, all of them with its digest. Raises OSError."""
    mark = nft.comment_attribute(digest(made))[1]
    for chain in made:
        message = _message(family, _name(1, TABLE) + _name(2, chain.name))
        try:
            dumped = [data for kind, data in netlink.dump(nft.GETRULE, message) if kind == nft.NEWRULE]
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        comments = [attributes(data, HEADER.size + 4).get(7) for data in dumped]
        if comments != [mark] * len(chain.rules):
            return False
    return True


def digest(made: Sequence[Chain]) -> str:
    """Of everything in the table."""
    return "podfabric " + blake2b(repr(made).encode(), digest_size=9).hexdigest()


def _to_the_bridge(wanted: Steering, side: PodSide) -> Iterator[Program]:
    yield from _neighbour_discovery()
    if side.bridges:  # a subnet has one
        _, mac = side.bridges[0]
        for subnet in wanted.subnets:
            yield (
                _protocol(subnet) + _address(subnet, source=True) + _address(subnet, source=False)
                + _load_value(mac) + _write_destination_mac() + _load_value(bytes(1)) + _set_meta(NFT_META_PKTTYPE)
            )  # fmt: skip


def _between_ports(wanted: Steering, side: PodSide) -> Iterator[Program]:
    yield from _neighbour_discovery()
    for subnet in wanted.subnets:
        yield _protocol(subnet) + _address(subnet, source=True) + _verdict(NF_DROP)
        yield _protocol(subnet) + _address(subnet, source=False) + _verdict(NF_DROP)
    yield _load_meta(NFT_META_PROTOCOL) + _compare(ARP) + _verdict(NF_ACCEPT)
    for port in side.ports:
        yield _from(port) + _verdict(NF_DROP)


def _neighbour_discovery() -> Iterator[Program]:
    for kind in (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT):
        yield (
            _load_meta(NFT_META_PROTOCOL) + _compare(ETHER_TYPE[6])
            + _load_payload(NFT_PAYLOAD_NETWORK_HEADER, 6, 1) + _compare(bytes([ICMPV6]))
            + _load_payload(NFT_PAYLOAD_NETWORK_HEADER, 40, 1) + _compare(bytes([kind])) + _verdict(NF_ACCEPT)
        )  # fmt: skip


def _from_pods(wanted: Steering, side: PodSide) -> Iterator[Program]:
    yield _from(wanted.bridge_port) + _expression("notrack")
    for name in side.interfaces:
        yield _from(name) + _address_type(NFTA_FIB_F_SADDR) + _compare_number(RTN_LOCAL) + _verdict(NF_DROP)
        yield _from(name) + _address_type(NFTA_FIB_F_DADDR) + _compare_number(RTN_LOCAL) + _verdict(NFT_RETURN)
        yield _from(name) + _set_mark(MARK) + _expression("notrack")


def _to_pods(wanted: Steering) -> Iterator[Program]:
    for subnet in wanted.subnets:
        yield (
            _from(wanted.bridge_port, NFT_CMP_NEQ) + _protocol(subnet) + _address(subnet, source=False)
            + _set_mark(HOST_MARK)
        )  # fmt: skip


def _set_mark(bit: int) -> Program:
    """This bit besides those that are set."""
    return (
        _load_meta(NFT_META_MARK)
        + _expression(
            "bitwise", (1, _number(NFT_REG_1)), (2, _number(NFT_REG_1)), (3, _number(4)),
            (4 | NESTED, _attribute(1, struct.pack("=I", ~bit & 0xFFFFFFFF))),
            (5 | NESTED, _attribute(1, struct.pack("=I", bit))),
        )
        + _set_meta(NFT_META_MARK)
    )  # fmt: skip


def _from(name: str, operator: int = NFT_CMP_EQ) -> Program:
    return _load_meta(NFT_META_IIFNAME) + _compare(name.encode().ljust(IFNAMSIZ, b"\0"), operator)


def _protocol(subnet: Network) -> Program:
    return _load_meta(NFT_META_PROTOCOL) + _compare(ETHER_TYPE[subnet.version])


def _address(subnet: Network, *, source: bool) -> Program:
    """Not masked where the prefix is the whole address, which a subnet of pods never is."""
    offset = {4: 12, 6: 8}[subnet.version] + (0 if source else subnet.max_prefixlen // 8)
    packed = subnet.network_address.packed
    masking = _expression(
        "bitwise", (1, _number(NFT_REG_1)), (2, _number(NFT_REG_1)), (3, _number(len(packed))),
        (4 | NESTED, _attribute(1, subnet.netmask.packed)), (5 | NESTED, _attribute(1, bytes(len(packed)))),
    )  # fmt: skip
    return _load_payload(NFT_PAYLOAD_NETWORK_HEADER, offset, len(packed)) + masking + _compare(packed)


def _load_meta(key: int) -> Program:
    return _expression("meta", (1, _number(NFT_REG_1)), (2, _number(key)))


def _set_meta(key: int) -> Program:
    return _expression("meta", (2, _number(key)), (3, _number(NFT_REG_1)))


def _load_payload(base: int, offset: int, length: int) -> Program:
    numbers = (NFT_REG_1, base, offset, length)
    return _expression("payload", *((place, _number(value)) for place, value in enumerate(numbers, 1)))


def _write_destination_mac() -> Program:
    """Six bytes at the beginning of the frame; no checksum covers them."""
    values = ((5, NFT_REG_1), (2, NFT_PAYLOAD_LINK_HEADER), (3, 0), (4, 6), (6, 0), (7, 0), (8, 0))
    return _expression("payload", *((place, _number(value)) for place, value in values))


def _load_value(value: bytes) -> Program:
    return _expression("immediate", (1, _number(NFT_REG_1)), (2 | NESTED, _attribute(1, value)))


def _compare(value: bytes, operator: int = NFT_CMP_EQ) -> Program:
    return _expression("cmp", (1, _number(NFT_REG_1)), (2, _number(operator)), (3 | NESTED, _attribute(1, value)))


def _compare_number(value: int) -> Program:
    """With what the kernel computes, in its own byte order."""
    return _compare(struct.pack("=I", value))


def _address_type(side: int) -> Program:
    return _expression("fib", (1, _number(NFT_REG_1)), (2, _number(NFT_FIB_RESULT_ADDRTYPE)), (3, _number(side)))


def _verdict(code: int) -> Program:
    verdict = _nest(2, _attribute(1, _number(code)))
    return _expression("immediate", (1, _number(NFT_REG_VERDICT)), (2 | NESTED, verdict))


def _expression(name: str, *values: tuple[int, bytes]) -> Program:
    data = b"".join(_attribute(kind, value) for kind, value in values)
    return _nest(1, _name(1, name) + (_nest(2, data) if data else b""))


def _message(family: str, body: bytes) -> bytes:
    return bytes([FAMILIES[family], 0, 0, 0]) + body


def _name(kind: int, name: str) -> bytes:
    return _attribute(kind, name.encode() + b"\0")


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | NESTED, value)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _number(value: int) -> bytes:
    return struct.pack("!I", value & 0xFFFFFFFF)
