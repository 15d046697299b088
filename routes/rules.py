"""Policy routing: rules of ours before the main table's, and the routes of tables of our own.

Ours are the rules with protocol ROUTE_PROTOCOL, and everything in the tables that are named. Source: linux/fib_rules.h;
fib_rule_hdr is laid out as rtmsg is (family, dst_len, src_len, tos, table, two reserved, action, flags).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from routes.netlink import NLM_F_CREATE, NLM_F_EXCL, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWROUTE, Netlink, Request
from routes.observe import FAMILIES, RT_TABLE_MAIN, RTA_DST, RTA_OIF, RTN_UNICAST, dump_or_nothing
from routes.state import ROUTE_PROTOCOL, IPNetwork
from routes.wire import HEADER, NUMBER, ROUTE, attribute, attributes, network, number, read_text, text
from routes.work import Operation, Work

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
FRA_DST, FRA_IIFNAME, FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 1, 3, 6, 10, 15, 16, 21
FR_ACT_TO_TBL, FR_ACT_BLACKHOLE = 1, 6
RTA_TABLE = 15
RT_SCOPE_LINK = 253


@dataclass(frozen=True, slots=True)
class Rule:
    """`from all [to <to>] [iif <interface>] [fwmark <mark>/<mark>] lookup <table>` at `priority`; table 0: `blackhole`,
    what gets there is dropped silently. `family` is AF_INET or AF_INET6."""

    family: int
    priority: int
    table: int
    to: IPNetwork | None = None
    interface: str = ""
    mark: int = 0


@dataclass(frozen=True, slots=True)
class TableRoute:
    """`<prefix> dev <device> table <table>`; of the default route the prefix has length 0."""

    table: int
    prefix: IPNetwork
    device: str


def reconcile_rules(netlink: Netlink, work: Work, wanted: Iterable[Rule]) -> None:
    """Make what is missing, then remove what nobody asked for."""
    desired, seen = frozenset(wanted), frozenset(_read_rules(netlink))
    add = [_operation(rule, "added", RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, ()) for rule in _in_order(desired - seen)]
    remove = [_operation(rule, "removed", RTM_DELRULE, 0, (errno.ENOENT,)) for rule in _in_order(seen - desired)]
    work.perform(netlink, [*add, *remove])


def reconcile_tables(
    netlink: Netlink, work: Work, tables: Iterable[int], wanted: Iterable[TableRoute], indexes: dict[str, int]
) -> None:
    """The same for everything in `tables`. Routes through devices that `indexes` does not have are left out."""
    desired = {(route.table, route.prefix, indexes[route.device]) for route in wanted if route.device in indexes}
    seen = {found for table in tables for found in _read_table(netlink, table)}
    operations = [_route_operation(*place, "removed", RTM_DELROUTE, 0, (errno.ESRCH,)) for place in seen - desired]
    flags = NLM_F_CREATE | NLM_F_EXCL
    operations += [_route_operation(*place, "added", RTM_NEWROUTE, flags, (errno.EEXIST,)) for place in desired - seen]
    work.perform(netlink, operations)


def interfaces_behind(netlink: Netlink, prefixes: Iterable[IPNetwork]) -> frozenset[int]:
    """Indexes of the interfaces through which the main table leads to addresses inside `prefixes`."""
    within = list(prefixes)
    found = set()
    for table, prefix, index, kind in _routes(netlink, RT_TABLE_MAIN):
        inside = any(each.version == prefix.version and prefix.subnet_of(each) for each in within)  # type: ignore[arg-type]
        if table == RT_TABLE_MAIN and kind == RTN_UNICAST and index and inside:
            found.add(index)
    return frozenset(found)


def _in_order(rules: Iterable[Rule]) -> list[Rule]:
    """What drops first: while rules come and go nothing passes that would not pass with all of them."""
    return sorted(rules, key=lambda rule: (bool(rule.table), rule.priority, rule.family))


def _operation(rule: Rule, verb: str, kind: int, flags: int, gone: tuple[int, ...]) -> Operation:
    return Operation(f"rule {rule.priority}", verb, lambda: _rule_request(rule, kind, flags), lambda: None, gone)


def _rule_request(rule: Rule, kind: int, flags: int) -> Request:
    length = rule.to.prefixlen if rule.to else 0
    action = FR_ACT_TO_TBL if rule.table else FR_ACT_BLACKHOLE
    message = ROUTE.pack(rule.family, length, 0, 0, 0, 0, 0, action, 0)
    message += attribute(FRA_PRIORITY, NUMBER.pack(rule.priority)) + attribute(FRA_PROTOCOL, bytes([ROUTE_PROTOCOL]))
    message += attribute(FRA_TABLE, NUMBER.pack(rule.table))
    if rule.to:
        message += attribute(FRA_DST, rule.to.network_address.packed)
    if rule.interface:
        message += text(FRA_IIFNAME, rule.interface)
    if rule.mark:
        message += attribute(FRA_FWMARK, NUMBER.pack(rule.mark)) + attribute(FRA_FWMASK, NUMBER.pack(rule.mark))
    return kind, flags, message


def _read_rules(netlink: Netlink) -> Iterator[Rule]:
    """Ours."""
    for family in FAMILIES:
        for kind, data in dump_or_nothing(netlink, RTM_GETRULE, ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            own, length, *_, action, _ = ROUTE.unpack_from(data, HEADER.size)
            found = attributes(data, HEADER.size + ROUTE.size)
            if (kind, own) != (RTM_NEWRULE, family) or found.get(FRA_PROTOCOL) != bytes([ROUTE_PROTOCOL]):
                continue
            yield Rule(
                family,
                number(found.get(FRA_PRIORITY)),
                number(found.get(FRA_TABLE)) if action == FR_ACT_TO_TBL else 0,
                network(found[FRA_DST], length) if FRA_DST in found else None,
                read_text(found.get(FRA_IIFNAME)),
                number(found.get(FRA_FWMARK)),
            )


def _read_table(netlink: Netlink, table: int) -> Iterator[tuple[int, IPNetwork, int]]:
    for found, prefix, index, _ in _routes(netlink, table):
        if found == table:
            yield table, prefix, index


def _routes(netlink: Netlink, table: int) -> Iterator[tuple[int, IPNetwork, int, int]]:
    """(table, prefix, interface index, RTN_ type) of the routes of a table, and of more from a kernel that filters
    nothing."""
    for family in FAMILIES:
        empty = bytes(4 if family == socket.AF_INET else 16)
        message = ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_TABLE, NUMBER.pack(table))
        for kind, data in dump_or_nothing(netlink, RTM_GETROUTE, message):
            own, length, _, _, short, _, _, route_kind, _ = ROUTE.unpack_from(data, HEADER.size)
            if (kind, own) == (RTM_NEWROUTE, family):
                found = attributes(data, HEADER.size + ROUTE.size)
                prefix = network(found.get(RTA_DST, empty), length)
                yield number(found.get(RTA_TABLE)) or short, prefix, number(found.get(RTA_OIF)), route_kind


def _route_operation(
    table: int, prefix: IPNetwork, index: int, verb: str, kind: int, flags: int, gone: tuple[int, ...]
) -> Operation:
    request = partial(_route_request, table, prefix, index, kind, flags)
    return Operation(f"route {prefix} of table {table}", verb, request, lambda: None, gone)


def _route_request(table: int, prefix: IPNetwork, index: int, kind: int, flags: int) -> Request:
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    message = ROUTE.pack(family, prefix.prefixlen, 0, 0, 0, ROUTE_PROTOCOL, RT_SCOPE_LINK, RTN_UNICAST, 0)
    message += attribute(RTA_TABLE, NUMBER.pack(table)) + attribute(RTA_OIF, NUMBER.pack(index))
    return kind, flags, message + attribute(RTA_DST, prefix.network_address.packed)
