"""The words of the reconciler: what a device should be like, what was done about it, and what could not be done."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from itertools import chain
from operator import attrgetter

ROUTE_PROTOCOL = 112
"""rtm_protocol of every route we make: how a fresh process knows its own. linux/rtnetlink.h assigns it to nobody."""

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Route:
    """`<prefix> via <via> dev <device> proto 112`, of the family of `prefix`.

    `onlink` for the overlay: a peer's subnet behind the peer's network address, which no address of the device covers.
    Without it the kernel takes the route only while `via` is reachable through the device (host-gw, direct routing).
    """

    prefix: IPNetwork
    via: IPAddress
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class Neighbour:
    """`<address> lladdr <mac> PERMANENT`: a peer's overlay address answered without ARP or ND. `mac`: 6 bytes."""

    address: IPAddress
    mac: bytes


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """`<mac> dst <destination> self permanent`: the underlay address of the VTEP with that MAC (6 bytes)."""

    mac: bytes
    destination: IPAddress


@dataclass(frozen=True, slots=True)
class VxlanLink:
    """A VXLAN device of the kernel's that the reconciler makes itself.

    `vni` 24 bits; `port` the UDP port in host order (flannel's `Port` 0 is 8472); `underlay` the name of the device it
    sends by; `local` the outer source address, whose family is that of the tunnel; `mac` 6 bytes, unicast.
    `learning` and `gbp` as in flannel's `Backend` object. Everything else is as flannel leaves it: outer UDP checksums
    on for both families, no group, TTL of the route. The MTU is that of the DeviceState.
    """

    vni: int
    port: int
    underlay: str
    local: IPAddress
    mac: bytes
    learning: bool = False
    gbp: bool = False


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A file below /proc/sys, `net/ipv6/conf/flannel.1/accept_ra`, and its text. A missing `optional` file is fine."""

    path: str
    value: str
    optional: bool = False


Entry = Route | Neighbour | FdbEntry
ENTRIES: dict[str, tuple[str, str, str]] = {
    "routes": ("prefix", "routes for", "a prefix has one next hop"),
    "neighbours": ("address", "neighbours", "an address has one MAC"),
    "fdb": ("mac", "forwarding entries for", "a MAC has one VTEP"),
}
"""What a device state lists: the attribute that no two entries share, and the words for two that do."""


def keys_of(name: str, entries: Iterable[Entry]) -> frozenset[object]:
    return frozenset(map(attrgetter(ENTRIES[name][0]), entries))


def key_text(name: str, entry: Entry) -> str:
    key = getattr(entry, ENTRIES[name][0])
    return key.hex(":") if isinstance(key, bytes) else str(key)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What one device of this network namespace should be like.

    None for `mtu` (bytes), `txqueuelen` (packets) or `up` leaves that alone. Of the addresses on the device only those
    inside `networks` are ours to remove; put `fe80::/10` there to remove link-local addresses too. Of the routes, only
    those through the device with protocol ROUTE_PROTOCOL in the main table are.

    With `vxlan` the device is the reconciler's own: made, made again when it is incompatible, and removed when no state
    names it any more. All permanent neighbours and forwarding entries on it are ours too. Without `vxlan` the device is
    somebody else's to make, and carries no neighbours and no forwarding entries of ours. The underlay, where only
    routes are ours, is `DeviceState(name, up=None, routes=...)`.

    Raises ValueError when two routes share a prefix, two neighbours an address or two forwarding entries a MAC.
    `keys` are these prefixes, addresses and MACs; see `exchanged`.
    """

    name: str
    mtu: int | None = None
    txqueuelen: int | None = None
    up: bool | None = True
    addresses: frozenset[IPInterface] = frozenset()
    routes: frozenset[Route] = frozenset()
    sysctls: frozenset[Sysctl] = frozenset()
    networks: frozenset[IPNetwork] = frozenset()
    vxlan: VxlanLink | None = None
    neighbours: frozenset[Neighbour] = frozenset()
    fdb: frozenset[FdbEntry] = frozenset()
    keys: Mapping[str, frozenset[object]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = f"device {self.name}"
        object.__setattr__(self, "keys", {name: keys_of(name, getattr(self, name)) for name in ENTRIES})
        for name, (_, what, rule) in ENTRIES.items():
            if len(self.keys[name]) != len(getattr(self, name)):
                unique(where, what, rule, (key_text(name, entry) for entry in getattr(self, name)))
        if self.vxlan is None and (self.neighbours or self.fdb):
            raise ValueError(f"{where}: neighbours and forwarding entries are for a VXLAN device of our own")

    @property
    def prefixes(self) -> frozenset[object]:
        """What is routed through the device."""
        return self.keys["routes"]

    def exchanged(self, gone: Mapping[str, Iterable[Entry]], come: Mapping[str, Iterable[Entry]]) -> "DeviceState":
        """This state without the entries `gone`, which it has, and with `come`, each by the name of its field.

        One entry costs one: the others are neither hashed nor compared. Raises ValueError as the constructor does.
        """
        state = object.__new__(DeviceState)
        for each in fields(self):
            object.__setattr__(state, each.name, getattr(self, each.name))
        keys = dict(self.keys)
        for name in ENTRIES:
            leave, enter = frozenset(gone.get(name, ())), frozenset(come.get(name, ()))
            if leave or enter:
                entries = (getattr(self, name) - leave) | enter
                keys[name] = (keys[name] - keys_of(name, leave)) | keys_of(name, enter)
                object.__setattr__(state, name, entries)
                if len(keys[name]) != len(entries):
                    state.__post_init__()  # says what is there twice
                    return state
        object.__setattr__(state, "keys", keys)
        return state


@dataclass(frozen=True, slots=True)
class DesiredState:
    """All devices that are to carry objects of ours, and the prefixes to which packets go no further.

    `blackholes` become `blackhole <prefix> proto 112` in the main table (flannel's --ip-blackhole-route): what no more
    specific route takes is dropped instead of leaving by the default route. `unreachables` become `unreachable <prefix>
    proto 112 metric 1000000`: who sends there is told (ICMP), and any other route for the prefix, as a bridge's, is
    preferred. Raises ValueError for a device named twice and for a prefix routed twice.
    """

    devices: tuple[DeviceState, ...] = ()
    blackholes: frozenset[IPNetwork] = frozenset()
    unreachables: frozenset[IPNetwork] = frozenset()

    def __post_init__(self) -> None:
        unique("desired state", "states of device", "give one", (device.name for device in self.devices))
        routed = [device.prefixes for device in self.devices]
        if len(self.blackholes.union(*routed)) != len(self.blackholes) + sum(map(len, routed)):
            unique("desired state", "routes for", "a prefix has one next hop", chain(self.blackholes, *routed))


def unique(where: str, what: str, rule: str, keys: Iterable[object]) -> None:
    """Raise ValueError naming the first key that is there twice."""
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: two {what} {min(map(str, twice))}; {rule}")


@dataclass(frozen=True, slots=True)
class ObjectError:
    """One object that could not be brought to its desired state, and why, in words for people.

    `object` opens with its kind: device, address, sysctl, blackhole, unreachable; or route, neighbour, fdb: those of
    one peer.
    """

    object: str
    reason: str

    @property
    def is_of_a_peer(self) -> bool:
        """Whether only the traffic of one peer is concerned."""
        return self.object.startswith(("route ", "neighbour ", "fdb "))

    def __str__(self) -> str:
        return f"{self.object}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ReconcileResult:
    """What one reconcile did, one line per change, and what it could not do.

    `devices` has the interface index of each desired device at the last observation, None for one that the kernel does
    not know, nothing for one about which the kernel has not said anything yet. A device of the wrong kind under the
    name of a VXLAN device of ours counts as unknown. `acknowledged`: nothing was written but entries of tables, the
    kernel took each, and that has no effect on anything else; so there is nothing that a look could find.
    """

    changes: tuple[str, ...] = ()
    errors: tuple[ObjectError, ...] = ()
    devices: Mapping[str, int | None] = field(default_factory=dict)
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class InterfaceState:
    """An interface as observed: MTU in bytes, `up` administratively, `carrier` as IFF_LOWER_UP, its addresses."""

    name: str
    index: int
    mtu: int
    txqueuelen: int
    up: bool
    carrier: bool
    addresses: frozenset[IPInterface] = field(default=frozenset())


def overlay_sysctls(device: str) -> frozenset[Sysctl]:
    """Settings of an overlay device: quiet on IPv6, and our own ICMP errors accepted on IPv4.

    No router advertisements are taken and no link-local address is made: `addr_gen_mode` 1 is "none"
    (net/ipv6/addrconf.c); without an address of its own the kernel solicits no routers and joins no solicited-node
    groups. Optional, because a kernel without IPv6 is quiet by itself. Duplicate address detection needs no setting:
    addresses are added with `nodad`. `accept_local` is needed because the ICMP errors that come out of the device
    carry this node's own overlay address, which the kernel otherwise refuses as a source (net/ipv4/fib_frontend.c).
    """
    ipv6 = f"net/ipv6/conf/{device}"
    return frozenset(
        {
            Sysctl(f"{ipv6}/accept_ra", "0", True),
            Sysctl(f"{ipv6}/addr_gen_mode", "1", True),
            Sysctl(f"net/ipv4/conf/{device}/accept_local", "1"),
        }
    )
