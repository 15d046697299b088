"""Questions to the kernel that a daemon asks at start-up: which interface, which address, which MTU, which route.

Each opens its own short conversation; raises OSError with a readable text when there is no answer.
"""

import errno
import socket
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Literal

from routes.codec import ifaddrmsg, rtmsg
from routes.netlink import RTM_GETADDR, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWROUTE, Netlink
from routes.observe import (
    FAMILIES,
    IFA_FLAGS_DADFAILED,
    RT_TABLE_MAIN,
    RTN_UNICAST,
    decoded,
    dump_or_nothing,
    parse_route,
    read_addresses,
    read_link,
)
from routes.state import InterfaceState, IPAddress, IPInterface
from routes.wire import HEADER

IFA_F_TEMPORARY, IFA_F_DEPRECATED, IFA_F_PERMANENT = 0x01, 0x20, 0x80


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface and what the kernel says about it (linux/if_addr.h).

    `temporary` is IPv6's privacy address; for IPv4 the same bit says "secondary".
    """

    interface: IPInterface
    permanent: bool
    temporary: bool
    deprecated: bool


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """How the kernel would send to an address: device name, next hop or None when on link, preferred source."""

    destination: IPAddress
    interface: str
    gateway: IPAddress | None
    source: IPAddress | None


def default_route_interface(family: Literal[4, 6] = 4) -> str | None:
    """Name of the interface of the default route with the lowest metric in the main table, None without one.

    A default route over several next hops (multipath) names the interface of its first.
    """
    best: tuple[int, int] | None = None
    with Netlink() as netlink:
        message = rtmsg()
        message["family"] = socket.AF_INET if family == 4 else socket.AF_INET6
        message["table"] = RT_TABLE_MAIN
        for kind, data in dump_or_nothing(netlink, RTM_GETROUTE, message):
            answer = decoded(rtmsg, data)
            usable = answer["table"] == RT_TABLE_MAIN and answer["type"] == RTN_UNICAST
            if kind != RTM_NEWROUTE or answer["dst_len"] != 0 or not usable:
                continue
            hops = answer.get_attr("RTA_MULTIPATH")
            index = hops[0]["oif"] if hops else answer.get_attr("RTA_OIF")
            candidate = (answer.get_attr("RTA_PRIORITY") or 0, index)
            if index and (best is None or candidate[0] < best[0]):
                best = candidate
        link = read_link(netlink, index=best[1]) if best else None
    return link.name if link else None


def interface_state(name: str) -> InterfaceState:
    """Link and addresses of interface `name`. Raises OSError (ENODEV) when there is none."""
    with Netlink() as netlink:
        return observe_interface(netlink, name) or missing(name)


def observe_interface(netlink: Netlink, name: str) -> InterfaceState | None:
    link = read_link(netlink, name=name)
    if link is None:
        return None
    addresses = frozenset(read_addresses(netlink, link.index))
    return InterfaceState(link.name, link.index, link.mtu, link.txqueuelen, link.up, link.carrier, addresses)


def missing(name: str) -> InterfaceState:
    raise OSError(errno.ENODEV, f"there is no interface {name} in this network namespace; `ip link` lists them")


def interface_addresses(name: str) -> list[InterfaceAddress]:
    """Addresses of interface `name` in the kernel's order, IPv4 first; without those that failed duplicate detection.

    Raises OSError (ENODEV) when there is no such interface.
    """
    found = []
    with Netlink() as netlink:
        link = read_link(netlink, name=name) or missing(name)
        for family in FAMILIES:
            message = ifaddrmsg()
            message["family"], message["index"] = family, link.index
            for kind, data in dump_or_nothing(netlink, RTM_GETADDR, message):
                answer = decoded(ifaddrmsg, data)
                flags = answer.get_attr("IFA_FLAGS") or answer["flags"]
                address = answer.get_attr("IFA_LOCAL") or answer.get_attr("IFA_ADDRESS")
                ours = kind == RTM_NEWADDR and answer["index"] == link.index
                if ours and address and not flags & IFA_FLAGS_DADFAILED:
                    interface = ip_interface(f"{address}/{answer['prefixlen']}")
                    bits = (bool(flags & bit) for bit in (IFA_F_PERMANENT, IFA_F_TEMPORARY, IFA_F_DEPRECATED))
                    found.append(InterfaceAddress(interface, *bits))
    return found


def interface_mtu(name: str) -> int:
    """MTU of interface `name` in bytes. Raises OSError (ENODEV) when there is none."""
    return interface_state(name).mtu


def interface_of_address(address: IPAddress | str) -> str | None:
    """Name of the interface that carries `address`, None when no interface does."""
    wanted = ip_address(address)
    with Netlink() as netlink:
        for interface, index in read_addresses(netlink).items():
            if interface.ip == wanted:
                link = read_link(netlink, index=index)
                return link.name if link else None
    return None


def route_get(address: IPAddress | str) -> RouteAnswer:
    """How the kernel would route a packet to `address` (`ip route get`). Raises OSError when it would not."""
    destination = ip_address(address)
    message = rtmsg()
    message["family"] = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    message["dst_len"] = destination.max_prefixlen
    message["attrs"] = [("RTA_DST", str(destination))]
    with Netlink() as netlink:
        try:
            data = netlink.ask(RTM_GETROUTE, message)
        except OSError as error:
            raise OSError(error.errno, f"no route to {destination}: {error.strerror}") from None
        answer = decoded(rtmsg, data)
        route = parse_route(data[HEADER.size :])
        link = read_link(netlink, index=route.index)
    source = answer.get_attr("RTA_PREFSRC")
    name = link.name if link else ""
    return RouteAnswer(destination, name, route.via, ip_address(source) if source else None)
