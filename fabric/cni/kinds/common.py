"""What all kinds of interfaces share: the container's side, and the host's view of a single pod address."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_interface
from typing import NamedTuple

from fabric.cni import addressing, links
from fabric.cni.attachment import Record
from fabric.cni.errors import CHECK_FAILED, INVALID_CONFIG, CniError
from fabric.cni.pod import Pod
from fabric.cni.result import Address, AddressInterface, IPConfig, Result, Route
from routes.netlink import Netlink


class Expected(NamedTuple):
    """What CHECK has to find in the container: the addresses and routes of ours that are still in `prevResult`.

    Empty `mac` and `mtu` 0 mean that `prevResult` says nothing of them: a later plugin may have changed them.
    """

    ips: tuple[AddressInterface, ...]
    routes: tuple[Route, ...]
    mac: str = ""
    mtu: int = 0


def configure(
    record: Record, pod: Pod, routes: Iterable[Route], neighbours: Iterable[tuple[Address, str]] = ()
) -> links.Link:
    """Addresses, routes and neighbours of the container's interface, which is up then; the interface as it is then."""
    ifname = record.attachment.ifname

    def inside() -> links.Link:
        addressing.set_sysctls([*_ipv6_on(record), *addressing.quiet(ifname)])
        with Netlink() as netlink:
            link = links.must_find(netlink, ifname)
            for address in record.addresses:
                addressing.add_address(netlink, link, address)
            links.set_up(netlink, link)
            for neighbour, mac in neighbours:
                addressing.add_neighbour(netlink, link, neighbour, mac)
            for route in routes:
                addressing.add_route(netlink, link, route)
            return links.must_find(netlink, ifname)

    return pod.run(inside)


def check_inside(record: Record, expected: Expected, pod: Pod, kind: str) -> links.Link:
    """The container's interface. Raises CniError (113) for the first thing that is not as it should be."""
    ifname = record.attachment.ifname

    def inside() -> links.Link:
        with Netlink() as netlink:
            link = links.find(netlink, ifname)
            if link is None:
                raise failed(record, "is not there")
            if link.kind != kind:
                raise failed(record, f"is not of kind {kind} but {link.kind or 'another'}")
            if not link.up:
                raise failed(record, "is down")
            if expected.mtu and link.mtu != expected.mtu:
                raise failed(record, f"has MTU {link.mtu}, {expected.mtu} is expected")
            if expected.mac and link.mac.lower() != expected.mac.lower():
                raise failed(record, f"has MAC {link.mac}, {expected.mac} is expected")
            _check_addressing(netlink, record, expected, link)
            return link

    return pod.run(inside)


def check_host_route(netlink: Netlink, record: Record, index: int, device: str) -> None:
    """Raise CniError (113) unless the host sends to every address of the pod through this device."""
    found = {(route.dst, route.ifindex) for route in addressing.routes(netlink)}
    for ip in record.addresses:
        if (ip_interface(ip.ip).network, index) not in found:
            raise CniError(CHECK_FAILED, f"the host has no route to {ip.ip} through {device}")


def route_to_pod(netlink: Netlink, link: links.Link, ips: Iterable[AddressInterface]) -> None:
    """Lead the host to the pod through `link`, and every bridge that believes the address to be among its own.

    A pod in such a bridge asks for the address by ARP or neighbour solicitation: the host answers and forwards.
    """
    ips = tuple(ips)
    for ip in ips:
        addressing.replace_host_route(netlink, link, ip.ip)
    known = addressing.addresses(netlink)  # after the routes: a bridge that comes now sees these (`answer_for_pods`)
    for ip in ips:
        for index in _covering(known, ip.ip, link.ifindex):
            _answer_for(netlink, index, ip.ip)


def answer_for_pods(netlink: Netlink, bridge: links.Link, gateway: AddressInterface) -> None:
    """Have a bridge that has just got this address answer for the pods in its subnet that came before it."""
    for route in addressing.routes(netlink):
        if route.ours and route.ifindex != bridge.ifindex and route.dst.version == gateway.version:
            pod = route.dst.network_address
            if pod in gateway.network:
                _answer_for(netlink, bridge.ifindex, pod)


def _answer_for(netlink: Netlink, index: int, address: Address) -> None:
    addressing.add_proxy(netlink, index, address)
    # Without it the kernel lets the asker wait for up to 0.8 s (net/ipv4/neighbour.c, proxy_delay).
    addressing.set_sysctls([*_proxy_settings(index, address.version)])


def routed_by(netlink: Netlink, ifindex: int) -> list[AddressInterface]:
    """The pod addresses to which the host has routes of ours through this interface."""
    found = addressing.routes(netlink)
    return [ip_interface(route.dst) for route in found if route.ifindex == ifindex and route.ours]


def forget_pod(netlink: Netlink, ips: Iterable[AddressInterface]) -> None:
    """Take back what `route_to_pod` did; what is gone already is passed over."""
    known = addressing.addresses(netlink)
    for ip in ips:
        addressing.delete_host_route(netlink, ip.ip)
        for index in _covering(known, ip.ip, 0):
            addressing.delete_proxy(netlink, index, ip.ip)


def host_addresses(ipam: Result, kind: str) -> tuple[IPConfig, ...]:
    """The addresses without their subnet: the pod is alone behind its interface. Raises CniError (7) for none."""
    if not ipam.ips:
        raise CniError(INVALID_CONFIG, f"kind {kind}: IPAM gave no address")
    return tuple(IPConfig(ip_interface(ip.address.ip)) for ip in ipam.ips)


def failed(record: Record, what: str) -> CniError:
    """CHECK's answer about the container's interface."""
    return CniError(CHECK_FAILED, f"interface {record.attachment.ifname} in {record.netns} {what}")


def _check_addressing(netlink: Netlink, record: Record, expected: Expected, link: links.Link) -> None:
    there = {address for _, address in addressing.addresses(netlink, link.ifindex)}
    for ip in expected.ips:
        if ip not in there:
            raise failed(record, f"has lost its address {ip}")
    found = {route.dst for route in addressing.routes(netlink) if route.ifindex == link.ifindex}
    for route in expected.routes:
        if route.dst not in found:
            raise failed(record, f"has lost its route to {route.dst}")


def _ipv6_on(record: Record) -> list[tuple[str, str]]:
    if 6 not in record.versions:
        return []
    ifname = record.attachment.ifname
    names = [(f"net/ipv6/conf/{name}/disable_ipv6", "0") for name in ("lo", ifname)]
    return [*names, (f"net/ipv6/conf/{ifname}/keep_addr_on_down", "1")]


def _covering(known: Iterable[tuple[int, AddressInterface]], address: Address, own: int) -> set[int]:
    return {
        index
        for index, interface in known
        if index != own
        and interface.version == address.version
        and interface.network.prefixlen < interface.max_prefixlen
        and not interface.is_link_local
        and address in interface.network
    }


def _proxy_settings(index: int, version: int) -> list[tuple[str, str]]:
    from socket import if_indextoname

    try:
        name = if_indextoname(index)
    except OSError:  # gone meanwhile
        return []
    family = "ipv4" if version == 4 else "ipv6"
    settings = [(f"net/{family}/neigh/{name}/proxy_delay", "0")]
    return settings if version == 4 else [*settings, (f"net/ipv6/conf/{name}/proxy_ndp", "1")]
