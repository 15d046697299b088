"""Which interface and addresses face the other nodes.

Source: flannel `main.go`, `pkg/ipmatch/match.go`, `pkg/ip/iface.go`. Candidates are tried in this order and the first
that has a usable address of every enabled family wins: each `--iface`, each `--iface-regex`, `--iface-can-reach`. When
none of the three is given: the interface that has the public address, then that of the default route. A candidate that
does not fit is kept with its reason, for the start-up line or the refusal.

Of several addresses: global before link-local, permanent before dynamic, not temporary before temporary, deprecated
never; what is left is taken in the kernel's order. IPv6 link-local addresses are no addresses to send tunnel packets
from, which flannel would try.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Literal

from fabric.errors import StartError
from fabric.flags import Options
from fabric.model import Address

if TYPE_CHECKING:
    from routes.lookup import InterfaceAddress

Versions = Sequence[Literal[4, 6]]


@dataclass(frozen=True, slots=True)
class Host:
    """The questions to the kernel that the choice needs; `system_host` has the real ones, tests give their own.

    `towards` answers with the interface by which an address is reached, and the source address used.
    """

    names: Callable[[], Sequence[str]]
    addresses: Callable[[str], Sequence[InterfaceAddress]]
    mtu: Callable[[str], int]
    default_interface: Callable[[Literal[4, 6]], str | None]
    towards: Callable[[Address], tuple[str, Address | None]]


@dataclass(frozen=True, slots=True)
class External:
    """The choice. `underlay` are our addresses to send from, `public` the published ones, IPv4 first, one per enabled
    family; `mtu` in bytes; `why` says in a few words how the interface was found, `rejected` what was tried before."""

    name: str
    underlay: tuple[Address, ...]
    public: tuple[Address, ...]
    mtu: int
    why: str
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An interface to try, with the addresses that were asked for by IP version."""

    name: str
    pinned: Mapping[int, Address] = field(default_factory=dict)


class _RejectedError(Exception):
    """A candidate that does not fit; the message is a few words."""


Finder = Callable[[], _Candidate]


def system_host() -> Host:
    """The kernel of this network namespace."""
    import socket

    from routes import lookup

    def towards(address: Address) -> tuple[str, Address | None]:
        answer = lookup.route_get(address)
        return answer.interface, answer.source

    return Host(
        names=lambda: [name for _, name in socket.if_nameindex()],
        addresses=lookup.interface_addresses,
        mtu=lookup.interface_mtu,
        default_interface=lookup.default_route_interface,
        towards=towards,
    )


def select(options: Options, versions: Versions, host: Host, stored: Mapping[int, str] | None = None) -> External:
    """Choose for the enabled IP `versions`. Raises StartError with one line.

    `stored` has public addresses by IP version that an administrator wrote into the store; they win over the flags.
    """
    given = {
        version: _public(flag, (stored or {}).get(version) or text, version)
        for version, flag, text in ((4, "--public-ip", options.public_ip), (6, "--public-ipv6", options.public_ipv6))
        if version in versions
    }
    rejected: list[str] = []
    for why, find in _candidates(options, versions, host, given):
        try:
            candidate = find()
            own = tuple(_own_address(candidate, version, host) for version in versions)
            mtu = host.mtu(candidate.name)
        except (_RejectedError, OSError) as error:
            rejected.append(f"{why}: {error}")
            continue
        public = tuple(given[address.version] or address for address in own)
        return External(candidate.name, own, public, mtu, why, tuple(rejected))
    raise StartError(f"no interface fits: {'; '.join(rejected)} ({_existing(host)})")


def _candidates(
    options: Options, versions: Versions, host: Host, given: Mapping[int, Address | None]
) -> Iterator[tuple[str, Finder]]:
    for text in options.iface:
        yield f"--iface {text}", partial(_by_name_or_address, text, host, given)
    for pattern in options.iface_regex:
        yield f"--iface-regex {pattern}", partial(_by_regex, pattern, versions, host)
    if options.iface_can_reach:
        yield f"--iface-can-reach {options.iface_can_reach}", partial(_by_route, options.iface_can_reach, host)
    if not (options.iface or options.iface_regex or options.iface_can_reach):
        for version, address in sorted(given.items()):
            if address is not None:
                name = "public IP" if version == 4 else "public IPv6"
                yield f"{name} {address}", partial(_by_address, address, host, given)
        yield "default route", partial(_by_default_route, versions, host)


def _existing(host: Host) -> str:
    try:
        return "there are " + ", ".join(sorted(host.names()))
    except OSError as error:
        return f"the kernel cannot be asked for interfaces: {error}"


def _by_name_or_address(text: str, host: Host, given: Mapping[int, Address | None]) -> _Candidate:
    try:
        wanted = ip_address(text)
    except ValueError:
        if text not in host.names():
            raise _RejectedError("no such interface") from None
        return _Candidate(text)
    return _by_address(wanted, host, given)


def _by_address(wanted: Address, host: Host, given: Mapping[int, Address | None]) -> _Candidate:
    """The interface that has `wanted`. A local public IPv6 address has to be on the same one, as in flannel."""
    name = _owner(wanted, host)
    if name is None:
        raise _RejectedError("no interface has it")
    pinned: dict[int, Address] = {wanted.version: wanted}
    other = given.get(6)
    if wanted.version == 4 and other is not None and (owner := _owner(other, host)) is not None:
        if owner != name:
            raise _RejectedError(f"v6 interface {owner} must be the same with v4 interface {name}")
        pinned[6] = other
    return _Candidate(name, pinned)


def _owner(wanted: Address, host: Host) -> str | None:
    for name in host.names():
        if any(item.interface.ip == wanted for item in host.addresses(name)):
            return name
    return None


def _by_regex(pattern: str, versions: Versions, host: Host) -> _Candidate:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise _RejectedError(f"not a regular expression: {error}") from None
    names = list(host.names())
    for name in names:
        found = {version: _matching(compiled, name, version, host) for version in versions}
        pinned: dict[int, Address] = {version: item for version, item in found.items() if item is not None}
        if len(pinned) == len(versions):
            return _Candidate(name, pinned)
    for name in names:
        if compiled.search(name):
            return _Candidate(name)
    raise _RejectedError("no address and no name matches")


def _matching(compiled: re.Pattern[str], name: str, version: int, host: Host) -> Address | None:
    return next((own for own in _usable(name, version, host) if compiled.search(str(own))), None)


def _by_route(text: str, host: Host) -> _Candidate:
    try:
        target = ip_address(text)
    except ValueError:
        raise _RejectedError("not an IP address") from None
    try:
        name, source = host.towards(target)
    except OSError:
        name, source = "", None
    if not name:
        raise _RejectedError("there is no route to it")
    pinned: dict[int, Address] = {source.version: source} if source is not None else {}
    return _Candidate(name, pinned)


def _by_default_route(versions: Versions, host: Host) -> _Candidate:
    names = [(version, host.default_interface(version)) for version in versions]
    for version, name in names:
        if name is None:
            raise _RejectedError(f"there is no IPv{version} default route: give --iface")
    if len({name for _, name in names}) > 1:
        raise _RejectedError(
            f"v6 default route interface {names[1][1]} must be the same with v4 default route interface {names[0][1]}:"
            " give --iface"
        )
    return _Candidate(str(names[0][1]))


def _own_address(candidate: _Candidate, version: int, host: Host) -> Address:
    pinned = candidate.pinned.get(version)
    if pinned is not None and not pinned.is_loopback:
        return pinned
    usable = _usable(candidate.name, version, host)
    if not usable:
        raise _RejectedError(f"{candidate.name} has no usable IPv{version} address")
    return usable[0]


def _usable(name: str, version: int, host: Host) -> list[Address]:
    """The interface's addresses that tunnel packets can be sent from, the best first."""
    found = [
        item
        for item in host.addresses(name)
        if item.interface.version == version
        and not item.deprecated
        and not item.interface.is_loopback
        and not item.interface.is_multicast
        and not (version == 6 and item.interface.is_link_local)
    ]
    found.sort(key=lambda item: (item.interface.is_link_local, not item.permanent, item.temporary))
    return [item.interface.ip for item in found]


def _public(flag: str, text: str, version: int) -> Address | None:
    if not text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        raise StartError(f"{flag} {text!r} is not an IP address") from None
    if address.version != version:
        raise StartError(f"{flag} {text} is not an IPv{version} address")
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise StartError(f"{flag} {text} is no unicast address that other nodes can reach")
    return address
