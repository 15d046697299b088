"""Kind `veth`: a routed pair, no bridge. The host sends to the pod by a /32 (/128) route through its end.

The pod's next hop is the same everywhere: 169.254.1.1, or fe80::ecee:eeff:feee:eeee, at MAC ee:ee:ee:ee:ee:ee, which
every host end has (as Calico's have). The pod knows that MAC by a permanent neighbour entry; proxy ARP is there for
pods that flush theirs. The host asks for the pod's MAC, which a later plugin may change; a pod that answers for others
changes nothing, since each is asked only for its own addresses. Limits: IPv6 sources are not filtered here (IPv4's are,
by strict rp_filter).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Interface, ip_interface

from fabric.cni import addressing, links
from fabric.cni.attachment import Record
from fabric.cni.config import Conf
from fabric.cni.kinds import common
from fabric.cni.pod import Pod
from fabric.cni.result import Address, Interface, Result, Route, default_route
from routes.netlink import Netlink

NAME = "veth"
GATEWAY = IPv4Address("169.254.1.1")
IPV6_GATEWAY = IPv6Address("fe80::ecee:eeff:feee:eeee")
GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"


def plan(conf: Conf, ipam: Result, mac: str) -> Result:
    """Host addresses, a route to the IPv4 next hop, and the others through it. Raises CniError (7)."""
    ips = common.host_addresses(ipam, NAME)
    versions = sorted({ip.address.version for ip in ips})
    wanted = ipam.routes or tuple(default_route(version, None) for version in versions)
    routes = tuple(route._replace(gateway=_gateway(route.dst.version)) for route in wanted)
    link_route = (Route(ip_interface(GATEWAY).network),) if 4 in versions else ()
    return Result((), ips, link_route + routes, ipam.dns)


def attach(record: Record, pod: Pod) -> tuple[Interface, ...]:
    """Make and configure the pair. Raises CniError (5, 112)."""
    name = record.attachment.host_interface
    with Netlink() as netlink:
        links.delete(netlink, name, ("veth",))  # of a call that was killed: the container has no such interface
        host, inside = links.VethEnd(name, GATEWAY_MAC, record.mtu), _pod_end(record)
        links.create_veth(netlink, host, inside, pod.fd)
        addressing.set_sysctls([*_host_settings(name), *addressing.forwarding(record.versions)])
        link = links.must_find(netlink, name)
        if 6 in record.versions:
            addressing.add_address(netlink, link, IPv6Interface((IPV6_GATEWAY, 64)))
        links.set_up(netlink, link, record.alias)
        neighbours = [(_gateway(version), GATEWAY_MAC) for version in sorted(record.versions)]
        pod_link = common.configure(record, pod, record.routes, neighbours)
        common.route_to_pod(netlink, link, record.addresses)
    return (
        Interface(name, GATEWAY_MAC, link.mtu),
        Interface(record.attachment.ifname, pod_link.mac, pod_link.mtu, record.netns),
    )


def detach(record: Record, pod: Pod | None) -> bool:
    """Delete the pair, with the routes through it."""
    with Netlink() as netlink:
        link = links.find(netlink, record.attachment.host_interface)
        # Without a record the routes say which addresses were the pod's; prevResult's may be another's by now.
        addresses = record.addresses or (common.routed_by(netlink, link.ifindex) if link else ())
        common.forget_pod(netlink, addresses)
    delete_pair(record, pod)
    return True


def check(record: Record, expected: common.Expected, pod: Pod) -> None:
    """Raise CniError (113) unless both ends, addresses, routes and the host's route are there."""
    link = common.check_inside(record, expected, pod, "veth")
    with Netlink() as netlink:
        host = check_pair(netlink, record, link)
        common.check_host_route(netlink, record, host.ifindex, host.name)


def ready(conf: Conf) -> None:
    """Nothing but the kernel is needed."""


def delete_pair(record: Record, pod: Pod | None) -> None:
    """Delete the pair by its host end, else (another plugin made it) by the container's."""
    with Netlink() as netlink:
        if links.delete(netlink, record.attachment.host_interface, ("veth",)) or pod is None:
            return

    def inside() -> None:
        with Netlink() as netlink:
            links.delete(netlink, record.attachment.ifname, ("veth",))

    pod.run(inside)


def check_pair(netlink: Netlink, record: Record, pod_link: links.Link) -> links.Link:
    """The host's end. Raises CniError (113) unless it is up and the container's end is the other one."""
    host = links.find(netlink, index=pod_link.peer)  # by its number: another plugin may have chosen another name
    if host is None or host.kind != "veth" or host.peer != pod_link.ifindex:
        raise common.failed(record, f"has lost its host end {record.attachment.host_interface}")
    if not host.up:
        raise common.failed(record, f"has a host end {host.name} that is down")
    return host


def _pod_end(record: Record) -> links.VethEnd:
    return links.VethEnd(record.attachment.ifname, record.mac, record.mtu)


def _gateway(version: int) -> Address:
    return GATEWAY if version == 4 else IPV6_GATEWAY


def _host_settings(name: str) -> list[tuple[str, str]]:
    return [
        *addressing.quiet(name),
        (f"net/ipv4/conf/{name}/proxy_arp", "1"),
        (f"net/ipv4/neigh/{name}/proxy_delay", "0"),
        (f"net/ipv4/conf/{name}/rp_filter", "1"),  # strict: the only source is the pod, by the host's route to it
        (f"net/ipv4/conf/{name}/forwarding", "1"),
        (f"net/ipv6/conf/{name}/forwarding", "1"),
        (f"net/ipv6/conf/{name}/addr_gen_mode", "1"),  # the gateway's address is added by hand, without waiting
    ]
