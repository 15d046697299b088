"""`explain` at the control socket: from a question to a story. Nothing is sent, counted or remembered."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from fabric import who
from fabric.errors import FabricError
from fabric.explain import MOST_BYTES
from fabric.explain.arrival import arrive
from fabric.explain.packets import FLAGS, PROTOCOLS, SPORT, Tuple5, build
from fabric.explain.story import Story
from fabric.who import Address

if TYPE_CHECKING:
    from fabric.daemon.node import Node
    from fabric.policing.keeper import PolicyKeeper

ECHO = {"icmp": 8, "icmpv6": 128}
WITH_PORTS = ("tcp", "udp", "sctp")


class QuestionError(FabricError):
    """It cannot be told what packet is meant."""


async def explain(node: Node, peers: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> dict[str, Any]:
    """`packet` (base64, `ethernet`: with such a header, `length`: of the whole one), or `source`, `target`, `protocol`
    with `sport`, `size`, `flags`, `ttl`, `may_cut`; `from`: by which way it comes in. `peers` are the node's."""
    tables = node.forwarding.dataplane.live()
    pods = node.pods.endpoints()
    by = params.get("from", "")
    if not isinstance(by, str):
        raise QuestionError("explain: from must be a text")
    if "packet" in params:
        data, ethernet = _packet(params["packet"]), params.get("ethernet") is True
    else:
        data, ethernet = await _built(node.policy, pods, params), False
    arrival = arrive(tables, data, ethernet, by)
    places = {rule.description: rule.place for rule in node.policy.rules()} if node.policy is not None else {}
    names = who.Names(pods, peers)
    told = Story(tables, arrival, arrival.rehearse(tables), names, lambda rule: places.get(rule, "")).tell()
    length = params.get("length")
    if type(length) is int and length > len(data):
        told["notes"].append(f"the capture has {len(data)} of the packet's {length} bytes: it is explained as cut off")
    return told


def _packet(value: object) -> bytes:
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        data = None
    if data is None:
        raise QuestionError("explain: packet must be bytes in base64")
    if len(data) > MOST_BYTES:
        raise QuestionError(f"a packet of {len(data)} bytes is too long for a question: at most {MOST_BYTES}")
    return data


async def _built(keeper: PolicyKeeper | None, pods: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> bytes:
    ends = [await _addresses(keeper, pods, params.get(name)) for name in ("source", "target")]
    pair = next(((a, b) for a in ends[0] for b in ends[1] if a.version == b.version), None)
    if pair is None:
        raise QuestionError(f"{params['source']} and {params['target']} have no addresses of one family")
    protocol, port = parse_protocol(str(params.get("protocol", "")), pair[0].version)
    numbers = [_number(params, *limits) for limits in (("sport", SPORT, 65_535), ("size", 0, 65_535), ("ttl", 64, 255))]
    sport, size, ttl = numbers
    may_cut = params.get("may_cut") is True
    try:
        return build(Tuple5(*pair, protocol, port, sport, size, _flags(params.get("flags", "S")), ttl, may_cut))
    except ValueError as error:
        raise QuestionError(f"explain: {error}") from None


async def _addresses(keeper: PolicyKeeper | None, pods: Sequence[Mapping[str, Any]], text: object) -> list[Address]:
    """Of an address, a pod of this node as `fabricctl pods` names it, or any pod that policy knows; IPv4 first."""
    if not isinstance(text, str) or not text or not text.isprintable():
        raise QuestionError("explain: source and target must be addresses or pods")
    try:
        return [ip_address(text)]
    except ValueError:
        pass
    try:
        found = {address for item in who.pods_named(pods, text) for address in map(ip_address, item["addresses"])}
    except who.UnknownNameError:
        found = set()
        if keeper is not None:
            namespace, slash, name = text.partition("/")
            key = (namespace, name) if slash else ("default", text)
            pod = await keeper.ask(lambda known: known.pods.get(key))
            found = set(pod.addresses) if pod is not None else set()
    if not found:
        raise QuestionError(f"no pod {text[:80]} is known here: give NAMESPACE/NAME or an address")
    return sorted(found, key=lambda each: (each.version, int(each)))


def parse_protocol(text: str, version: int) -> tuple[int, int]:
    """`tcp/80`, `icmp`, `icmp/13` (a type), `47`: protocol and port. Raises QuestionError."""
    name, slash, port = text.lower().partition("/")
    if name == "icmp" and version == 6:
        name = "icmpv6"
    number = PROTOCOLS.get(name)
    if number is None and name.isascii() and name.isdecimal() and int(name) < 256:
        number = int(name)
    most = 255 if name in ECHO else 65_535
    given = port.isascii() and port.isdecimal() and int(port) <= most
    if number is None or (slash and not given) or (name in WITH_PORTS and not slash):
        raise QuestionError(f"{text[:40]!r} is no protocol and port: give tcp/80, udp/53, icmp or a protocol's number")
    return number, int(port) if slash else ECHO.get(name, 0)


def _number(params: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = params.get(name, default)
    if type(value) is not int or not 0 <= value <= most:
        raise QuestionError(f"explain: {name} must be a whole number from 0 to {most}")
    return value


def _flags(value: object) -> int:
    if not isinstance(value, str) or not all(flag in FLAGS for flag in value.upper()):
        raise QuestionError(f"explain: flags must be some of {FLAGS}, the first letters of TCP's flags")
    return sum({1 << FLAGS.index(flag) for flag in value.upper()})
