"""Addresses, routes, neighbours and sysctls, in the namespace of the conversation. Raises CniError (5, 112)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_interface
from typing import NamedTuple

from fabric.cni.errors import IO_FAILURE, CniError
from fabric.cni.links import Link, perform, refused
from fabric.cni.result import Address, AddressInterface, Network, Route
from routes.codec import bare_package, ifaddrmsg, rtmsg
from routes.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    Message,
    Netlink,
)

with bare_package("pyroute2"):
    from pyroute2.netlink.rtnl.ndmsg import ndmsg

ROUTE_PROTOCOL = 113
"""rtm_protocol of the host's routes to pods. Not 112: routes of that number on the node port are the daemon's to
sweep. linux/rtnetlink.h assigns it to nobody."""
RTPROT_STATIC = 4
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
NUD_PERMANENT, NTF_PROXY = 0x80, 0x08
IFA_F_NODAD = 0x02
RT_TABLE_MAIN, RTN_UNICAST = 254, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
_NOT_THERE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL)


class KernelRoute(NamedTuple):
    """A route as the kernel shows it; `ours` is one to a pod, made by this plugin."""

    dst: Network
    ifindex: int
    ours: bool


def add_address(netlink: Netlink, link: Link, address: AddressInterface) -> None:
    """Without duplicate detection: IPAM gave it to nobody else, and the pod is not to wait for it."""
    message = _address_message(link.ifindex, address)
    if address.version == 6:
        message["flags"] = IFA_F_NODAD
        message["attrs"].append(("IFA_FLAGS", IFA_F_NODAD))
    elif address.network.prefixlen < 31:
        message["attrs"].append(("IFA_BROADCAST", str(address.network.broadcast_address)))
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
        message = ifaddrmsg()
        message["family"], message["index"] = family, index
        for kind, data in _dump(netlink, RTM_GETADDR, message):
            answer = ifaddrmsg(data)
            answer.decode()
            text = answer.get_attr("IFA_LOCAL") or answer.get_attr("IFA_ADDRESS")
            if kind == RTM_NEWADDR and text and (not index or answer["index"] == index):
                found.append((answer["index"], ip_interface(f"{text}/{answer['prefixlen']}")))
    return found


def add_route(netlink: Netlink, link: Link, route: Route, protocol: int = RTPROT_STATIC) -> None:
    """A route through the link; behind one that is there already, as another interface's default route may be."""
    message = _route_message(link.ifindex, route)
    message["proto"], message["type"] = protocol, RTN_UNICAST
    scope = RT_SCOPE_UNIVERSE if route.gateway or route.dst.version == 6 else RT_SCOPE_LINK
    message["scope"] = dict(route.numbers).get("scope", scope)
    if route.gateway:
        message["attrs"].append(("RTA_GATEWAY", str(route.gateway)))
    metrics = [("RTAX_MTU", route.number("mtu")), ("RTAX_ADVMSS", route.number("advmss"))]
    if any(value for _, value in metrics):
        message["attrs"].append(("RTA_METRICS", {"attrs": [item for item in metrics if item[1]]}))
    error = netlink.perform([(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, message)])[0]
    if error is not None and error.errno != errno.EEXIST:
        via = f" via {route.gateway}" if route.gateway else ""
        raise refused(f"failed to add route {route.dst}{via} dev {link.name}", error)


def replace_host_route(netlink: Netlink, link: Link, address: Address) -> None:
    """`<address>/32 dev <link> scope link proto 113`, instead of one that an earlier pod has left."""
    route = Route(ip_interface(address).network)
    message = _route_message(link.ifindex, route)
    message["proto"], message["type"] = ROUTE_PROTOCOL, RTN_UNICAST
    message["scope"] = RT_SCOPE_LINK if address.version == 4 else RT_SCOPE_UNIVERSE
    perform(netlink, f"route to {address} dev {link.name}", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, message)


def delete_host_route(netlink: Netlink, address: Address) -> None:
    """Remove our route to the address, whatever device it has; nobody else's."""
    message = _route_message(0, Route(ip_interface(address).network))
    message["proto"], message["scope"] = ROUTE_PROTOCOL, RT_SCOPE_NOWHERE
    error = netlink.perform([(RTM_DELROUTE, 0, message)])[0]
    if error is not None and error.errno not in _NOT_THERE:
        raise refused(f"remove route to {address}", error)


def routes(netlink: Netlink) -> Iterator[KernelRoute]:
    """All unicast routes of both families, multipath ones left out."""
    for family in (socket.AF_INET, socket.AF_INET6):
        message = rtmsg()
        message["family"] = family
        for kind, data in _dump(netlink, RTM_GETROUTE, message):
            answer = rtmsg(data)
            answer.decode()
            if kind == RTM_NEWROUTE and answer["type"] == RTN_UNICAST:
                any_address = "0.0.0.0" if family == socket.AF_INET else "::"
                dst = ip_interface(f"{answer.get_attr('RTA_DST') or any_address}/{answer['dst_len']}").network
                yield KernelRoute(dst, answer.get_attr("RTA_OIF") or 0, answer["proto"] == ROUTE_PROTOCOL)


def device_to(netlink: Netlink, address: Address) -> str:
    """The interface by which the host reaches the address. Raises CniError (112)."""
    message = rtmsg()
    message["family"], message["dst_len"] = _family(address.version), address.max_prefixlen
    message["attrs"] = [("RTA_DST", str(address))]
    try:
        answer = rtmsg(netlink.ask(RTM_GETROUTE, message))
        answer.decode()
        return socket.if_indextoname(answer.get_attr("RTA_OIF"))
    except OSError as error:
        raise refused(f"look up the route to {address}", error) from None


def add_neighbour(netlink: Netlink, link: Link, address: Address, mac: str) -> None:
    """A permanent neighbour: nobody is asked for it, and nobody can change it by an answer."""
    message = _neighbour_message(link.ifindex, address)
    message["state"] = NUD_PERMANENT
    message["attrs"].append(("NDA_LLADDR", mac))
    flags = NLM_F_CREATE | NLM_F_REPLACE
    perform(netlink, f"set neighbour {address} of {link.name}", RTM_NEWNEIGH, flags, message)


def add_proxy(netlink: Netlink, index: int, address: Address) -> None:
    """Answer ARP or neighbour solicitations for the address on interface `index`."""
    message = _neighbour_message(index, address)
    message["flags"] = NTF_PROXY
    perform(netlink, f"answer for {address}", RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, message)


def delete_proxy(netlink: Netlink, index: int, address: Address) -> None:
    """Stop answering for the address."""
    message = _neighbour_message(index, address)
    message["flags"] = NTF_PROXY
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


def _dump(netlink: Netlink, kind: int, message: Message) -> list[tuple[int, bytes]]:
    try:
        return list(netlink.dump(kind, message))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
            return []  # no such table or device, or no such family at all
        raise refused("ask the kernel for addresses and routes", error) from None


def _address_message(index: int, address: AddressInterface) -> ifaddrmsg:
    message = ifaddrmsg()
    message["family"] = _family(address.version)
    message["prefixlen"], message["index"] = address.network.prefixlen, index
    message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    return message


def _route_message(index: int, route: Route) -> rtmsg:
    message = rtmsg()
    message["family"], message["dst_len"] = _family(route.dst.version), route.dst.prefixlen
    table = route.number("table") or RT_TABLE_MAIN
    message["table"] = table if table < 256 else 0
    message["attrs"] = [("RTA_DST", str(route.dst.network_address)), ("RTA_TABLE", table)]
    message["attrs"] += [("RTA_OIF", index)] if index else []
    priority = route.number("priority")
    message["attrs"] += [("RTA_PRIORITY", priority)] if priority else []
    return message


def _neighbour_message(index: int, address: Address) -> ndmsg:
    message = ndmsg()
    message["family"], message["ifindex"] = _family(address.version), index
    message["attrs"] = [("NDA_DST", str(address))]
    return message


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6
