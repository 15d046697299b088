"""The main routing table: our routes are made, restored and swept; everybody else's are reported and left alone.

A route's place in the kernel is (prefix, metric): IPv4 routes are made with metric 0, IPv6 routes with 1024, the values
the kernel gives when none is asked for. A place belongs to no device, so one table serves all: a peer's route that
moves from the overlay to the underlay leaves its place and takes it again in one batch. Requests create exclusively and
delete by protocol, device and metric, so that no interleaving with another program can replace or remove a route that
is not ours.

Ours are the routes with protocol ROUTE_PROTOCOL through a device of the desired state, and with it the blackholes and
the unreachable prefixes, whose place is behind all others, so that nobody's route is in their way. A node that is
switched over from flannel has routes without a mark (flannel names no protocol, which makes it "boot"). Those that say
exactly what ours would say are taken over, and so are those of flannel's overlay shape (`<prefix> via <its network
address> onlink`) on a VXLAN device of our own, where only flannel can have left them.
"""

import errno
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

from routes.delta import DeltaTracker
from routes.netlink import NLM_F_CREATE, NLM_F_EXCL, RTM_DELROUTE, RTM_NEWROUTE, Netlink, Request
from routes.observe import (
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PRIORITY,
    RTN_BLACKHOLE,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_F_ONLINK,
    RTPROT_BOOT,
    KernelRoute,
    read_routes,
)
from routes.state import ROUTE_PROTOCOL, DesiredState, DeviceState, IPAddress, IPNetwork, ObjectError, Route
from routes.wire import NUMBER, ROUTE, attribute
from routes.work import Operation, Work

RT_SCOPE_UNIVERSE, RT_SCOPE_NOWHERE = 0, 255
RTN_UNSPEC = 0
METRIC = {4: 0, 6: 1024}
LAST_METRIC = 1_000_000
"""Of unreachable prefixes: any other program's route is preferred."""
LOOPBACK = 1
"""Index of `lo` in every network namespace; the kernel puts IPv6 blackholes and unreachable routes on it."""
NO_ROUTES: frozenset[Route] = frozenset()


class Place(NamedTuple):
    """Where a route sits in the main table: there is one of ours at most."""

    prefix: IPNetwork
    metric: int


class Hop(NamedTuple):
    """What a route says beyond its place; one that leads nowhere has no device.

    `plain` is False when it says more than we would ever say. `told`: unreachable, not a blackhole.
    """

    device: str | None
    via: IPAddress | None = None
    onlink: bool = False
    protocol: int = ROUTE_PROTOCOL
    plain: bool = True
    told: bool = False


class RouteTable:
    """Desired and observed routes of ours, and other programs' routes for the same prefixes."""

    def __init__(self) -> None:
        self._tracker: DeltaTracker[Place, Hop] = DeltaTracker()
        self._routes: dict[str, frozenset[Route]] = {}
        self._nowhere: frozenset[tuple[Place, Hop]] = frozenset()
        self._foreign: dict[Place, KernelRoute] = {}
        self._indexes: dict[str, int] = {}
        self._up: frozenset[str] = frozenset()

    def desire(self, desired: DesiredState) -> None:
        """Take over what `desired` lists, at the cost of what is new in it."""
        routes = {state.name: carried(state) for state in desired.devices}
        before, self._routes = self._routes, routes
        for name, old in before.items():
            for route in old - routes.get(name, NO_ROUTES):
                self._tracker.undesire(place_of(route.prefix))
        nowhere = frozenset(leading_nowhere(desired))
        for place, _ in self._nowhere - nowhere:
            self._tracker.undesire(place)
        for name, new in routes.items():
            for route in new - before.get(name, NO_ROUTES):
                self._tracker.desire(place_of(route.prefix), Hop(name, route.via, route.onlink))
        for place, hop in nowhere - self._nowhere:
            self._tracker.desire(place, hop)
        self._nowhere = nowhere

    def observe(self, netlink: Netlink, indexes: Mapping[str, int], up: frozenset[str], own: frozenset[str]) -> None:
        """Read the table. `indexes` are those of the devices that carry routes of ours, `up` the names of those that
        can take some now, `own` of those that are VXLAN devices of ours."""
        self._indexes, self._up = dict(indexes), up
        names = {index: name for name, index in indexes.items()}
        ours: dict[Place, Hop] = {}
        self._foreign = {}
        prefixes = {place.prefix for place in self._tracker.desired if place.metric != LAST_METRIC}
        protocols = (ROUTE_PROTOCOL, RTPROT_BOOT) if own else (ROUTE_PROTOCOL,)
        for route in read_routes(netlink, protocols, {prefix.prefixlen for prefix in prefixes}):
            place, hop = Place(route.prefix, route.metric), hop_of(route, names)
            if hop is not None and self._is_ours(place, hop, own):
                # A second route of ours in one place (made by `ip route append`) makes both suspect: made anew.
                ours[place] = hop._replace(plain=hop.plain and place not in ours)
            elif route.prefix in prefixes:
                self._foreign[place] = route
        self._tracker.replace_observed(ours)

    def _is_ours(self, place: Place, hop: Hop, own: frozenset[str]) -> bool:
        if hop.protocol != RTPROT_BOOT:
            return hop.protocol == ROUTE_PROTOCOL
        flannels = hop.onlink and hop.via == place.prefix.network_address and hop.device in own
        return flannels or self._tracker.desired.get(place) == hop._replace(protocol=ROUTE_PROTOCOL)

    def remove(self, netlink: Netlink, work: Work) -> None:
        """Remove what nobody asked for."""
        work.perform(netlink, [self._deletion(place, hop) for place, hop in self._tracker.pending_deletions()])

    def add(self, netlink: Netlink, work: Work) -> None:
        """Make what is missing and make anew what differs, except where another program's route or a device that is
        down is in the way."""
        operations = []
        for place, hop, observed in self._tracker.pending_updates():
            if place in self._foreign or not self._can_take(hop):
                continue
            if observed is not None:
                operations.append(self._deletion(place, observed))
            operations.append(self._addition(place, hop))
        work.perform(netlink, operations)

    def _can_take(self, hop: Hop) -> bool:
        return hop.device is None or hop.device in self._up

    def remembers(self, device: str) -> bool:
        """Whether the last observation, and what was done since, leave a route of ours through `device`."""
        return any(hop.device == device for hop in self._tracker.observed.values())

    def problems(self) -> list[ObjectError]:
        """Other programs' routes for our prefixes at the last observation, and devices that are down, in words."""
        waiting = Counter(
            hop.device for _, hop, _ in self._tracker.pending_updates() if hop.device in self._indexes.keys() - self._up
        )
        down = [
            ObjectError(f"device {name}", f"it is down or unusable; routes that wait for it: {count}")
            for name, count in waiting.items()
        ]
        return down + [self._conflict(*item) for item in sorted(self._foreign.items(), key=conflict_order)]

    def _conflict(self, place: Place, route: KernelRoute) -> ObjectError:
        ours = METRIC[place.prefix.version]
        if place.metric == ours:
            effect = "in the place of ours"
        elif place.metric < ours:
            effect = "preferred to ours"
        else:
            effect = "beside ours, which is preferred"
        via = f" via {route.via}" if route.via else ""
        device = f" dev index {route.index}" if route.index else ""
        reason = (
            f"another program has a route{via}{device} proto {route.protocol} metric {route.metric} {effect}; "
            f"left alone, remove it with `ip route del {place.prefix} proto {route.protocol}` if it is stale"
        )
        return ObjectError(label(place, self._tracker.desired[place_of(place.prefix)]), reason)

    def _deletion(self, place: Place, hop: Hop) -> Operation:
        request = partial(delete_request, place, hop, self._indexes.get(hop.device or "", 0))
        forget = partial(self._tracker.forget, place)
        return Operation(label(place, hop), "removed", request, forget, gone=(errno.ESRCH,))

    def _addition(self, place: Place, hop: Hop) -> Operation:
        request = partial(add_request, place, hop, self._indexes.get(hop.device or "", 0))
        observe = partial(self._tracker.observe, place, hop)
        verb = f"via {hop.via} added" if hop.via else "added"
        return Operation(label(place, hop), verb, request, observe)


def carried(state: DeviceState) -> frozenset[Route]:
    """The routes that a device should carry: a device that should be down can carry none."""
    return state.routes if state.up is not False else NO_ROUTES


def hop_of(route: KernelRoute, names: Mapping[int, str]) -> Hop | None:
    """`route` as a hop of ours; None when it leads to none of the devices that carry routes of ours."""
    if route.kind in (RTN_BLACKHOLE, RTN_UNREACHABLE):
        return Hop(None, protocol=route.protocol, plain=route.plain, told=route.kind == RTN_UNREACHABLE)
    if route.index not in names:
        return None
    plain = route.plain and route.kind == RTN_UNICAST
    return Hop(names[route.index], route.via, route.onlink, route.protocol, plain)


def leading_nowhere(desired: DesiredState) -> Iterator[tuple[Place, Hop]]:
    """The places of what leads nowhere."""
    for prefix in desired.blackholes:
        yield place_of(prefix), Hop(None)
    for prefix in desired.unreachables:
        yield Place(prefix, LAST_METRIC), Hop(None, told=True)


def place_of(prefix: IPNetwork) -> Place:
    return Place(prefix, METRIC[prefix.version])


def label(place: Place, hop: Hop) -> str:
    if hop.device is None:
        return f"{'unreachable' if hop.told else 'blackhole'} {place.prefix}"
    return f"route {place.prefix}"


def conflict_order(item: tuple[Place, KernelRoute]) -> tuple[int, int, int]:
    place, _ = item
    return place.prefix.version, int(place.prefix.network_address), place.metric


def add_request(place: Place, hop: Hop, index: int) -> Request:
    kind = RTN_UNICAST if hop.device else nowhere_kind(hop)
    flags = RTNH_F_ONLINK if hop.onlink else 0
    message = route_message(place, hop.protocol, RT_SCOPE_UNIVERSE, kind, flags, index)
    if hop.via is not None:
        message += attribute(RTA_GATEWAY, hop.via.packed)
    return RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, message


def nowhere_kind(hop: Hop) -> int:
    return RTN_UNREACHABLE if hop.told else RTN_BLACKHOLE


def delete_request(place: Place, hop: Hop, index: int) -> Request:
    """Whatever next hop, type or scope it has by now: protocol, device and metric say which it is.

    IPv6 does not compare types, but what leads nowhere has a device there.
    """
    if hop.device is None:
        kind, index = nowhere_kind(hop), LOOPBACK if place.prefix.version == 6 else 0
    else:
        kind = RTN_UNSPEC
    return RTM_DELROUTE, 0, route_message(place, hop.protocol, RT_SCOPE_NOWHERE, kind, 0, index)


def route_message(place: Place, protocol: int, scope: int, kind: int, flags: int, index: int) -> bytes:
    family = socket.AF_INET if place.prefix.version == 4 else socket.AF_INET6
    message = ROUTE.pack(family, place.prefix.prefixlen, 0, 0, RT_TABLE_MAIN, protocol, scope, kind, flags)
    message += attribute(RTA_DST, place.prefix.network_address.packed)
    if index:
        message += attribute(RTA_OIF, NUMBER.pack(index))
    if place.metric:
        message += attribute(RTA_PRIORITY, NUMBER.pack(place.metric))
    return message
