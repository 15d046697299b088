"""flannel's `net-conf.json`: parsed, defaulted and checked.

Source: flannel `pkg/subnet/config.go` (keys, defaults, messages) and the backends' own config structs. Keys are matched
without regard to case and unknown ones are ignored, as Go's decoder does; a value of the wrong type is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any, Literal

from fabric import jsonsafe
from fabric.errors import ConfigError
from fabric.model import Address, Encapsulation, Network

DEFAULT_TEXT = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
BackendType = Literal["vxlan", "udp", "host-gw", "alloc", "extension"]
BACKENDS: tuple[BackendType, ...] = ("vxlan", "udp", "host-gw", "alloc", "extension")
REFUSED_BACKENDS = ("wireguard", "ipip", "ipsec", "tencent-vpc")
PORTS: Mapping[Encapsulation, int] = {"vxlan": 8472, "udp": 8285}
OVERHEAD: Mapping[tuple[str, int], int] = {("vxlan", 4): 50, ("vxlan", 6): 70, ("udp", 4): 28, ("udp", 6): 48}
"""Outer headers in bytes by format and IP version: IPv4 20 or IPv6 40, UDP 8, and for VXLAN 8 and Ethernet 14."""


@dataclass(frozen=True, slots=True)
class SubnetRange:
    """Where node subnets of one family come from: `minimum` and `maximum` are the first and last subnet's address."""

    network: Network
    subnet_len: int
    minimum: int
    maximum: int

    @property
    def step(self) -> int:
        """Addresses per subnet."""
        return 1 << (self.network.max_prefixlen - self.subnet_len)

    def holds(self, subnet: Network) -> bool:
        """Whether `subnet` is one that this range could have handed out (flannel's `isSubnetConfigCompat`)."""
        if subnet.version != self.network.version or subnet.prefixlen != self.subnet_len:
            return False
        return self.minimum <= int(subnet.network_address) <= self.maximum


@dataclass(frozen=True, slots=True)
class ExtensionCommands:
    """The commands of the extension backend, as given; empty means that nothing is run."""

    pre_startup: str = ""
    post_startup: str = ""
    subnet_add: str = ""
    subnet_remove: str = ""


@dataclass(frozen=True, slots=True)
class Backend:
    """The `Backend` object. `type` is the word in net-conf.json.

    `vni` also holds for VXLAN towards peers of another type. `port` is the UDP port of a type that has one, else 0.
    `mtu` is the outer MTU in bytes to aim for, 0 for the interface's own. `kernel` is `"Datapath": "kernel"`: a VXLAN
    device of the kernel's in place of our own data path; `gbp` and `learning` are attributes of that device.
    """

    type: BackendType
    vni: int = 1
    port: int = 0
    mtu: int = 0
    kernel: bool = False
    direct_routing: bool = False
    gbp: bool = False
    learning: bool = False
    commands: ExtensionCommands = ExtensionCommands()

    @property
    def encapsulation(self) -> Encapsulation | None:
        """The format that our own data path speaks for this type; None where it has no part in it."""
        if self.type == "udp":
            return "udp"
        return "vxlan" if self.type == "vxlan" and not self.kernel else None

    @property
    def ports(self) -> Mapping[Encapsulation, int]:
        """The UDP port of each format: the configured one of our own type, the usual one of the other."""
        return {**PORTS, self.type: self.port} if self.type in PORTS else PORTS  # type: ignore[dict-item]

    @property
    def lease_type(self) -> str:
        """`BackendType` of our lease: flannel's udp and alloc leave it out."""
        return "" if self.type in ("udp", "alloc") else self.type


@dataclass(frozen=True, slots=True)
class NetConf:
    """A checked `net-conf.json`. `ipv4` and `ipv6` are None when that family is off; at least one is on.

    `warnings` name keys that were given but have no effect in this version, one line each.
    """

    ipv4: SubnetRange | None
    ipv6: SubnetRange | None
    backend: Backend
    nftables: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def networks(self) -> tuple[Network, ...]:
        """The overlay's networks, IPv4 first."""
        return tuple(item.network for item in (self.ipv4, self.ipv6) if item is not None)


def load(path: Path, default: str | None, check: bool = True) -> NetConf:
    """Read and parse `path`; when it does not exist, parse `default` instead. Raises ConfigError."""
    try:
        data: bytes | str = path.read_bytes()
    except FileNotFoundError:
        if default is None:
            raise ConfigError(f"{path}: no such file; give --net-config-path") from None
        data = default
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return parse(data, check)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(data: bytes | str, check: bool = True) -> NetConf:
    """Parse the text of a `net-conf.json`. Raises ConfigError with flannel's message where flannel has one.

    Without `check` (Kubernetes, where the node's podCIDR decides) SubnetLen, SubnetMin and SubnetMax are not looked
    at, as flannel applies its `CheckNetworkConfig` in etcd mode only; ranges are then the whole networks.
    """
    try:
        document = jsonsafe.loads(data, max_bytes=64 << 10)
    except jsonsafe.JsonError as error:
        raise ConfigError(f"not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError("must be a JSON object")
    fields = jsonsafe.fold_keys(document)
    ipv4 = _subnet_range(fields, 4, check) if _boolean(fields, "EnableIPv4", True) else None
    ipv6 = _subnet_range(fields, 6, check) if _boolean(fields, "EnableIPv6", False) else None
    if ipv4 is None and ipv6 is None:
        raise ConfigError("EnableIPv4 and EnableIPv6 are both false: enable one of them")
    backend, warnings = _backend(fields.get("backend"))
    if backend.type == "udp" and ipv6 is not None:
        raise ConfigError('backend "udp" carries IPv4 only: set EnableIPv6 to false or use "vxlan"')
    return NetConf(ipv4, ipv6, backend, _boolean(fields, "EnableNFTables", False), warnings)


def overhead(backend: BackendType, version: int) -> int:
    """Bytes that this type adds to an inner packet of an IP version; flannel's 50 for both is not copied."""
    return OVERHEAD.get((backend, version), 0)


def overlay_mtu(conf: NetConf, underlay_mtu: int) -> int:
    """MTU of the pods (`FLANNEL_MTU`): the smallest over the enabled families, in bytes.

    `Backend.MTU` is the outer MTU and replaces `underlay_mtu` (flannel #1736). Raises ConfigError when what is left is
    below the least the IP versions need (IPv4 576, IPv6 1280, RFC 8200 §5).
    """
    outer = conf.backend.mtu or underlay_mtu
    mtu = min(outer - overhead(conf.backend.type, network.version) for network in conf.networks)
    least = 1280 if conf.ipv6 is not None else 576
    if mtu < least:
        raise ConfigError(f"an outer MTU of {outer} leaves {mtu} bytes for pods, {least} are needed: raise the MTU")
    return mtu


def node_port_mtu(conf: NetConf, underlay_mtu: int) -> int:
    """MTU of the node port, in bytes: the pods', or what VXLAN leaves where our own type has no tunnel.

    Peers of a type whose headers are longer than our own type's have a smaller MTU of their own in the data path,
    which answers what does not fit.
    """
    if conf.backend.encapsulation is not None:
        return overlay_mtu(conf, underlay_mtu)
    outer = conf.backend.mtu or underlay_mtu
    return min(outer - OVERHEAD["vxlan", network.version] for network in conf.networks)


def node_port_name(backend: Backend) -> str:
    """The default of `--device`: flannel's name, unless the kernel's own device has it."""
    return f"fabric.{backend.vni}" if backend.kernel else f"flannel.{backend.vni or 1}"


def vxlan_device_name(vni: int, version: int) -> str:
    """flannel's name of the kernel's VXLAN device."""
    return f"flannel-v6.{vni}" if version == 6 else f"flannel.{vni}"


def check_public(backend: Backend, underlay: Sequence[Address], public: Sequence[Address]) -> None:
    """Raise ConfigError when peers could not use the published addresses as next hops (flannel refuses it too)."""
    if backend.type == "host-gw" and tuple(underlay) != tuple(public):
        other = next(item for item in public if item not in underlay)
        raise ConfigError(
            f'backend "host-gw" makes {other} the next hop of the peers, and it is not an address of this interface: '
            "leave --public-ip out, or use a backend with a tunnel where a NAT is in between"
        )


def _subnet_range(fields: Mapping[str, Any], version: int, check: bool) -> SubnetRange:
    prefix = "IPv6" if version == 6 else ""
    network = _network(fields, f"{prefix}Network", version)
    if not check:
        return SubnetRange(network, network.prefixlen, int(network.network_address), int(network.network_address))
    length = _subnet_len(network, _unsigned(fields, f"{prefix}SubnetLen", 0))
    step = 1 << (network.max_prefixlen - length)
    first = int(network.network_address)
    # The first subnet is skipped: its network address is the whole network's own.
    minimum = _bound(fields, f"{prefix}SubnetMin", network, first + step)
    maximum = _bound(fields, f"{prefix}SubnetMax", network, first + network.num_addresses - step)
    for name, value in ((f"{prefix}SubnetMin", minimum), (f"{prefix}SubnetMax", maximum)):
        if value % step:
            address = IPv6Address(value) if version == 6 else IPv4Address(value)
            raise ConfigError(f"{name} is not on a SubnetLen boundary: {address}")
    if minimum > maximum:
        raise ConfigError(f"{prefix}SubnetMin is above {prefix}SubnetMax: no node could get a subnet")
    return SubnetRange(network, length, minimum, maximum)


def _network(fields: Mapping[str, Any], name: str, version: int) -> Network:
    missing = f"please define a correct {name} parameter in the flannel config"
    text = fields.get(name.lower())
    if text is None or text == "":
        raise ConfigError(missing)
    try:
        if not isinstance(text, str) or "/" not in text or "%" in text or not text.rpartition("/")[2].isdecimal():
            raise ValueError("not a prefix")
        network = ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"{missing} ({str(text)[:60]!r} is not an address prefix)") from None
    if network.version != version or network.prefixlen == 0:
        raise ConfigError(f"{missing} ({text!r} is not an IPv{version} network)")
    return network


def _subnet_len(network: Network, length: int) -> int:
    version6 = network.version == 6
    longest, smallest, roomy, usual = (126, 124, 62, 64) if version6 else (30, 28, 22, 24)
    if length:
        if length > longest:
            raise ConfigError(f"SubnetLen must be less than /{longest + 1}")
        if length < network.prefixlen + 2:
            raise ConfigError("network must be able to accommodate at least four subnets")
        return length
    if network.prefixlen > smallest:
        name = "IPv6Network" if version6 else "network"
        raise ConfigError(f"{name} is too small. Minimum useful network prefix is /{smallest}")
    return usual if network.prefixlen <= roomy else network.prefixlen + 2


def _bound(fields: Mapping[str, Any], name: str, network: Network, default: int) -> int:
    text = fields.get(name.lower())
    if text is None or text == "":
        return default
    try:
        if not isinstance(text, str) or "%" in text:
            raise ValueError("not an address")
        address = ip_address(text)
    except ValueError:
        raise ConfigError(f"{name} is not an IP address: {str(text)[:60]!r}") from None
    if address.is_unspecified:  # flannel's zero value: not given
        return default
    if address not in network:
        raise ConfigError(f"{name} is not in the range of the {'IPv6' if network.version == 6 else ''}Network")
    return int(address)


def _backend(value: Any) -> tuple[Backend, tuple[str, ...]]:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError("Backend must be a JSON object")
    fields = jsonsafe.fold_keys(value)
    kind = fields.get("type")
    if kind is None or kind == "":
        kind = "udp"  # flannel's code default, though its documentation says vxlan
    if not isinstance(kind, str):
        raise ConfigError("Backend.Type must be a string")
    kind = kind.lower()
    if kind in REFUSED_BACKENDS:
        *others, last = (f'"{name}"' for name in BACKENDS)
        raise ConfigError(f'backend type "{kind}" is not available in this version: use {", ".join(others)} or {last}')
    if kind not in BACKENDS:
        raise ConfigError(f"unknown backend type: {ascii(kind[:40])[1:-1]}")
    vni = _unsigned(fields, "VNI", 1, (1 << 24) - 1, "Backend.")
    if kind == "vxlan":
        return _vxlan(fields, vni)
    if kind == "udp":
        return Backend("udp", vni, _unsigned(fields, "Port", 0, 65535, "Backend.") or PORTS["udp"]), ()
    if kind == "extension":
        return Backend("extension", vni, commands=_commands(fields)), ()
    return Backend("host-gw" if kind == "host-gw" else "alloc", vni), ()


def _vxlan(fields: Mapping[str, Any], vni: int) -> tuple[Backend, tuple[str, ...]]:
    datapath = fields.get("datapath")
    word = "user" if datapath in (None, "") else datapath.lower() if isinstance(datapath, str) else datapath
    if word not in ("user", "kernel"):
        raise ConfigError(f'Backend.Datapath must be "user" or "kernel", not {str(datapath)[:40]!r}')
    kernel = word == "kernel"
    backend = Backend(
        "vxlan",
        vni,
        port=_unsigned(fields, "Port", 0, 65535, "Backend.") or PORTS["vxlan"],
        mtu=_unsigned(fields, "MTU", 0, 65535, "Backend."),
        kernel=kernel,
        direct_routing=_boolean(fields, "DirectRouting", False, "Backend."),
        gbp=_boolean(fields, "GBP", False, "Backend."),
        learning=_boolean(fields, "Learning", False, "Backend."),
    )
    reasons = {
        "GBP": (backend.gbp, "our data path carries no group policy id"),
        "Learning": (backend.learning, "our data path never learns addresses from the wire"),
    }
    warnings = tuple(
        f'Backend.{name} has an effect with "Datapath": "kernel" only: {reason}'
        for name, (given, reason) in reasons.items()
        if given and not kernel
    )
    return backend, warnings


def _commands(fields: Mapping[str, Any]) -> ExtensionCommands:
    names = ("PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand")
    return ExtensionCommands(*(_text(fields, name, "Backend.") for name in names))


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields.get(name.lower())
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{where}{name} must be a string")
    return value


def _boolean(fields: Mapping[str, Any], name: str, default: bool, where: str = "") -> bool:
    value = fields.get(name.lower())
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"{where}{name} must be true or false")
    return value


def _unsigned(fields: Mapping[str, Any], name: str, default: int, maximum: int = 1 << 31, where: str = "") -> int:
    value = fields.get(name.lower())
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise ConfigError(f"{where}{name} must be a whole number from 0 to {maximum}")
    return value
