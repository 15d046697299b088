"""The plugin's configuration: CNI's network configuration with its `ipam` section, parsed. Pure.

Source: host-local `backend/allocator/config.go`. Keys match without case, as in Go. Range sets are numbered in this
order: `runtimeConfig.ipRanges`, the single range of old configurations (`ipam.subnet`), `ipam.ranges`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fabric.ipam.errors import INVALID_CONFIG, INVALID_ENVIRONMENT, IPAMError
from fabric.ipam.names import check_network
from fabric.ipam.ranges import Address, RangeSet, parse_address, parse_prefix, parse_range_set, parse_requested
from fabric.jsonsafe import fold_keys

DATA_DIR = "/var/lib/cni/networks"
_ROUTE_NUMBERS = ("mtu", "advmss", "priority", "table", "scope")


class Place(NamedTuple):
    """The directory `<data_dir>/<network>` that holds a network's reservations."""

    data_dir: str
    network: str


class Route(NamedTuple):
    """A route for the container. `numbers` are CNI's optional integers: mtu, advmss, priority, table, scope."""

    destination: str
    gateway: Address | None = None
    numbers: tuple[tuple[str, int], ...] = ()


class IPAMConf(NamedTuple):
    """`resolv_conf` is a path, empty for none."""

    place: Place
    range_sets: tuple[RangeSet, ...]
    routes: tuple[Route, ...] = ()
    resolv_conf: str = ""


def load(document: Mapping[str, Any]) -> IPAMConf:
    """The configuration that ADD, CHECK and GC work with. Raises IPAMError (7)."""
    ipam = _ipam(document)
    resolv_conf = ipam.get("resolvconf") or ""
    if not isinstance(resolv_conf, str):
        raise IPAMError(INVALID_CONFIG, "resolvConf is not a text")
    sets = _range_sets(document, ipam)
    _check_families(sets, fold_keys(dict(document)).get("cniversion"))
    return IPAMConf(place(document), sets, tuple(map(_route, _list(ipam, "routes"))), resolv_conf)


def place(document: Mapping[str, Any]) -> Place:
    """Where the reservations are: all that DEL needs, so that a broken range never blocks it. Raises IPAMError (7)."""
    data_dir = _ipam(document).get("datadir") or DATA_DIR
    if not isinstance(data_dir, str) or not data_dir.startswith("/") or not data_dir.isprintable():
        raise IPAMError(INVALID_CONFIG, "dataDir is not an absolute path of printable characters")
    return Place(data_dir, check_network(fold_keys(dict(document)).get("name")))


def requested(document: Mapping[str, Any], cni_args: str = "") -> tuple[Address, ...]:
    """The addresses asked for by `IP=` in CNI_ARGS, `args.cni.ips` and `runtimeConfig.ips`, in this order.

    Raises IPAMError: 4 for CNI_ARGS, 7 for the others.
    """
    folded = fold_keys(dict(document))
    cni = _section(_section(folded, "args"), "cni")
    texts = [*_list(cni, "ips"), *_list(_section(folded, "runtimeconfig"), "ips")]
    return (*_from_args(cni_args), *(_requested_address(text) for text in texts))


def _ipam(document: Mapping[str, Any]) -> dict[str, Any]:
    folded = fold_keys(dict(document))
    if folded.get("ipam") is None:
        raise IPAMError(INVALID_CONFIG, "IPAM config missing 'ipam' key")
    return _section(folded, "ipam")


def _section(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise IPAMError(INVALID_CONFIG, f"{name} is not a JSON object")
    return fold_keys(value or {})


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if value is not None and not isinstance(value, list):
        raise IPAMError(INVALID_CONFIG, f"{name} is not a list")
    return value or []


def _range_sets(document: Mapping[str, Any], ipam: Mapping[str, Any]) -> tuple[RangeSet, ...]:
    runtime = _section(fold_keys(dict(document)), "runtimeconfig")
    single = [[ipam]] if "subnet" in ipam else []
    items = [*_list(runtime, "ipranges"), *single, *_list(ipam, "ranges")]
    if not items:
        raise IPAMError(INVALID_CONFIG, "no IP ranges specified")
    sets: list[RangeSet] = []
    for index, item in enumerate(items):
        try:
            sets.append(parse_range_set(item))
        except ValueError as error:
            raise IPAMError(INVALID_CONFIG, f"invalid range set {index}: {error}") from None
        for earlier, other in enumerate(sets[:-1]):
            if other.overlaps(sets[-1]):
                raise IPAMError(INVALID_CONFIG, f"range set {earlier} overlaps with {index}")
    return tuple(sets)


def _check_families(sets: tuple[RangeSet, ...], version: Any) -> None:
    several = any(sum(item.version == family for item in sets) > 1 for family in (4, 6))
    if several and (not isinstance(version, str) or version.startswith(("0.1.", "0.2.")) or not version):
        raise IPAMError(INVALID_CONFIG, f"CNI version {version} does not support more than 1 address per family")


def _route(item: Any) -> Route:
    try:
        fields = fold_keys(item)
        address, length = parse_prefix(fields["dst"])
        gateway = parse_address(fields["gw"]) if fields.get("gw") else None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise IPAMError(INVALID_CONFIG, f"invalid route: {ascii(item)[:80]}") from None
    numbers = tuple((name, fields[name]) for name in _ROUTE_NUMBERS if fields.get(name) is not None)
    if any(type(number) is not int for _, number in numbers):
        raise IPAMError(INVALID_CONFIG, f"invalid route: {ascii(item)[:80]}")
    return Route(f"{address}/{length}", gateway, numbers)


def _requested_address(text: Any) -> Address:
    try:
        return parse_requested(text)
    except (AttributeError, ValueError):
        raise IPAMError(INVALID_CONFIG, f"cannot understand ip: {ascii(text)[:60]}") from None


def _from_args(text: str) -> tuple[Address, ...]:
    pairs = [pair.split("=") for pair in text.split(";")] if text else []
    if any(len(pair) != 2 for pair in pairs):
        raise IPAMError(INVALID_ENVIRONMENT, "CNI_ARGS: invalid pair, K=V;K=V is expected", ascii(text)[:80])
    values = {pair[0]: pair[1] for pair in pairs}
    ignore = values.pop("IgnoreUnknown", "0").lower()
    address = values.pop("IP", "")
    if ignore not in ("0", "1", "true", "false"):
        raise IPAMError(INVALID_ENVIRONMENT, "CNI_ARGS: IgnoreUnknown is neither true nor false", ascii(text)[:80])
    if values and ignore in ("0", "false"):
        raise IPAMError(INVALID_ENVIRONMENT, "CNI_ARGS: unknown args, and IgnoreUnknown is not set", ascii(text)[:80])
    try:
        return (parse_requested(address),) if address else ()
    except ValueError as error:
        raise IPAMError(INVALID_ENVIRONMENT, f"CNI_ARGS: {error}") from None
