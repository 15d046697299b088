"""Protocols, ports and ICMP types of Calico's rules. Source: Calico `api/pkg/lib/numorstring`."""

from __future__ import annotations

from typing import Any

from fabric.policy.errors import PolicyError
from fabric.policy.fields import Fields, whole_number
from fabric.policy.ranges import subtract
from fabric.policy.rules import LAST_PORT, PROTOCOLS, PortMatch, Traffic

WITH_PORTS = {PROTOCOLS[name] for name in ("TCP", "UDP", "SCTP")}
ICMPS = {PROTOCOLS["ICMP"], PROTOCOLS["ICMPv6"]}
BY_NAME = {name.lower(): number for name, number in PROTOCOLS.items()}


def read_traffic(rule: Fields) -> Traffic:
    source, destination = rule.child("source"), rule.child("destination")
    protocol = _read_protocol(rule, "protocol")
    not_protocol = _read_protocol(rule, "notProtocol")
    excluded = [] if not_protocol is None else [PortMatch(not_protocol)]
    if "icmp" in rule or "notICMP" in rule:
        matches, more = _read_icmp(rule, protocol)
        return Traffic(matches, (*excluded, *more), None)
    for side in (source, destination):
        for field in ("ports", "notPorts"):
            if side.items(field) and protocol not in WITH_PORTS:
                raise PolicyError(side.at(field), "needs a protocol that has ports (TCP, UDP, SCTP)")
    ports = destination.items("ports")
    matches = tuple(_read_port(p, protocol, f"{destination.at('ports')}[{i}]") for i, p in enumerate(ports))
    excluded += _numeric(destination, "notPorts", protocol)
    wanted, unwanted = _numeric(source, "ports", protocol), _numeric(source, "notPorts", protocol)
    return Traffic(matches or (PortMatch(protocol),), tuple(excluded), _sources(wanted, unwanted))


def _read_protocol(rule: Fields, name: str) -> int | None:
    value: Any = rule.value.get(name)
    if value is None:
        return None
    if isinstance(value, str) and not value.isdecimal():
        if value.lower() not in BY_NAME:
            raise PolicyError(rule.at(name), f"is {value!r}, not one of {', '.join(PROTOCOLS)} or a number")
        return BY_NAME[value.lower()]
    return whole_number(int(value) if isinstance(value, str) else value, rule.at(name), 1, 255)


def _read_icmp(rule: Fields, protocol: int | None) -> tuple[tuple[PortMatch, ...], tuple[PortMatch, ...]]:
    if protocol not in ICMPS:
        raise PolicyError(rule.at("protocol"), "is not ICMP or ICMPv6, but ICMP types are given")
    found: list[tuple[PortMatch, ...]] = []
    for name in ("icmp", "notICMP"):
        fields = rule.child(name)
        fields.only("type", "code")
        if "type" not in fields:
            if "code" in fields:
                raise PolicyError(fields.at("code"), "needs a type beside it")
            found.append(())
            continue
        low = fields.number("type", 0, 254) << 8
        high = low | 255
        if "code" in fields:
            low = high = low | fields.number("code", 0, 255)
        found.append((PortMatch(protocol, low, high),))
    return found[0] or (PortMatch(protocol),), found[1]


def _read_port(value: Any, protocol: int | None, path: str) -> PortMatch:
    """A number, a range `min:max`, or a name."""
    if not isinstance(value, str):
        number = whole_number(value, path, 0, LAST_PORT)
        return PortMatch(protocol, number, number)
    low, colon, high = value.partition(":")
    if low.isdecimal() and (not colon or high.isdecimal()):
        start = whole_number(int(low), path, 0, LAST_PORT)
        return PortMatch(protocol, start, whole_number(int(high or low), path, start, LAST_PORT))
    if colon or not value:
        raise PolicyError(path, f"is {value!r}, not a port, a range such as 80:90, or a name")
    return PortMatch(protocol, name=value)


def _numeric(side: Fields, field: str, protocol: int | None) -> list[PortMatch]:
    found = []
    for i, value in enumerate(side.items(field)):
        path = f"{side.at(field)}[{i}]"
        port = _read_port(value, protocol, path)
        if port.name:
            raise PolicyError(path, f"is the name {port.name!r}; only a destination's `ports` may have names")
        found.append(port)
    return found


def _sources(wanted: list[PortMatch], unwanted: list[PortMatch]) -> tuple[tuple[int, int], ...] | None:
    if not wanted and not unwanted:
        return None
    ranges = [(port.low, port.high) for port in wanted] or [(0, LAST_PORT)]
    return tuple(subtract(ranges, [(port.low, port.high) for port in unwanted]))
