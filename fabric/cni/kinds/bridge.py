"""Kind `bridge`: what the reference plugin of that name does, which is what flannel delegates to by default.

Source: containernetworking/plugins `plugins/main/bridge/bridge.go`: keys, gateway addresses, the order of interfaces in
the result, texts of errors. What differs: the host's interface is named after the attachment, a bridge made here keeps
its MAC from the start, and keys that this kind does not know are refused instead of passed over (`UNSUPPORTED`).
"""

from __future__ import annotations

import os
import time
from ipaddress import ip_interface
from typing import NamedTuple

from fabric.cni import addressing, links
from fabric.cni.attachment import Record
from fabric.cni.config import Conf, load, refuse
from fabric.cni.errors import CHECK_FAILED, INVALID_CONFIG, KERNEL_REFUSED, CniError
from fabric.cni.kinds import common, veth
from fabric.cni.pod import Pod
from fabric.cni.result import AddressInterface, Interface, IPConfig, Result, Route, default_route
from routes.netlink import Netlink

NAME = "bridge"
DEFAULT_BRIDGE = "cni0"
PORT_SECONDS = 2.5
_NOT_HERE = "use the reference plugin `bridge` for it"
UNSUPPORTED = {
    "ipmasqbackend": "leave it out: ours is nftables",
    "vlan": _NOT_HERE,
    "vlantrunk": _NOT_HERE,
    "preservedefaultvlan": _NOT_HERE,
    "macspoofchk": _NOT_HERE,
    "enabledad": _NOT_HERE,
    "disablecontainerinterface": _NOT_HERE,
    "portisolation": _NOT_HERE,
}


class BridgeConf(NamedTuple):
    """The keys of this kind."""

    bridge: str
    is_gateway: bool
    is_default_gateway: bool
    force_address: bool
    hairpin: bool
    promiscuous: bool


def parse(conf: Conf) -> BridgeConf:
    """The keys; by default a gateway for our own type, none for the reference plugin's. Raises CniError (2, 7)."""
    ours = conf.type != "bridge"
    refuse(conf, UNSUPPORTED)
    name = conf.text("bridge", DEFAULT_BRIDGE)
    if len(name.encode(errors="replace")) > 15 or name in (".", "..") or any(c in "/:%" or c.isspace() for c in name):
        raise CniError(INVALID_CONFIG, f"bridge is no name of an interface: {ascii(name)[:40]}")
    default = conf.flag("isdefaultgateway", ours)
    found = BridgeConf(
        name,
        conf.flag("isgateway", ours) or default,
        default,
        conf.flag("forceaddress"),
        conf.flag("hairpinmode"),
        conf.flag("promiscmode"),
    )
    if found.hairpin and found.promiscuous:
        raise CniError(INVALID_CONFIG, "cannot set hairpin mode and promiscuous mode at the same time")
    return found


def plan(conf: Conf, ipam: Result, mac: str) -> Result:
    """The addresses with their gateways, and default routes where these are the default. Raises CniError (2, 7)."""
    wanted = parse(conf)
    if not ipam.ips:
        raise CniError(INVALID_CONFIG, "IPAM plugin returned missing IP config")
    ips: list[IPConfig] = []
    routes = list(ipam.routes)
    for ip in ipam.ips:
        network = ip.address.network
        gateway = ip.gateway or (network.network_address + 1 if wanted.is_gateway else None)
        ips.append(IPConfig(ip.address, gateway))
        default = default_route(ip.address.version, gateway)
        if wanted.is_default_gateway and default.dst not in {route.dst for route in routes}:
            routes.append(default)
    return Result((), tuple(ips), tuple(routes), ipam.dns)


def attach(record: Record, pod: Pod) -> tuple[Interface, ...]:
    """Make what is missing of the bridge, and the pair. Raises CniError (5, 112)."""
    wanted = parse(load(dict(record.document)))
    name = record.attachment.host_interface
    with Netlink() as netlink:
        bridge = _ensure_bridge(netlink, wanted, record.mtu)
        links.delete(netlink, name, ("veth",))  # of a call that was killed: the container has no such interface
        ends = links.VethEnd(name, "", record.mtu), links.VethEnd(record.attachment.ifname, record.mac, record.mtu)
        links.create_veth(netlink, *ends, pod.fd, bridge.ifindex)
        addressing.set_sysctls(addressing.quiet(name))
        link = links.must_find(netlink, name)
        if wanted.hairpin:
            links.set_hairpin(netlink, link)
        links.set_up(netlink, link, record.alias)
        pod_link = common.configure(record, pod, _with_gateways(record))
        if wanted.is_gateway:
            _be_gateway(netlink, bridge, record, wanted.force_address)
        _wait_for_port(netlink, name)
        bridge = links.must_find(netlink, wanted.bridge)
    return (
        Interface(bridge.name, bridge.mac, bridge.mtu),
        Interface(name, link.mac, link.mtu),
        Interface(record.attachment.ifname, pod_link.mac, pod_link.mtu, record.netns),
    )


def detach(record: Record, pod: Pod | None) -> bool:
    """Delete the pair; the bridge stays for the others."""
    veth.delete_pair(record, pod)
    return True


def check(record: Record, expected: common.Expected, pod: Pod) -> None:
    """Raise CniError (113) unless bridge, both ends, addresses and routes are there."""
    wanted = parse(load(dict(record.document)))
    link = common.check_inside(record, expected, pod, "veth")
    with Netlink() as netlink:
        bridge = links.find(netlink, wanted.bridge)
        if bridge is None or bridge.kind != "bridge":
            raise CniError(CHECK_FAILED, f"there is no bridge {wanted.bridge}")
        if not bridge.up:
            raise CniError(CHECK_FAILED, f"bridge {wanted.bridge} is down")
        if veth.check_pair(netlink, record, link).master != bridge.ifindex:
            raise common.failed(record, f"is not in bridge {wanted.bridge} any more")


def ready(conf: Conf) -> None:
    """Raise CniError (2, 7) for keys that ADD would refuse."""
    parse(conf)


def _ensure_bridge(netlink: Netlink, wanted: BridgeConf, mtu: int) -> links.Link:
    made = links.create_bridge(netlink, wanted.bridge, _random_mac(), mtu)
    bridge = links.must_find(netlink, wanted.bridge)
    if bridge.kind != "bridge":
        raise CniError(KERNEL_REFUSED, f"{wanted.bridge!r} already exists but is not a bridge")
    if made:
        addressing.set_sysctls(addressing.quiet(wanted.bridge))
    if not bridge.up or (wanted.promiscuous and not bridge.promiscuous):
        links.set_up(netlink, bridge, promiscuous=wanted.promiscuous)
    return bridge


def _be_gateway(netlink: Netlink, bridge: links.Link, record: Record, force: bool) -> None:
    gateways = [ip_interface((ip.gateway, ip.address.network.prefixlen)) for ip in record.ips if ip.gateway]
    for gateway in gateways:
        _ensure_address(netlink, bridge, gateway, force)
    addressing.set_sysctls(addressing.forwarding(gateway.version for gateway in gateways))


def _ensure_address(netlink: Netlink, bridge: links.Link, wanted: AddressInterface, force: bool) -> None:
    """One IPv4 address, several IPv6 ones when their subnets do not overlap, as in the reference plugin."""
    there = [address for _, address in addressing.addresses(netlink, bridge.ifindex)]
    if wanted in there:
        return
    for address in there:
        if address.version != wanted.version or (wanted.version == 6 and not wanted.network.overlaps(address.network)):
            continue
        if not force:
            text = f"{bridge.name!r} already has an IP address different from {wanted}".replace("'", '"')
            advice = f"it has {address}: remove it (ip addr del {address} dev {bridge.name}) or set forceAddress"
            raise CniError(KERNEL_REFUSED, f"failed to set bridge addr: {text}", advice)
        addressing.delete_address(netlink, bridge, address)
    addressing.add_address(netlink, bridge, wanted)
    common.answer_for_pods(netlink, bridge, wanted)
    # A bridge that somebody else made takes the MAC of a port, and another one when that goes: make it its own.
    links.set_mac(netlink, bridge, links.must_find(netlink, bridge.name).mac)


def _wait_for_port(netlink: Netlink, name: str) -> None:
    """Until the bridge forwards, which the kernel decides a moment after both ends are up."""
    deadline = time.monotonic() + PORT_SECONDS
    while not links.must_find(netlink, name).operational:
        if time.monotonic() > deadline:
            raise CniError(KERNEL_REFUSED, f"bridge port in error state: {name} is not up after {PORT_SECONDS:g} s")
        time.sleep(0.001)


def _with_gateways(record: Record) -> list[Route]:
    """The routes as the kernel gets them: one without next hop goes through its family's first gateway."""
    first = {ip.address.version: ip.gateway for ip in reversed(record.ips) if ip.gateway}
    return [route if route.gateway else route._replace(gateway=first.get(route.dst.version)) for route in record.routes]


def _random_mac() -> str:
    octets = bytearray(os.urandom(6))
    octets[0] = (octets[0] & 0xFE) | 0x02
    return octets.hex(":")
