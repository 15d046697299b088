"""CNI results: read in any version, merged, written in the version that was asked for. Pure.

Source: CNI SPEC 1.1.0 section 5 and `pkg/types/{020,040,100}`. Before 0.3.0 a result has one address per family with
its routes and no interfaces; until 0.4.0 an address names its family; before 1.1.0 interfaces have no MTU, socket or
PCI id, and routes only destination and gateway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
)
from typing import Any, NamedTuple

from fabric import jsonsafe
from fabric.cni.errors import DECODING_FAILURE, INVALID_CONFIG, CniError, shown
from fabric.cni.protocol import NEWEST, VERSIONS

Address = IPv4Address | IPv6Address
AddressInterface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
_ROUTE_NUMBERS = ("mtu", "advmss", "priority", "table", "scope")
_INTERFACE_TEXTS = (("mac", "mac"), ("sandbox", "sandbox"), ("socketPath", "socketpath"), ("pciID", "pciid"))


class Interface(NamedTuple):
    """A network interface; `sandbox` is CNI_NETNS for one inside the container, empty on the host."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


class IPConfig(NamedTuple):
    """An address with its prefix length; `interface` is an index into the result's interfaces."""

    address: AddressInterface
    gateway: Address | None = None
    interface: int | None = None


class Route(NamedTuple):
    """`dst` keeps no host bits. `numbers` are the optional integers mtu, advmss, priority, table, scope."""

    dst: Network
    gateway: Address | None = None
    numbers: tuple[tuple[str, int], ...] = ()

    def number(self, name: str) -> int:
        """One of the optional integers, 0 when absent."""
        return dict(self.numbers).get(name, 0)


class Result(NamedTuple):
    """What ADD answers. `dns` is passed on as it came."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Mapping[str, Any] = {}

    def after(self, previous: Result) -> Result:
        """This result behind that of the plugins before us in the chain."""
        offset = len(previous.interfaces)
        ips = tuple(ip if ip.interface is None else ip._replace(interface=ip.interface + offset) for ip in self.ips)
        return Result(
            previous.interfaces + self.interfaces,
            previous.ips + ips,
            previous.routes + self.routes,
            self.dns or previous.dns,
        )


def parse(value: object, what: str = "prevResult") -> Result:
    """A result of any version; one without `cniVersion` counts as the newest of its shape. Raises CniError (6, 7)."""
    if not isinstance(value, dict):
        raise CniError(DECODING_FAILURE, f"{what} is not an object", shown(value))
    fields = jsonsafe.fold_keys(value)
    version = fields.get("cniversion") or NEWEST
    if version not in VERSIONS:
        raise CniError(INVALID_CONFIG, f"{what} has an unknown cniVersion", shown(version))
    try:
        if "ip4" in fields or "ip6" in fields:
            return _parse_old(fields)
        return Result(
            tuple(_interface(item) for item in _list(fields, "interfaces")),
            tuple(_ip(item) for item in _list(fields, "ips")),
            tuple(_route(item) for item in _list(fields, "routes")),
            _dns(fields),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CniError(DECODING_FAILURE, f"{what} is not a result", shown(str(error))) from None


def emit(result: Result, version: str) -> dict[str, Any]:
    """The result as JSON in `version`. Raises CniError (7) for one without addresses before 0.3.0."""
    if VERSIONS.index(version) < VERSIONS.index("0.3.0"):
        return _emit_old(result, version)
    newest, families = version == NEWEST, VERSIONS.index(version) < VERSIONS.index("1.0.0")
    found: dict[str, Any] = {
        "cniVersion": version,
        "interfaces": [_emit_interface(item, newest) for item in result.interfaces],
        "ips": [_emit_ip(item, families) for item in result.ips],
        "routes": [_emit_route(item, newest) for item in result.routes],
    }
    found = {key: item for key, item in found.items() if item}
    return found | {"dns": dict(result.dns)} if result.dns else found


def parse_ips(values: object) -> tuple[IPConfig, ...]:
    """A list of addresses in the newest version. Raises CniError (7)."""
    try:
        return tuple(_ip(item) for item in _list({"ips": values}, "ips"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CniError(INVALID_CONFIG, "failed to parse addresses", shown(str(error))) from None


def parse_routes(values: object) -> tuple[Route, ...]:
    """A list of routes as configurations have it. Raises CniError (7)."""
    try:
        return tuple(_route(item) for item in _list({"routes": values}, "routes"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CniError(INVALID_CONFIG, "failed to parse routes", shown(str(error))) from None


def emit_ip(ip: IPConfig) -> dict[str, Any]:
    """An address in the newest version."""
    return _emit_ip(ip, False)


def emit_route(route: Route) -> dict[str, Any]:
    """A route in the newest version."""
    return _emit_route(route, True)


def default_route(version: int, gateway: Address | None) -> Route:
    """0.0.0.0/0 or ::/0."""
    return Route(IPv4Network("0.0.0.0/0") if version == 4 else IPv6Network("::/0"), gateway)


def _parse_old(fields: Mapping[str, Any]) -> Result:
    ips: list[IPConfig] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        section = fields.get(key)
        if section:
            section = jsonsafe.fold_keys(section)
            ips.append(IPConfig(ip_interface(_str(section["ip"])), _gateway(section.get("gateway"))))
            routes += [_route(item) for item in _list(section, "routes")]
    return Result((), tuple(ips), tuple(routes), _dns(fields))


def _emit_old(result: Result, version: str) -> dict[str, Any]:
    found: dict[str, Any] = {"cniVersion": version}
    for family in (4, 6):
        ip = next((item for item in result.ips if item.address.version == family), None)
        if ip is None:
            continue
        routes = [_emit_route(item, False) for item in result.routes if item.dst.version == family]
        gateway = {"gateway": str(ip.gateway)} if ip.gateway else {}
        found[f"ip{family}"] = {"ip": str(ip.address)} | gateway | ({"routes": routes} if routes else {})
    if len(found) == 1:
        raise CniError(INVALID_CONFIG, f"cniVersion {version} cannot express a result without an address")
    return found | {"dns": dict(result.dns)}


def _interface(item: Any) -> Interface:
    fields = jsonsafe.fold_keys(item)
    mac, sandbox, socket_path, pci_id = (_str(fields.get(key) or "") for _, key in _INTERFACE_TEXTS)
    return Interface(_str(fields["name"]), mac, _int(fields.get("mtu") or 0), sandbox, socket_path, pci_id)


def _emit_interface(item: Interface, newest: bool) -> dict[str, Any]:
    texts = zip(_INTERFACE_TEXTS, (item.mac, item.sandbox, item.socket_path, item.pci_id), strict=True)
    found: dict[str, Any] = {"name": item.name}
    for (key, _), text in texts:
        if text and (newest or key in ("mac", "sandbox")):
            found[key] = text
    return found | {"mtu": item.mtu} if newest and item.mtu else found


def _ip(item: Any) -> IPConfig:
    fields = jsonsafe.fold_keys(item)
    index = fields.get("interface")
    return IPConfig(
        ip_interface(_str(fields["address"])),
        _gateway(fields.get("gateway")),
        None if index is None else _int(index),
    )


def _emit_ip(item: IPConfig, families: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"version": str(item.address.version)} if families else {}
    found["address"] = str(item.address)
    if item.gateway:
        found["gateway"] = str(item.gateway)
    return found if item.interface is None else found | {"interface": item.interface}


def _route(item: Any) -> Route:
    fields = jsonsafe.fold_keys(item)
    numbers = tuple((name, _int(fields[name])) for name in _ROUTE_NUMBERS if fields.get(name) is not None)
    return Route(ip_interface(_str(fields["dst"])).network, _gateway(fields.get("gw")), numbers)


def _emit_route(route: Route, newest: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"dst": str(route.dst)}
    if route.gateway:
        found["gw"] = str(route.gateway)
    return found | dict(route.numbers) if newest else found


def _dns(fields: Mapping[str, Any]) -> dict[str, Any]:
    value = fields.get("dns") or {}
    if not isinstance(value, dict):
        raise TypeError("dns is not an object")
    return {key: item for key, item in value.items() if item}


def _gateway(value: object) -> Address | None:
    return ip_address(_str(value)) if value else None


def _list(fields: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = fields.get(key) or []
    if not isinstance(value, list):
        raise TypeError(f"{key} is not a list")
    return value


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value, 40)} is not a text")
    return value


def _int(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise TypeError(f"{shown(value, 40)} is not a number in range")
    return value
