"""Desired states of a flannel-like overlay on kernel VXLAN devices, and what the kernel should show of them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from routes.state import DeviceState, FdbEntry, Neighbour, Route, VxlanLink, overlay_sysctls
from tests.routes.conftest import ip_json, kernel_addresses, kernel_fdb, kernel_neighbours, kernel_routes

MAC = bytes.fromhex("02aabbccdd01")
VXLAN = VxlanLink(vni=1, port=8472, underlay="eth0", local=ip_address("192.0.2.1"), mac=MAC)
VXLAN6 = replace(VXLAN, local=ip_address("2001:db8::1"), mac=bytes.fromhex("02aabbccdd06"))


@dataclass(frozen=True)
class Peer:
    """Peer `number` with its subnet 10.244.<number>.0/24 or 2001:db8:42:<number>::/64 and its VTEP."""

    number: int
    generation: int = 0
    host: int = 0

    @property
    def mac(self) -> bytes:
        return bytes([2, self.generation, 0, 0, self.number >> 8, self.number & 255])

    def route(self, version: int) -> Route:
        number = self.number
        prefix = f"10.{244 + (number >> 8)}.{number & 255}.0/24" if version == 4 else f"2001:db8:42:{number:x}::/64"
        subnet = ip_network(prefix)
        return Route(subnet, subnet.network_address, onlink=True)

    def entries(self, version: int) -> tuple[Neighbour, FdbEntry]:
        host = self.host or self.number
        underlay = f"198.51.{100 + (host >> 8)}.{host & 255}" if version == 4 else f"2001:db8:ffff::{host:x}"
        return Neighbour(self.route(version).via, self.mac), FdbEntry(self.mac, ip_address(underlay))


def overlay(
    peers: Iterable[Peer | int], version: int = 4, vxlan: VxlanLink | None = None, **others: Any
) -> DeviceState:
    """The device of one family with its peers; `others` are fields of DeviceState."""
    made = [Peer(each) if isinstance(each, int) else each for each in peers]
    name = "flannel.1" if version == 4 else "flannel-v6.1"
    pairs = [each.entries(version) for each in made]
    state = DeviceState(
        name=name,
        mtu=1450 if version == 4 else 1430,
        addresses=frozenset({ip_interface("10.244.1.0/32" if version == 4 else "2001:db8:42:1::/128")}),
        routes=frozenset(each.route(version) for each in made),
        sysctls=overlay_sysctls(name),
        networks=frozenset(map(ip_network, ("10.244.0.0/14", "2001:db8:42::/48", "fe80::/10"))),
        vxlan=vxlan or (VXLAN if version == 4 else VXLAN6),
        neighbours=frozenset(neighbour for neighbour, _ in pairs),
        fdb=frozenset(entry for _, entry in pairs),
    )
    return replace(state, **others)


def is_programmed(state: DeviceState) -> bool:
    """Whether iproute2 shows the device of `state` with exactly its entries, addresses and routes."""
    try:
        return shows(state)
    except AssertionError:  # iproute2 knows no such device, perhaps only between two questions
        return False


def shows(state: DeviceState) -> bool:
    (link,) = ip_json(f"-d link show dev {state.name}")
    vxlan = state.vxlan
    if vxlan is None:
        raise TypeError(f"{state.name} is no VXLAN device")
    data = link.get("linkinfo", {}).get("info_data", {})
    return (
        (link.get("mtu"), link.get("address"), "UP" in link.get("flags", [])) == (state.mtu, vxlan.mac.hex(":"), True)
        and (data.get("id"), data.get("port"), data.get("link")) == (vxlan.vni, vxlan.port, vxlan.underlay)
        and kernel_addresses(state.name) == {str(address) for address in state.addresses}
        and kernel_neighbours(state.name) == {(str(each.address), each.mac.hex(":")) for each in state.neighbours}
        and kernel_fdb(state.name) == {(each.mac.hex(":"), str(each.destination)) for each in state.fdb}
        and kernel_routes(state.name) == {(str(route.prefix), str(route.via)) for route in state.routes}
    )
