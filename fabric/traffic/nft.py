"""A conversation with the kernel's nf_tables: objects as values, questions, and transactions that apply whole or not.

pyroute2 encodes and decodes the messages, `routes.netlink` has the talking (ADR 6, ADR 15). Not for two threads at
once; opened in the network namespace of the calling thread.

Source: include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h. A transaction is one datagram of a begin message,
requests and an end message. A table, chain or rule is named by its family, and numbers are in network order.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fabric.traffic.messages import (
    NETLINK_NETFILTER,
    nfgen_msg,
    nft_chain_msg,
    nft_gen_msg,
    nft_table_msg,
    rule_msg,
)
from routes.netlink import NLM_F_ACK, NLMSG_ERROR, Message, Netlink, Request, error_of

SUBSYSTEM = 10
"""NFNL_SUBSYS_NFTABLES: the upper byte of every message type."""
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE = (
    SUBSYSTEM << 8 | number for number in range(9)
)
NEWGEN, GETGEN = SUBSYSTEM << 8 | 15, SUBSYSTEM << 8 | 16
FAMILIES = {"inet": 1, "ip": 2, "netdev": 5, "ip6": 10}
FAMILY_NAMES = {number: name for name, number in FAMILIES.items()}
HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
HOOK_NAMES = {number: name for name, number in HOOKS.items()}
NF_DROP, NF_ACCEPT = 0, 1
UNSUPPORTED = (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL)
"""What a kernel without nf_tables answers."""
UDATA_COMMENT = 0
"""NFTNL_UDATA_RULE_COMMENT (libnftnl): user data is type, length, value; one byte each for the first two."""

Expression = tuple[str, tuple[tuple[str, Any], ...]]
"""An expression as the kernel describes it: its name, and its attributes sorted, without those that only count."""
COUNTER, UNCOUNTED = re.compile(rb"(counter\0.{8}).{8}(.{4}).{8}", re.DOTALL), rb"\1" + bytes(8) + rb"\2" + bytes(8)
"""A counter expression as bytes: its name, then two numbers of 8 bytes with 8 and 4 bytes in front of them."""
DEFAULTS = (("NFTA_BITWISE_OP", "NFT_BITWISE_BOOL"),)
"""Attributes that newer kernels describe and that nobody has to give."""


@dataclass(frozen=True, slots=True)
class Table:
    """`flags` is 0 unless somebody put the table to sleep; `objects` counts its chains, sets and other objects."""

    family: str
    name: str
    flags: int
    objects: int


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain as far as it matters here; a chain that no hook calls has an empty `type` and `hook`."""

    family: str
    table: str
    name: str
    type: str
    hook: str
    priority: int
    drops: bool


@dataclass(frozen=True, slots=True)
class SeenRule:
    """A rule of the kernel. `handle` names it in its table; `comment` is nft's or iptables' (`-m comment`)."""

    handle: int
    program: tuple[Expression, ...]
    comment: str


class Nftables(Netlink):
    """An nf_tables socket; a context manager. Raises OSError; names of objects that do not exist answer None or ()."""

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER)

    def generation(self) -> int:
        """The number of the ruleset: it grows with every transaction of anybody in this network namespace."""
        return generation_of(self.ask(GETGEN, _of_family(nfgen_msg(), 0)))[0]

    def table(self, family: str, name: str) -> Table | None:
        """The table of that name."""
        data = self._find(GETTABLE, table_message(family, name))
        return _table(data) if data is not None else None

    def chain(self, family: str, table: str, name: str) -> BaseChain | None:
        """The chain of that name."""
        data = self._find(GETCHAIN, chain_message(family, table, name))
        return _chain(data) if data is not None else None

    def forward_chains(self) -> list[BaseChain]:
        """All chains of type filter at the forward hook, of the families ip, ip6 and inet.

        Service proxies make tens of thousands of chains: those without a type are not decoded.
        """
        found = [_chain(data) for _, data in self.dump(GETCHAIN, _of_family(nfgen_msg(), 0)) if b"filter\0" in data]
        return [each for each in found if each.type == "filter" and each.hook == "forward" and each.family]

    def rules(self, family: str, table: str, chain: str) -> tuple[SeenRule, ...]:
        """The rules of one chain in order."""
        found = self.dump(GETRULE, rule_message(family, table, chain))
        return tuple(_rule(data[:8] + bytes(8) + COUNTER.sub(UNCOUNTED, data[16:])) for _, data in found)

    def commit(self, requests: Sequence[Request]) -> None:
        """Apply `requests` as one transaction: packets see none or all of it. Raises the first request's OSError."""
        begin, end = nfgen_msg(), nfgen_msg()
        begin["res_id"] = end["res_id"] = SUBSYSTEM
        kind, flags, message = requests[-1]
        batch = [*requests[:-1], (kind, flags | NLM_F_ACK, message)]
        first = self._send([(NFNL_MSG_BATCH_BEGIN, 0, begin), *batch, (NFNL_MSG_BATCH_END, 0, end)])
        failure: OSError | None = None
        while True:
            # Failures of all requests come in order, then the last one's answer; one about the whole comes alone.
            for answer, _, sequence, data in self._receive():
                if answer != NLMSG_ERROR or not first <= sequence <= first + len(batch):
                    continue
                failure = failure or error_of(data)
                if sequence in (first, first + len(batch)):
                    if failure is not None:
                        raise failure
                    return

    def _find(self, kind: int, message: Message) -> bytes | None:
        try:
            return self.ask(kind, message)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise


def generation_of(data: bytes) -> tuple[int, str]:
    """The number of the ruleset and the name of the program that made it, from an answer or an announcement."""
    message = nft_gen_msg(data)
    message.decode()
    return int(message.get_attr("NFTA_GEN_ID")), message.get_attr("NFTA_GEN_PROC_NAME") or "somebody"


def table_message(family: str, name: str, *more: tuple[str, Any]) -> Message:
    """A message that names a table; with NEWTABLE it creates it or wakes it up."""
    return _of_family(nft_table_msg(), FAMILIES[family], [("NFTA_TABLE_NAME", name), *more])


def chain_message(family: str, table: str, name: str, *more: tuple[str, Any]) -> Message:
    """A message that names a chain."""
    names = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]
    return _of_family(nft_chain_msg(), FAMILIES[family], [*names, *more])


def base_chain_message(chain: BaseChain) -> Message:
    """A message that describes a base chain whole."""
    hook = [("NFTA_HOOK_HOOKNUM", HOOKS[chain.hook]), ("NFTA_HOOK_PRIORITY", chain.priority)]
    return chain_message(
        chain.family, chain.table, chain.name,
        ("NFTA_CHAIN_HOOK", {"attrs": hook}),
        ("NFTA_CHAIN_POLICY", NF_DROP if chain.drops else NF_ACCEPT),
        ("NFTA_CHAIN_TYPE", chain.type),
    )  # fmt: skip


def rule_message(family: str, table: str, chain: str, *more: tuple[str, Any]) -> Message:
    """A message that names a chain's rules; with NFTA_RULE_HANDLE one of them."""
    names = [("NFTA_RULE_TABLE", table), ("NFTA_RULE_CHAIN", chain)]
    return _of_family(rule_msg(), FAMILIES[family], [*names, *more])


def comment_attribute(text: str) -> tuple[str, bytes]:
    """The attribute by which a rule carries a comment that `nft` and `iptables` show."""
    value = text.encode() + b"\0"
    return "NFTA_RULE_USERDATA", bytes([UDATA_COMMENT, len(value)]) + value


def program_of(message: Message) -> tuple[Expression, ...]:
    """The program of an encoded or received rule message, in the form in which two programs can be compared.

    Left out is what the kernel adds: values of counters, and attributes at their default.
    """
    listed = [
        (each.get_attr("NFTA_EXPR_NAME"), each.get_attr("NFTA_EXPR_DATA"))
        for each in message.get_attr("NFTA_RULE_EXPRESSIONS") or ()
    ]
    return tuple((name, () if name == "counter" else _attributes(data)) for name, data in listed)


def decoded(message: Message) -> Message:
    """A message of ours as it reads once encoded: what the kernel's description is compared with."""
    message.reset()
    message.encode()
    copy = type(message)(bytes(message.data))
    copy.decode()
    return copy


def _of_family(message: Message, family: int, attributes: list[tuple[str, Any]] | None = None) -> Message:
    message["nfgen_family"] = family
    if attributes:
        message["attrs"] = attributes
    return message


def _table(data: bytes) -> Table:
    message = nft_table_msg(data)
    message.decode()
    return Table(
        FAMILY_NAMES.get(message["nfgen_family"], ""),
        message.get_attr("NFTA_TABLE_NAME"),
        message.get_attr("NFTA_TABLE_FLAGS") or 0,
        message.get_attr("NFTA_TABLE_USE") or 0,
    )


def _chain(data: bytes) -> BaseChain:
    message = nft_chain_msg(data)
    message.decode()
    hook = message.get_attr("NFTA_CHAIN_HOOK")
    family = FAMILY_NAMES.get(message["nfgen_family"], "")
    table, name = message.get_attr("NFTA_CHAIN_TABLE"), message.get_attr("NFTA_CHAIN_NAME")
    if hook is None:
        return BaseChain(family, table, name, "", "", 0, False)
    return BaseChain(
        family,
        table,
        name,
        message.get_attr("NFTA_CHAIN_TYPE") or "",
        HOOK_NAMES.get(hook.get_attr("NFTA_HOOK_HOOKNUM"), ""),
        hook.get_attr("NFTA_HOOK_PRIORITY"),
        message.get_attr("NFTA_CHAIN_POLICY") == NF_DROP,
    )


@lru_cache(maxsize=512)
def _rule(data: bytes) -> SeenRule:
    """A rule message without its counters' values, which is the same at every look: decoding takes a millisecond."""
    message = rule_msg(data)
    message.decode()
    program = program_of(message)
    comment = _comment(message.get_attr("NFTA_RULE_USERDATA") or b"")
    for values in (dict(attributes) for name, attributes in program if name == "match"):
        if values["NFTA_MATCH_NAME"] == "comment":  # iptables' own
            raw = bytes.fromhex(values["NFTA_MATCH_INFO"].replace(":", ""))
            comment = raw.split(b"\0")[0].decode(errors="replace")
    return SeenRule(int(message.get_attr("NFTA_RULE_HANDLE")), program, comment)


def _comment(userdata: bytes) -> str:
    offset = 0
    while offset + 2 <= len(userdata):
        kind, length = userdata[offset : offset + 2]
        if kind == UDATA_COMMENT:
            return userdata[offset + 2 : offset + 2 + length].rstrip(b"\0").decode(errors="replace")
        offset += 2 + length
    return ""


def _attributes(value: Any) -> Any:
    """Nested attributes as sorted pairs, anything else as it is."""
    if not isinstance(value, dict):
        return value
    pairs = [(name, _attributes(inner)) for name, inner in value.get("attrs", ())]
    return tuple(sorted(pair for pair in pairs if pair not in DEFAULTS))


