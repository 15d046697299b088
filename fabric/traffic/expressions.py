"""A rule in nf_tables' own terms: a list of expressions, in the form that pyroute2's message classes take.

Source: include/uapi/linux/netfilter/nf_tables.h. A rule is a little program: load something into a register, mask it,
compare it (the rule ends there if that fails), and at the end a verdict. `nft --debug=netlink list ruleset` shows them.

Prefixes are compared as the whole address under a mask. nft and newer iptables load fewer bytes instead where a prefix
ends at a byte; iptables before 1.8.7 reads such a rule as a full address, and ours may stand in its chains.
"""

from __future__ import annotations

import sys
from typing import Any

from fabric.traffic.rules import Inside, Rule, Verdict

Attributes = dict[str, list[tuple[str, Any]]]
"""pyroute2's form of nested attributes."""

NFT_REG_VERDICT, NFT_REG_1, NFT_REG_2 = 0, 1, 2
NFT_META_PROTOCOL, NFT_META_MARK, NFT_META_NFPROTO = 1, 3, 15
NFT_PAYLOAD_NETWORK_HEADER = 1
NFT_CMP_EQ, NFT_CMP_NEQ = 0, 1
NF_ACCEPT, NFT_RETURN = 1, -5
NFPROTO = {4: 2, 6: 10}
SOURCE_OFFSET, DESTINATION_OFFSET = {4: 12, 6: 8}, {4: 16, 6: 24}
"""Bytes from the start of the IP header (RFC 791, RFC 8200)."""
MARK_BYTES = 4


def expressions(rule: Rule, *, both_families: bool) -> list[Attributes]:
    """The program of `rule`. `both_families` is for tables of family inet, where the family has to be asked for first.

    The mark is compared in host byte order, addresses in network order.
    """
    program: list[Attributes] = []
    if rule.mark:
        mark = rule.mark.to_bytes(MARK_BYTES, sys.byteorder)
        program += [load_meta(NFT_META_MARK), mask_with(mark), compare(mark)]
    sides = [side for side in (rule.source, rule.destination) if side is not None]
    if sides and both_families:
        program += [load_meta(NFT_META_NFPROTO), compare(bytes([NFPROTO[sides[0].prefix.version]]))]
    if rule.source is not None:
        program += _address(rule.source, SOURCE_OFFSET[rule.source.prefix.version])
    if rule.destination is not None:
        program += _address(rule.destination, DESTINATION_OFFSET[rule.destination.prefix.version])
    return [*program, expression("counter"), _verdict(rule.verdict)]


def _address(side: Inside, offset: int) -> list[Attributes]:
    packed = side.prefix.network_address.packed
    load = expression(
        "payload", DREG=NFT_REG_1, BASE=NFT_PAYLOAD_NETWORK_HEADER, OFFSET=offset, LEN=len(packed)
    )
    masking = [] if side.prefix.prefixlen == side.prefix.max_prefixlen else [mask_with(side.prefix.netmask.packed)]
    return [load, *masking, compare(packed, NFT_CMP_NEQ if side.negated else NFT_CMP_EQ)]


def load_meta(key: int, register: int = NFT_REG_1) -> Attributes:
    """Something about the packet that is not in it (NFT_META_*)."""
    return expression("meta", KEY=key, DREG=register)


def mask_with(mask: bytes) -> Attributes:
    """Register 1 and this."""
    return expression(
        "bitwise", SREG=NFT_REG_1, DREG=NFT_REG_1, LEN=len(mask), MASK=_value(mask), XOR=_value(bytes(len(mask)))
    )


def compare(value: bytes, operator: int = NFT_CMP_EQ) -> Attributes:
    """The rule ends unless register 1 is (or is not) this."""
    return expression("cmp", SREG=NFT_REG_1, OP=operator, DATA=_value(value))


def _verdict(verdict: Verdict) -> Attributes:
    if verdict is Verdict.MASQUERADE:
        return expression("masq")
    if verdict is Verdict.MASQUERADE_RANDOM:
        return expression("masq", FLAGS={"NF_NAT_RANGE_PROTO_RANDOM_FULLY"})
    code = NFT_RETURN if verdict is Verdict.RETURN else NF_ACCEPT
    data = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", code)]})]}
    return expression("immediate", DREG=NFT_REG_VERDICT, DATA=data)


def _value(value: bytes) -> Attributes:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def expression(name: str, **attributes: Any) -> Attributes:
    """Any expression: `KEY=value` stands for the attribute NFTA_<name>_KEY."""
    data = {"attrs": [(f"NFTA_{name.upper()}_{key}", value) for key, value in attributes.items()]}
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", data)]}
