"""The kernel's links, addresses and routes as plain values.

Filters are sent to the kernel (strict dumps, Linux 4.20) and checked again here for kernels that ignore them.
"""

import errno
import socket
from collections.abc import Container, Iterator
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any

from routes.netlink import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    Netlink,
)
from routes.state import InterfaceState, IPAddress, IPInterface, IPNetwork
from routes.wire import (
    ADDRESS,
    HEADER,
    LINK,
    NEIGHBOUR,
    NUMBER,
    ROUTE,
    address,
    attribute,
    attributes,
    network,
    number,
    read_text,
    text,
)

IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
RT_TABLE_MAIN, RTN_UNICAST, RTN_BLACKHOLE, RTN_UNREACHABLE, RTNH_F_ONLINK = 254, 1, 6, 7, 4
RTPROT_BOOT = 3
"""What `ip route` and flannel's netlink library use when no protocol is named."""
RTM_F_CLONED = 0x200
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH = 1, 4, 5, 6, 7, 8, 9
RTA_VIA, RTA_ENCAP_TYPE, RTA_NH_ID = 18, 21, 30
ALTERING_ATTRIBUTES = frozenset({RTA_METRICS, RTA_PREFSRC, RTA_ENCAP_TYPE, RTA_VIA, RTA_NH_ID})
NDA_DST, NDA_LLADDR, NDA_PORT, NDA_VNI, NDA_IFINDEX, NDA_NH_ID = 1, 2, 6, 7, 8, 13
REDIRECTING_ATTRIBUTES = frozenset({NDA_PORT, NDA_VNI, NDA_IFINDEX, NDA_NH_ID})
NUD_PERMANENT = 0x80
IFLA_IFNAME, IFLA_MTU, IFLA_TXQLEN = 3, 4, 13
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_FLAGS_DADFAILED = 0x08
FAMILIES = (socket.AF_INET, socket.AF_INET6)
AF_BRIDGE = 7
ANYWHERE = {socket.AF_INET: bytes(4), socket.AF_INET6: bytes(16)}


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route of the main table. `kind` is its RTN_ number; `index` is 0 when it has no single device.

    `plain` means without attributes that change what it does (metrics, preferred source, encapsulation).
    """

    prefix: IPNetwork
    metric: int
    protocol: int
    kind: int
    index: int
    via: IPAddress | None
    onlink: bool
    plain: bool


@dataclass(frozen=True, slots=True)
class KernelNeighbour:
    """An entry of a device's neighbour table or, with the VTEP's address for `address`, of its forwarding database.

    `plain` means permanent, and for a forwarding entry also that it changes neither port nor VNI nor output device.
    """

    address: IPAddress | None
    mac: bytes
    permanent: bool
    plain: bool


def read_link(netlink: Netlink, *, name: str = "", index: int = 0) -> InterfaceState | None:
    """The link called `name` or numbered `index`, without its addresses; None when there is none."""
    message = LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + (text(IFLA_IFNAME, name) if name else b"")
    try:
        data = netlink.ask(RTM_GETLINK, message)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return parse_link(data)


def parse_link(data: bytes) -> InterfaceState:
    _, _, index, flags, _ = LINK.unpack_from(data, HEADER.size)
    found = attributes(data, HEADER.size + LINK.size)
    return InterfaceState(
        name=read_text(found.get(IFLA_IFNAME)),
        index=index,
        mtu=number(found.get(IFLA_MTU)),
        txqueuelen=number(found.get(IFLA_TXQLEN)),
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
    )


def read_links(netlink: Netlink) -> list[InterfaceState]:
    """All links of this namespace, without their addresses."""
    message = LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return [parse_link(data) for kind, data in netlink.dump(RTM_GETLINK, message) if kind == RTM_NEWLINK]


def read_addresses(netlink: Netlink, index: int = 0) -> dict[IPInterface, int]:
    """Addresses (with their prefix length) to interface index: of interface `index`, or of all when it is 0.

    An IPv6 address that failed duplicate detection counts as absent: the kernel does not use it.
    """
    found: dict[IPInterface, int] = {}
    for family in FAMILIES:
        message = ADDRESS.pack(family, 0, 0, 0, index)
        for kind, data in dump_or_nothing(netlink, RTM_GETADDR, message):
            if kind != RTM_NEWADDR:
                continue
            _, length, flags, _, device = ADDRESS.unpack_from(data, HEADER.size)
            given = attributes(data, HEADER.size + ADDRESS.size)
            own = given.get(IFA_LOCAL) or given.get(IFA_ADDRESS)
            failed = (number(given.get(IFA_FLAGS)) or flags) & IFA_FLAGS_DADFAILED
            if own and not failed and index in (0, device):
                found[ip_interface((own, length))] = device
    return found


def dump_routes(netlink: Netlink, protocols: Container[int], lengths: Container[int]) -> list[bytes]:
    """The messages, from `struct rtmsg` on, of the routes of the main table that have one of the `protocols` or one of
    the prefix `lengths`, in the kernel's order.

    Others are passed over unread, so that a node with a full Internet table costs little more than the dump.
    """
    found = []
    for family in FAMILIES:
        message = ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
        for kind, data in dump_or_nothing(netlink, RTM_GETROUTE, message):
            if kind != RTM_NEWROUTE:
                continue
            _, length, _, tos, table, protocol, _, _, flags = ROUTE.unpack_from(data, HEADER.size)
            if table != RT_TABLE_MAIN or tos or flags & RTM_F_CLONED:
                continue
            if protocol in protocols or length in lengths:
                found.append(data[HEADER.size :])
    return found


def parse_route(data: bytes) -> KernelRoute:
    """The route in a message from `struct rtmsg` on."""
    family, length, _, _, _, protocol, _, kind, flags = ROUTE.unpack_from(data)
    found = attributes(data, ROUTE.size)
    gateway = found.get(RTA_GATEWAY)
    return KernelRoute(
        prefix=network(found.get(RTA_DST) or ANYWHERE[family], length),
        metric=number(found.get(RTA_PRIORITY)),
        protocol=protocol,
        kind=kind,
        index=number(found.get(RTA_OIF)),
        via=address(gateway) if gateway else None,
        onlink=bool(flags & RTNH_F_ONLINK),
        plain=ALTERING_ATTRIBUTES.isdisjoint(found),
    )


def read_neighbours(netlink: Netlink, index: int, families: tuple[int, ...] = FAMILIES) -> Iterator[KernelNeighbour]:
    """Neighbours on interface `index`; its forwarding database when `families` is AF_BRIDGE."""
    for family in families:
        message = NEIGHBOUR.pack(family, 0, 0, 0, 0) + attribute(NDA_IFINDEX, NUMBER.pack(index))
        for kind, data in dump_or_nothing(netlink, RTM_GETNEIGH, message):
            answer_family, answer_index, state, _, _ = NEIGHBOUR.unpack_from(data, HEADER.size)
            if (kind, answer_family, answer_index) != (RTM_NEWNEIGH, family, index):
                continue
            found = attributes(data, HEADER.size + NEIGHBOUR.size)
            destination = found.get(NDA_DST)
            yield KernelNeighbour(
                address=address(destination) if destination else None,
                mac=found.get(NDA_LLADDR, b""),
                permanent=bool(state & NUD_PERMANENT),
                plain=state == NUD_PERMANENT and REDIRECTING_ATTRIBUTES.isdisjoint(found),
            )


def dump_or_nothing(netlink: Netlink, kind: int, message: Any) -> list[tuple[int, bytes]]:
    """A dump; nothing when the kernel has no such table or device, or no such family at all."""
    try:
        return list(netlink.dump(kind, message))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
            return []
        raise


def decoded(message_class: Any, data: bytes) -> Any:
    message = message_class(data)
    message.decode()
    return message
