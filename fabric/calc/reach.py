"""By which way this node sends to a peer: what each backend type needs of the data path and of the kernel.

One family of one lease at a time. The lease's own type decides (`_WAYS`), our configuration has a say only in how
VXLAN is done (data path or kernel device) and whether DirectRouting is on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fabric.calc.claims import public_name, vni_of
from fabric.calc.words import Node, OnLink, data_of, public_of
from fabric.config import OVERHEAD, vxlan_device_name
from fabric.leases import parse_mac
from fabric.model import (
    Address,
    Encapsulation,
    KernelFdbEntry,
    KernelNeighbour,
    KernelRoute,
    Lease,
    Network,
    Peer,
    Way,
)


@dataclass(frozen=True, slots=True)
class Reach:
    """How one family of a lease is reached. `way` is None when it is not, and `reason` says why.

    `device` has the route, on a kernel VXLAN device also the neighbour and the forwarding entry. `formats` are those
    that the data path needs for it, also when one of them is the reason. `asked` is the address whose being on link
    made a difference, if any.
    """

    way: Way | None
    reason: str = ""
    peer: Peer | None = None
    device: str = ""
    route: KernelRoute | None = None
    neighbour: KernelNeighbour | None = None
    fdb: KernelFdbEntry | None = None
    formats: frozenset[Encapsulation] = frozenset()
    asked: Address | None = None


@dataclass(frozen=True, slots=True)
class _Remote:
    """One family of a lease that is valid."""

    lease: Lease
    version: int
    subnet: Network
    address: Address


def reach(node: Node, lease: Lease, version: int, subnet: Network, on_link: OnLink) -> Reach:
    """The way to the peer's `subnet`; the lease is valid."""
    address = public_of(lease, version)
    assert address is not None  # claims saw to it
    if node.conf.backend.type == "alloc":
        return Reach(None, 'our backend "alloc" has no data path')
    way = _WAYS.get(lease.backend_type)
    if way is None:
        return Reach(None, f"backend {lease.backend_type!r} is not available in this version")
    if address in node.underlay or address in node.public:
        return Reach(None, f"{public_name(version)} {address} is our own")
    if not any(own.version == version for own in node.underlay):
        return Reach(None, f"we have no IPv{version} underlay address")
    return way(node, _Remote(lease, version, subnet, address), on_link)


def _vxlan(node: Node, remote: _Remote, on_link: OnLink) -> Reach:
    backend = node.conf.backend
    data = data_of(remote.lease, remote.version)
    vni, mac = vni_of(data), parse_mac(data)
    assert mac is not None  # claims saw to it
    if vni != backend.vni:
        return Reach(None, f"VNI is {vni}, ours is {backend.vni}")
    asked = remote.address if backend.type == "vxlan" and backend.direct_routing else None
    link = _link(node, remote, on_link) if asked else None
    plain = KernelRoute(remote.subnet, remote.address, onlink=False)
    if backend.kernel:
        if link:
            return Reach("direct route", device=link, route=plain, asked=asked)
        return Reach(
            "vxlan (kernel)",
            device=vxlan_device_name(backend.vni, remote.version),
            route=_onlink(remote),
            neighbour=KernelNeighbour(remote.subnet.network_address, mac),
            fdb=KernelFdbEntry(mac, remote.address),
            asked=asked,
        )
    peer = _peer(node, remote, "vxlan", mac, direct=bool(link))
    if link:
        return _tunnelled(node, Reach("direct route", "", peer, link, plain, formats=peer.accepts, asked=asked))
    return _tunnelled(node, Reach("vxlan", "", peer, node.device, _onlink(remote), formats=peer.accepts, asked=asked))


def _udp(node: Node, remote: _Remote, on_link: OnLink) -> Reach:
    if remote.version == 6:
        return Reach(None, "the udp format carries IPv4 only")
    peer = _peer(node, remote, "udp", None)
    return _tunnelled(node, Reach("udp", "", peer, node.device, _onlink(remote), formats=peer.accepts))


def _host_gw(node: Node, remote: _Remote, on_link: OnLink) -> Reach:
    address = remote.address
    link = _link(node, remote, on_link)
    if not link:
        known = address in on_link
        reason = f"{address} is not on link" if known else f"whether {address} is on link is not known yet"
        return Reach(None, reason, asked=address)
    peer = _peer(node, remote, None, None)
    return Reach(
        "host-gw",
        peer=peer if peer.accepts else None,
        device=link,
        route=KernelRoute(remote.subnet, address, onlink=False),
        formats=peer.accepts,
        asked=address,
    )


def _extension(node: Node, remote: _Remote, on_link: OnLink) -> Reach:
    if node.conf.backend.type != "extension":
        return Reach(None, f"backend is 'extension', ours is {node.conf.backend.type!r}: there is no command for it")
    return Reach("extension")


_WAYS: Mapping[str, Callable[[Node, _Remote, OnLink], Reach]] = {
    "vxlan": _vxlan,
    "": _udp,
    "host-gw": _host_gw,
    "extension": _extension,
}


def _link(node: Node, remote: _Remote, on_link: OnLink) -> str | None:
    """The device on whose link the peer is. Never one of ours: an underlay inside the overlay would lead to itself."""
    link = on_link.get(remote.address)
    ours = {node.device, *(vxlan_device_name(node.conf.backend.vni, version) for version in (4, 6))}
    return None if link in ours else link


def _tunnelled(node: Node, found: Reach) -> Reach:
    """`found`, unless the data path cannot do what it needs."""
    for form in sorted(found.formats):
        if form in node.unavailable:
            reason = f"the {form} format is not available: {node.unavailable[form]}"
            return Reach(None, reason, formats=found.formats, asked=found.asked)
    return found


def _onlink(remote: _Remote) -> KernelRoute:
    return KernelRoute(remote.subnet, remote.subnet.network_address)


def _peer(node: Node, remote: _Remote, form: Encapsulation | None, mac: bytes | None, direct: bool = False) -> Peer:
    """The peer for the data path: accepted are our own type's format and the one it is sent."""
    own = node.conf.backend.encapsulation
    outer = node.conf.backend.mtu or node.underlay_mtu
    mtu = outer - OVERHEAD[form, remote.version] if form else node.mtu
    accepts = frozenset(item for item in (own, form) if item)
    return Peer(
        str(remote.subnet), remote.address, (remote.subnet,), form, mac or bytes(6), mtu, accepts, mac is None, direct
    )
