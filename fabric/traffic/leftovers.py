"""What flannel left in the firewall: found by its own names and comments, removed without touching anything else.

Source: flannel `pkg/trafficmngr` (iptables and nftables managers). flanneld leaves its rules when it ends.

- iptables mode: chains FLANNEL-POSTRTG in table nat and FLANNEL-FWD in table filter, each called from POSTROUTING or
  FORWARD by a rule with the comment "flanneld masq" or "flanneld forward". Before it had chains of its own (v0.20) the
  rules themselves stood there, with the same comments. Through iptables-nft or iptables-legacy, whichever it found.
- nftables mode: tables `ip flannel-ipv4` and `ip6 flannel-ipv6`.

`find` only looks. The empty chains and tables that iptables made for flannel's rules stay: they carry no name of its.

Limits. A rule of somebody else that calls a chain of flannel's keeps it from being removed; that is said, not forced.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from fabric.errors import TrafficError
from fabric.traffic import legacy, nft
from routes.netlink import Request

TABLES = {"ip": "flannel-ipv4", "ip6": "flannel-ipv6"}
PLACES = (
    ("nat", "POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"),
    ("filter", "FORWARD", "FLANNEL-FWD", "flanneld forward"),
)
"""Table, the chain of iptables that calls flannel's, flannel's chain, and the comment on its rules."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing of flannel's: a table of its nftables mode, or in a table of iptables its own `chain` (if there is
    one) with so many `rules`, and its rules in the chain `caller`, by their handles or their lines in
    iptables-legacy-save (`marks`).
    """

    where: Literal["nftables", "iptables-nft", "iptables-legacy"]
    family: str
    table: str
    caller: str = ""
    chain: str = ""
    rules: int = 0
    marks: tuple[int | str, ...] = ()

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Where it is, whatever is in it now."""
        return self.where, self.family, self.table, self.caller

    def __str__(self) -> str:
        if self.where == "nftables":
            return f"nftables table {self.family} {self.table}"
        parts = [f"chain {self.chain} with {_rules(self.rules)}"] if self.chain else []
        parts += [f"{_rules(len(self.marks))} in {self.caller}"] if self.marks else []
        return f"{self.where} {self.family} table {self.table}: {' and '.join(parts)}"


def _rules(count: int) -> str:
    return f"{count} rule" if count == 1 else f"{count} rules"


def find() -> list[Leftover]:
    """Everything of flannel's in this network namespace. Changes nothing. Raises TrafficError."""
    try:
        return [*_find_nftables(), *_find_legacy()]
    except OSError as error:
        raise TrafficError(f"the firewall cannot be searched for flannel's rules: {error.strerror or error}") from None


def remove(found: Iterable[Leftover]) -> list[str]:
    """Remove what `find` found and is still there; a line for each thing that could not be removed, saying why.

    Each goes in one step, its own chain together with the rules that call it. Raises TrafficError when it cannot look.
    """
    chosen = {leftover.place for leftover in found}
    failures = []
    for leftover in find():
        if leftover.place not in chosen:
            continue
        try:
            if leftover.where == "iptables-legacy":
                _remove_legacy(leftover)
            else:
                with nft.Nftables() as kernel:
                    kernel.commit(_requests(leftover))
        except TrafficError as error:
            failures.append(f"{leftover} cannot be removed: {error}")
        except OSError as error:
            in_use = f"a rule that is not flannel's still calls {leftover.chain}"
            reason = in_use if error.errno == errno.EBUSY else error.strerror or error
            failures.append(f"{leftover} cannot be removed: {reason}")
    return failures


def _find_nftables() -> list[Leftover]:
    try:
        with nft.Nftables() as kernel:
            return list(_of_kernel(kernel))
    except OSError as error:
        if error.errno in nft.UNSUPPORTED:
            return []
        raise


def _of_kernel(kernel: nft.Nftables) -> Iterator[Leftover]:
    for family, name in TABLES.items():
        if kernel.table(family, name) is not None:
            yield Leftover("nftables", family, name)
        for table, caller, chain, comment in PLACES:
            handles = tuple(rule.handle for rule in kernel.rules(family, table, caller) if rule.comment == comment)
            exists = kernel.chain(family, table, chain) is not None
            if exists or handles:
                rules = len(kernel.rules(family, table, chain)) if exists else 0
                yield Leftover("iptables-nft", family, table, caller, chain if exists else "", rules, handles)


def _find_legacy() -> Iterator[Leftover]:
    for family in TABLES:
        for table, caller, chain, comment in PLACES:
            if table not in legacy.tables(family):
                continue
            lines = legacy.save(family, table)
            calls = tuple(
                line for line in lines if line.startswith(f"-A {caller} ") and comment in shlex.split(line)
            )
            exists = any(line.startswith(f":{chain} ") for line in lines)
            if exists or calls:
                rules = sum(line.startswith(f"-A {chain} ") for line in lines)
                yield Leftover("iptables-legacy", family, table, caller, chain if exists else "", rules, calls)


def _requests(leftover: Leftover) -> list[Request]:
    family, table = leftover.family, leftover.table
    if leftover.where == "nftables":
        return [(nft.DELTABLE, 0, nft.table_message(family, table))]
    requests: list[Request] = [
        (nft.DELRULE, 0, nft.rule_message(family, table, leftover.caller, ("NFTA_RULE_HANDLE", handle)))
        for handle in leftover.marks
    ]
    if leftover.chain:
        requests.append((nft.DELRULE, 0, nft.rule_message(family, table, leftover.chain)))
        requests.append((nft.DELCHAIN, 0, nft.chain_message(family, table, leftover.chain)))
    return requests


def _remove_legacy(leftover: Leftover) -> None:
    commands = [legacy.delete(str(line)) for line in leftover.marks]
    if leftover.chain:
        commands += [f"-F {leftover.chain}", f"-X {leftover.chain}"]
    legacy.change(leftover.family, leftover.table, commands)
