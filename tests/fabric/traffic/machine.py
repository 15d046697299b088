"""The kernel's rule interpreter in few lines: runs a rule's expressions over a packet (nf_tables_core.c, nft_do_chain).

It knows the registers, loads, masks and comparisons that our rules use, and fails on anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from fabric.traffic.expressions import Attributes, expressions
from fabric.traffic.rules import Rule


@dataclass(frozen=True, slots=True)
class Packet:
    """What a rule may look at."""

    source: str
    destination: str
    mark: int = 0

    @property
    def version(self) -> int:
        return ip_address(self.source).version

    def header(self) -> bytes:
        """The IP header up to its addresses; what is before them is nobody's business here."""
        ends = ip_address(self.source).packed + ip_address(self.destination).packed
        return (bytes(12) if self.version == 4 else bytes(8)) + ends


def verdict(rules: Iterable[Rule], packet: Packet, *, both_families: bool = True) -> str:
    """"return", "accept", "masquerade" or "masquerade fully-random" of the first rule that matches, else "policy"."""
    for rule in rules:
        found = run(expressions(rule, both_families=both_families), packet)
        if found:
            return found
    return "policy"


def run(program: Iterable[Attributes], packet: Packet) -> str:
    """The verdict of one rule, empty when a comparison failed."""
    registers: dict[int, bytes] = {}
    for each in program:
        name, given = _open(each)
        if name == "meta":
            nfproto = bytes([2 if packet.version == 4 else 10])
            registers[given["DREG"]] = {3: packet.mark.to_bytes(4, sys.byteorder), 15: nfproto}[given["KEY"]]
        elif name == "payload":
            assert given["BASE"] == 1
            registers[given["DREG"]] = packet.header()[given["OFFSET"] :][: given["LEN"]]
        elif name == "bitwise":
            mask, xor = _value(given["MASK"]), _value(given["XOR"])
            masked = zip(registers[given["SREG"]], mask, xor, strict=True)
            registers[given["DREG"]] = bytes(byte & keep ^ flip for byte, keep, flip in masked)
        elif name == "cmp":
            wanted = _value(given["DATA"])
            if (registers[given["SREG"]][: len(wanted)] == wanted) is bool(given["OP"]):
                return ""
        elif name == "masq":
            assert given.get("FLAGS", set()) <= {"NF_NAT_RANGE_PROTO_RANDOM_FULLY"}
            return "masquerade fully-random" if given.get("FLAGS") else "masquerade"
        elif name == "immediate":
            assert given["DREG"] == 0
            code = dict(dict(given["DATA"]["attrs"])["NFTA_DATA_VERDICT"]["attrs"])["NFTA_VERDICT_CODE"]
            return {1: "accept", -5: "return"}[code]
        else:
            assert name == "counter", name
    raise AssertionError("a rule without a verdict")


def _open(expression: Attributes) -> tuple[str, dict[str, Any]]:
    outer = dict(expression["attrs"])
    name = outer["NFTA_EXPR_NAME"]
    return name, {key.removeprefix(f"NFTA_{name.upper()}_"): value for key, value in outer["NFTA_EXPR_DATA"]["attrs"]}


def _value(data: Attributes) -> bytes:
    return bytes(dict(data["attrs"])["NFTA_DATA_VALUE"])
