"""The kernel's desired state in the reconciler's words. Pure."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface, ip_network

from fabric.identity import differing
from fabric.model import KernelDevice, KernelFdbEntry, KernelNeighbour, KernelRoute, KernelState, Network
from routes.state import DeviceState, Entry, FdbEntry, Neighbour, Route, Sysctl, VxlanLink, overlay_sysctls

LINK_LOCAL = ip_network("fe80::/10")
LARGEST_MTU = 65_535


def device_states(
    state: KernelState, networks: tuple[Network, ...], txqueuelen: int, *, loose: bool = False
) -> tuple[DeviceState, ...]:
    """The desired state in the words of `routes`. `networks` are the overlay's: on devices of ours, other addresses in
    them are removed. `txqueuelen` is the node port's; `loose`: pods of this node that have other interfaces send by it.
    """
    return tuple(
        _underlay_state(device) if device.role == "underlay" else _overlay_state(device, networks, txqueuelen, loose)
        for device in state.devices
    )


def bridge_port_state(
    name: str, node_port: KernelDevice, networks: tuple[Network, ...], txqueuelen: int
) -> DeviceState:
    """The device `name` beside the node port. It has the node port's addresses, since the kernel takes packets in by no
    interface without one under reverse path filtering, and no MTU of its own: the other interfaces have theirs."""
    state = _overlay_state(replace(node_port, routes=(), loose=True), networks, txqueuelen, loose=True)
    sysctls = overlay_sysctls(name) | {Sysctl(f"net/ipv4/conf/{name}/rp_filter", "2")}
    return replace(state, name=name, mtu=LARGEST_MTU, sysctls=sysctls)


def _underlay_state(device: KernelDevice) -> DeviceState:
    """Somebody else's device: nothing but our routes on it is touched."""
    return DeviceState(device.name, up=None, routes=_routes(device))


def _overlay_state(device: KernelDevice, networks: tuple[Network, ...], txqueuelen: int, loose: bool) -> DeviceState:
    link = device.vxlan
    sysctls = overlay_sysctls(device.name)
    if device.loose or loose:
        # The kernel takes the larger of this and `all`: 2, loose, also wins over a strict 1.
        sysctls |= {Sysctl(f"net/ipv4/conf/{device.name}/rp_filter", "2")}
    return DeviceState(
        name=device.name,
        mtu=device.mtu,
        txqueuelen=None if link else txqueuelen,
        addresses=frozenset(ip_interface(f"{item}/{item.max_prefixlen}") for item in device.addresses),
        routes=_routes(device),
        sysctls=sysctls,
        networks=frozenset([*networks, LINK_LOCAL]),
        vxlan=VxlanLink(link.vni, link.port, link.interface, link.local, link.mac, link.learning, link.gbp)
        if link
        else None,
        neighbours=frozenset(map(_neighbour, device.neighbours)),
        fdb=frozenset(map(_fdb, device.fdb)),
    )


def _routes(device: KernelDevice) -> frozenset[Route]:
    return frozenset(map(_route, device.routes))


def _route(route: KernelRoute) -> Route:
    return Route(route.prefix, route.gateway, route.onlink)


def _neighbour(entry: KernelNeighbour) -> Neighbour:
    return Neighbour(entry.address, entry.mac)


def _fdb(entry: KernelFdbEntry) -> FdbEntry:
    return FdbEntry(entry.mac, entry.underlay)


class Translator:
    """`device_states` from one state to the next: an entry that is the same object as before is not looked at again,
    so that one peer that changes costs one. A device of which nothing changed keeps its `DeviceState`."""

    def __init__(self, txqueuelen: int, bridges: str = "") -> None:
        self._txqueuelen = txqueuelen
        self._bridges = bridges
        self._bridge_port: tuple[KernelDevice, DeviceState] | None = None
        self._networks: tuple[Network, ...] = ()
        self._known: dict[str, tuple[KernelDevice, DeviceState]] = {}

    def __call__(self, state: KernelState, networks: tuple[Network, ...]) -> tuple[DeviceState, ...]:
        """See `device_states`."""
        if networks != self._networks:
            self._networks, self._known, self._bridge_port = networks, {}, None
        self._known = {device.name: (device, self._translated(device)) for device in state.devices}
        return tuple(translated for _, translated in self._known.values())

    def bridge_port(self) -> tuple[DeviceState, ...]:
        """The bridge port's state beside that of the node port last translated; nothing without one of the two."""
        for device, _ in self._known.values():
            if device.role == "node port" and self._bridges:
                bare = _bare(device)
                if self._bridge_port is None or self._bridge_port[0] != bare:
                    made = bridge_port_state(self._bridges, bare, self._networks, self._txqueuelen)
                    self._bridge_port = bare, made
                return (self._bridge_port[1],)
        return ()

    def _translated(self, device: KernelDevice) -> DeviceState:
        before, translated = self._known.get(device.name, (None, None))
        if before is None or translated is None or _bare(device) != _bare(before):
            loose = bool(self._bridges) and device.role == "node port"
            return device_states(KernelState((device,)), self._networks, self._txqueuelen, loose=loose)[0]
        if before is device:
            return translated
        gone, come = _entries(before, device)
        return translated.exchanged(gone, come) if any(gone.values()) or any(come.values()) else translated


def _bare(device: KernelDevice) -> KernelDevice:
    return replace(device, routes=(), neighbours=(), fdb=())


def _entries(before: KernelDevice, device: KernelDevice) -> tuple[dict[str, list[Entry]], dict[str, list[Entry]]]:
    """The entries that only one of the two has."""
    routes = differing(before.routes, device.routes)
    neighbours = differing(before.neighbours, device.neighbours)
    fdb = differing(before.fdb, device.fdb)
    gone: dict[str, list[Entry]] = {}
    come: dict[str, list[Entry]] = {}
    for side, found in enumerate((gone, come)):
        found["routes"] = [_route(each) for each in routes[side]]
        found["neighbours"] = [_neighbour(each) for each in neighbours[side]]
        found["fdb"] = [_fdb(each) for each in fdb[side]]
    return gone, come
