"""Addresses, routes, neighbours and sysctls, in the namespace of the conversation. Raises CniError (5, 112)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_interface
from typing import NamedTuple

from fabric.cni.errors import IO_FAILURE, CniError
from fabric.cni.links import Link, hardware, perform, refused
from fabric.cni.result import Address, AddressInterface, Network, Route
from routes.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    Netlink,
)
from routes.wire import ADDRESS, HEADER, NEIGHBOUR, NUMBER, ROUTE, attribute, attributes, network, number

ROUTE_PROTOCOL = 113
"""rtm_protocol of the host's routes to pods. Not 112: routes of that number on the node port are the daemon's to
sweep. linux/rtnetlink.h assigns it to nobody."""
RTPROT_STATIC = 4
NUD_PERMANENT, NTF_PROXY = 0x80, 0x08
IFA_F_NODAD = 0x02
RT_TABLE_MAIN, RTN_UNICAST = 254, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS, RTA_TABLE = 1, 4, 5, 6, 8, 15
RTAX_MTU, RTAX_ADVMSS = 2, 8
NDA_DST, NDA_LLADDR = 1, 2
_NOT_THERE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL)


class KernelRoute(NamedTuple):
    """A route as the kernel shows it; `ours` is one to a pod, made by this plugin."""

    dst: Network
    ifindex: int
    ours: bool


def add_address(netlink: Netlink, link: Link, address: AddressInterface) -> None:
    """Without duplicate detection: IPAM gave it to nobody else, and the pod is not to wait for it."""
    message = _address_message(link.ifindex, address, IFA_F_NODAD if address.version == 6 else 0)
    if address.version == 4 and address.network.prefixlen < 31:
        message += attribute(IFA_BROADCAST, address.network.broadcast_address.packed)
    error = netlink.perform([(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, message)])[0]
    if error is not None and error.errno != errno.EEXIST:
        raise refused(f"could not add IP address {address} to {link.name!r}", error)


def delete_address(netlink: Netlink, link: Link, address: AddressInterface) -> None:
    """Remove it, if it is there."""
    error = netlink.perform([(RTM_DELADDR, 0, _address_message(link.ifindex, address))])[0]
    if error is not None and error.errno not in _NOT_THERE:
        raise refused(f"could not remove IP address {address} from {link.name!r}", error)


def addresses(netlink: Netlink, index: int = 0) -> list[tuple[int, AddressInterface]]:
    """(interface index, address) of one interface, or of all when `index` is 0."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind, data in _dump(netlink, RTM_GETADDR, ADDRESS.pack(family, 0, 0, 0, index)):
            _, length, _, _, owner = ADDRESS.unpack_from(data, HEADER.size)
            values = attributes(data, HEADER.size + ADDRESS.size)
            own = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)
            if kind == RTM_NEWADDR and own and (not index or owner == index):
                found.append((owner, ip_interface((own, length))))
    return found


def add_route(netlink: Netlink, link: Link, route: Route, protocol: int = RTPROT_STATIC) -> None:
    """A route through the link; behind one that is there already, as another interface's default route may be."""
    scope = RT_SCOPE_UNIVERSE if route.gateway or route.dst.version == 6 else RT_SCOPE_LINK
    message = _route_message(link.ifindex, route, protocol, dict(route.numbers).get("scope", scope))
    if route.gateway:
        message += attribute(RTA_GATEWAY, route.gateway.packed)
    metrics = ((RTAX_MTU, route.number("mtu")), (RTAX_ADVMSS, route.number("advmss")))
    packed = b"".join(attribute(kind, NUMBER.pack(value)) for kind, value in metrics if value)
    message += attribute(RTA_METRICS, packed) if packed else b""
    error = netlink.perform([(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, message)])[0]
    if error is not None and error.errno != errno.EEXIST:
        via = f" via {route.gateway}" if route.gateway else ""
        raise refused(f"failed to add route {route.dst}{via} dev {link.name}", error)


def replace_host_route(netlink: Netlink, link: Link, address: Address) -> None:
    """`<address>/32 dev <link> scope link proto 113`, instead of one that an earlier pod has left."""
    route = Route(ip_interface(address).network)
    scope = RT_SCOPE_LINK if address.version == 4 else RT_SCOPE_UNIVERSE
    message = _route_message(link.ifindex, route, ROUTE_PROTOCOL, scope)
    perform(netlink, f"route to {address} dev {link.name}", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, message)


def delete_host_route(netlink: Netlink, address: Address) -> None:
    """Remove our route to the address, whatever device it has; nobody else's."""
    message = _route_message(0, Route(ip_interface(address).network), ROUTE_PROTOCOL, RT_SCOPE_NOWHERE, 0)
    error = netlink.perform([(RTM_DELROUTE, 0, message)])[0]
    if error is not None and error.errno not in _NOT_THERE:
        raise refused(f"remove route to {address}", error)


def routes(netlink: Netlink) -> Iterator[KernelRoute]:
    """All unicast routes of both families, multipath ones left out."""
    for family in (socket.AF_INET, socket.AF_INET6):
        anywhere = bytes(4 if family == socket.AF_INET else 16)
        for kind, data in _dump(netlink, RTM_GETROUTE, ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, length, _, _, _, protocol, _, sort, _ = ROUTE.unpack_from(data, HEADER.size)
            if kind == RTM_NEWROUTE and sort == RTN_UNICAST:
                values = attributes(data, HEADER.size + ROUTE.size)
                dst = network(values.get(RTA_DST) or anywhere, length)
                yield KernelRoute(dst, number(values.get(RTA_OIF)), protocol == ROUTE_PROTOCOL)


def device_to(netlink: Netlink, address: Address) -> str:
    """The interface by which the host reaches the address. Raises CniError (112)."""
    message = ROUTE.pack(_family(address.version), address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    try:
        answer = netlink.ask(RTM_GETROUTE, message + attribute(RTA_DST, address.packed))
        return socket.if_indextoname(number(attributes(answer, HEADER.size + ROUTE.size).get(RTA_OIF)))
    except OSError as error:
        raise refused(f"look up the route to {address}", error) from None


def add_neighbour(netlink: Netlink, link: Link, address: Address, mac: str) -> None:
    """A permanent neighbour: nobody is asked for it, and nobody can change it by an answer."""
    message = _neighbour_message(link.ifindex, address, state=NUD_PERMANENT)
    message += attribute(NDA_LLADDR, hardware(mac))
    flags = NLM_F_CREATE | NLM_F_REPLACE
    perform(netlink, f"set neighbour {address} of {link.name}", RTM_NEWNEIGH, flags, message)


def add_proxy(netlink: Netlink, index: int, address: Address) -> None:
    """Answer ARP or neighbour solicitations for the address on interface `index`."""
    message = _neighbour_message(index, address, flags=NTF_PROXY)
    perform(netlink, f"answer for {address}", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, message)


def delete_proxy(netlink: Netlink, index: int, address: Address) -> None:
    """Stop answering for the address."""
    message = _neighbour_message(index, address, flags=NTF_PROXY)
    error = netlink.perform([(RTM_DELNEIGH, 0, message)])[0]
    if error is not None and error.errno not in _NOT_THERE:
        raise refused(f"stop answering for {address}", error)


def set_sysctls(settings: Iterable[tuple[str, str]]) -> None:
    """Write (path below /proc/sys, text) in the calling thread's network namespace, where they differ.

    What the kernel does not have (IPv6 switched off) is skipped. Raises CniError (5).
    """
    for name, value in settings:
        path = os.path.join("/proc/sys", name)
        try:
            with open(path, "r+b", buffering=0) as file:
                if file.read(64).strip() != value.encode():
                    file.seek(0)
                    file.write(value.encode())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CniError(IO_FAILURE, f"set sysctl {name} to {value}: {error.strerror}") from None


def quiet(ifname: str) -> tuple[tuple[str, str], ...]:
    """Settings of every interface that we make: no router advertisement or redirect of a neighbour changes its routes.

    CVE-2020-10749 and its relatives are pods that send router advertisements.
    """
    return (
        (f"net/ipv6/conf/{ifname}/accept_ra", "0"),
        (f"net/ipv6/conf/{ifname}/accept_redirects", "0"),
        (f"net/ipv4/conf/{ifname}/accept_redirects", "0"),
        (f"net/ipv6/conf/{ifname}/accept_dad", "0"),
    )


def forwarding(versions: Iterable[int]) -> tuple[tuple[str, str], ...]:
    """The host is a router for these IP versions."""
    names = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
    return tuple((names[version], "1") for version in sorted(set(versions)))


def _dump(netlink: Netlink, kind: int, message: bytes) -> list[tuple[int, bytes]]:
    try:
        return list(netlink.dump(kind, message))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
            return []  # no such table or device, or no such family at all
        raise refused("ask the kernel for addresses and routes", error) from None


def _address_message(index: int, address: AddressInterface, flags: int = 0) -> bytes:
    message = ADDRESS.pack(_family(address.version), address.network.prefixlen, flags, 0, index)
    message += attribute(IFA_LOCAL, address.ip.packed) + attribute(IFA_ADDRESS, address.ip.packed)
    return message + (attribute(IFA_FLAGS, NUMBER.pack(flags)) if flags else b"")


def _route_message(index: int, route: Route, protocol: int, scope: int, kind: int = RTN_UNICAST) -> bytes:
    table = route.number("table") or RT_TABLE_MAIN
    number_of_table = table if table < 256 else 0
    family, length = _family(route.dst.version), route.dst.prefixlen
    message = ROUTE.pack(family, length, 0, 0, number_of_table, protocol, scope, kind, 0)
    message += attribute(RTA_DST, route.dst.network_address.packed) + attribute(RTA_TABLE, NUMBER.pack(table))
    priority = route.number("priority")
    message += attribute(RTA_OIF, NUMBER.pack(index)) if index else b""
    return message + (attribute(RTA_PRIORITY, NUMBER.pack(priority)) if priority else b"")


def _neighbour_message(index: int, address: Address, state: int = 0, flags: int = 0) -> bytes:
    return NEIGHBOUR.pack(_family(address.version), index, state, flags, 0) + attribute(NDA_DST, address.packed)


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6
