"""What ADD answers: addresses, routes and DNS, and their form in a CNI result. Pure.

Source: CNI SPEC 1.1.0 "Success", and `pkg/types/040` for the `version` field that results before 1.0.0 carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, NamedTuple

from fabric.ipam.config import Route
from fabric.ipam.ranges import Address

Interface = IPv4Interface | IPv6Interface


class IPConfig(NamedTuple):
    """An address with its subnet's length, and the subnet's gateway."""

    address: Interface
    gateway: Address


class Dns(NamedTuple):
    """What a resolver file says."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse_resolv_conf(text: str) -> Dns:
    """The known lines of a resolver file, others skipped. Source: host-local `dns.go`.

    `search` and `options` lines add up, of several `domain` lines the last one counts.
    """
    found: dict[str, list[str]] = {"nameserver": [], "domain": [], "search": [], "options": []}
    for line in text.split("\n"):
        key, *values = line.split() or [""]
        if key in found:
            found[key] += values[:1] if key in ("nameserver", "domain") else values
    domain = found["domain"][-1] if found["domain"] else ""
    return Dns(tuple(found["nameserver"]), domain, tuple(found["search"]), tuple(found["options"]))


def render(ips: Sequence[IPConfig], routes: Sequence[Route], dns: Dns, cni_version: str) -> dict[str, Any]:
    """The sections `ips`, `routes` and `dns` of a result in `cni_version` (0.3.0 or later); empty ones are left out.

    The caller adds `interface`, the index of the container's interface, to each of `ips`.
    """
    old = cni_version.startswith("0.")
    result: dict[str, Any] = {"ips": [_render_ip(item, old) for item in ips]}
    if routes:
        result["routes"] = [_render_route(route) for route in routes]
    servers = {"nameservers": dns.nameservers, "search": dns.search, "options": dns.options}
    section: dict[str, Any] = {name: list(values) for name, values in servers.items() if values}
    if dns.domain:
        section["domain"] = dns.domain
    if section:
        result["dns"] = section
    return result


def _render_ip(item: IPConfig, old: bool) -> dict[str, str]:
    version = {"version": str(item.address.version)} if old else {}
    return version | {"address": str(item.address), "gateway": str(item.gateway)}


def _render_route(route: Route) -> dict[str, Any]:
    gateway = {"gw": str(route.gateway)} if route.gateway else {}
    return {"dst": route.destination} | gateway | dict(route.numbers)
