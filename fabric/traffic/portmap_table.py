"""The fixed part of `inet podfabric_hostports`: sets, chains and rules. What they are for is in `portmap`.

    guard        drops what comes from outside for or from 127.0.0.0/8, before any translation: interfaces towards pods
                 have route_localnet set, so that the kernel alone would let it in (CVE-2020-8558)
    prerouting, output  what is for an address of this host goes through `hostports`
    hostports    translated as the maps say, the one for a single address first
    postrouting  masqueraded where the answer would not come back by here, or where the pod's network wants it

The rules never change, so that ADD writes them only when they are not there; `broken` finds what somebody else changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

from fabric.model import Network
from fabric.traffic import nft
from fabric.traffic.expressions import (
    DESTINATION_OFFSET,
    NFPROTO,
    NFT_CMP_NEQ,
    NFT_META_NFPROTO,
    NFT_PAYLOAD_NETWORK_HEADER,
    NFT_REG_1,
    NFT_REG_VERDICT,
    SOURCE_OFFSET,
    Attributes,
    compare,
    expression,
    load_meta,
    mask_with,
)
from fabric.traffic.messages import nft_set_msg
from fabric.traffic.portmap import FAMILY, NFPROTO_INET, SETS, TABLE, VERSION_CHAIN
from fabric.traffic.rules import MULTICAST, SRCNAT, Inside, Rule, Verdict
from fabric.traffic.table import append
from routes.netlink import NLM_F_APPEND, NLM_F_CREATE, Message, Request

NEWSET = nft.SUBSYSTEM << 8 | 9
RAW, DSTNAT, BEFORE_SRCNAT = -300, -100, SRCNAT - 5
BASES = (
    nft.BaseChain(FAMILY, TABLE, "guard", "filter", "prerouting", RAW, drops=False),
    nft.BaseChain(FAMILY, TABLE, "prerouting", "nat", "prerouting", DSTNAT, drops=False),
    nft.BaseChain(FAMILY, TABLE, "output", "nat", "output", DSTNAT, drops=False),
    nft.BaseChain(FAMILY, TABLE, "postrouting", "nat", "postrouting", BEFORE_SRCNAT, drops=False),
)
TYPES = {
    "bound4": (12, 7, 13), "any4": (12, 13), "hairpin4": (41, 7), "self4": (7, 7), "local4": (7,),
    "masquerade4": (7,),
    "bound6": (12, 8, 13), "any6": (12, 13), "hairpin6": (41, 8), "self6": (8, 8), "masquerade6": (8,),
}  # fmt: skip
"""nft's numbers of types, for its listings: ipv4_addr 7, ipv6_addr 8, inet_proto 12, inet_service 13, ifname 41."""
NFT_DATA_VERDICT = 0xFFFFFF00
NFT_META_IIF, NFT_META_IIFNAME, NFT_META_L4PROTO = 4, 6, 16
NFT_PAYLOAD_TRANSPORT_HEADER = 2
NFT_CT_STATUS, IPS_DST_NAT = 2, 1 << 5
NFT_FIB_F_DADDR, RTN_LOCAL = 2, 2
ADDRTYPE = {"NFT_FIB_RESULT_UNSPEC", "NFT_FIB_RESULT_OIF"}
"""NFT_FIB_RESULT_ADDRTYPE, which is 3; pyroute2 takes the numbers of results for bits."""
LOOPBACK_INDEX = (1).to_bytes(4, sys.byteorder)
LOOPBACK = bytes([127])
NFT_NAT_DNAT = 1
NF_DROP, NFT_JUMP = 0, -3
DNAT_FLAGS = {"NF_NAT_RANGE_MAP_IPS", "NF_NAT_RANGE_PROTO_SPECIFIED"}
Program = list[Attributes]


def requests() -> list[Request]:
    """What makes the table as it should be, whatever is there of it; elements stay."""
    found: list[Request] = [(nft.NEWTABLE, NLM_F_CREATE, nft.table_message(FAMILY, TABLE))]
    found += [(NEWSET, NLM_F_CREATE, _set(name, number)) for number, name in enumerate(SETS, 1)]
    plain = [nft.chain_message(FAMILY, TABLE, name) for name in ("hostports", VERSION_CHAIN)]
    found += [(nft.NEWCHAIN, NLM_F_CREATE, message) for message in [*map(nft.base_chain_message, BASES), *plain]]
    for chain, programs in rules().items():
        found.append((nft.DELRULE, 0, nft.rule_message(FAMILY, TABLE, chain)))
        found += [(nft.NEWRULE, NLM_F_CREATE | NLM_F_APPEND, _rule(chain, program)) for program in programs]
    return found


def broken(kernel: nft.Nftables) -> str:
    """The name of a chain that is not as it should be, empty when all is well. Raises OSError."""
    for base in BASES:
        if kernel.chain(FAMILY, TABLE, base.name) != base:
            return base.name
    for chain, programs in rules().items():
        wanted = [nft.program_of(nft.decoded(_rule(chain, program))) for program in programs]
        if [rule.program for rule in kernel.rules(FAMILY, TABLE, chain)] != wanted:
            return chain
    return ""


def rules() -> dict[str, list[Program]]:
    """Each chain's rules in order."""
    to_this_host = [_fib_local(), compare(RTN_LOCAL.to_bytes(4, sys.byteorder)), _jump("hostports")]
    translated = [expression("ct", KEY=NFT_CT_STATUS, DREG=NFT_REG_1), mask_with(_host_order(IPS_DST_NAT)),
                  compare(bytes(4), NFT_CMP_NEQ)]  # fmt: skip
    return {
        "guard": [[*_from_outside(), *_family(4), _load(offset, 1, NFT_REG_1), compare(LOOPBACK), _verdict(NF_DROP)]
                  for offset in (DESTINATION_OFFSET[4], SOURCE_OFFSET[4])],
        "hostports": [[*_family(version), *_port_key(version, bound), *_translate(version, bound)]
                      for version in (4, 6) for bound in (True, False)],
        "prerouting": [to_this_host],
        "output": [to_this_host],
        "postrouting": [
            *[[*_family(v), *translated, load_meta(NFT_META_IIFNAME), _destination(v, _register(4)),
               _lookup(f"hairpin{v}"), _masquerade()] for v in (4, 6)],
            *[[*_family(v), *translated, _load(SOURCE_OFFSET[v], _length(v), _register(0)),
               _destination(v, _register(_length(v) // 4)), _lookup(f"self{v}"), _masquerade()] for v in (4, 6)],
            [*_family(4), *translated, _load(SOURCE_OFFSET[4], 1, NFT_REG_1), compare(LOOPBACK),
             _destination(4, _register(0)), _lookup("local4"), _masquerade()],
            *[[*_family(v), _load(SOURCE_OFFSET[v], _length(v), _register(0)),
               _lookup(f"masquerade{v}", NFT_REG_VERDICT)] for v in (4, 6)],
        ],
    }  # fmt: skip


def masquerading(networks: Sequence[Network]) -> tuple[str, list[Request]]:
    """A chain that masquerades what does not go to one of the networks, and what makes it.

    It is named after its content, so that one that is there already has the right rules.
    """
    from hashlib import sha256

    name = "masquerade_" + sha256(" ".join(sorted(map(str, networks))).encode()).hexdigest()[:16]
    stay = [*networks, *MULTICAST.values(), ip_network("fe80::/10"), ip_network("169.254.0.0/16")]
    wanted = [Rule(Verdict.RETURN, "stays as it is", destination=Inside(network)) for network in stay]
    wanted.append(Rule(Verdict.MASQUERADE_RANDOM, "a pod to the outside"))
    made: list[Request] = [(nft.NEWCHAIN, NLM_F_CREATE, nft.chain_message(FAMILY, TABLE, name))]
    made.append((nft.DELRULE, 0, nft.rule_message(FAMILY, TABLE, name)))
    return name, made + [append(FAMILY, TABLE, name, rule) for rule in wanted]


def _set(name: str, number: int) -> Message:
    key, data = SETS[name]
    message = nft_set_msg()
    message["nfgen_family"] = NFPROTO_INET
    attributes: list[tuple[str, Any]] = [
        ("NFTA_SET_TABLE", TABLE),
        ("NFTA_SET_NAME", name),
        ("NFTA_SET_FLAGS", {"NFT_SET_MAP"} if data else set()),
        ("NFTA_SET_KEY_TYPE", _type(TYPES[name])),
        ("NFTA_SET_KEY_LEN", key),
    ]
    if data:
        kind = NFT_DATA_VERDICT if data < 0 else _type((7 if name.endswith("4") else 8, 13))
        attributes += [("NFTA_SET_DATA_TYPE", kind)]
        attributes += [("NFTA_SET_DATA_LEN", data)] if data > 0 else []
    message["attrs"] = [*attributes, ("NFTA_SET_ID", number)]
    return message


def _type(parts: Sequence[int]) -> int:
    """nft's number of a concatenation: six bits for each."""
    value = 0
    for part in parts:
        value = value << 6 | part
    return value


def _rule(chain: str, program: Program) -> Message:
    return nft.rule_message(FAMILY, TABLE, chain, ("NFTA_RULE_EXPRESSIONS", program))


def _host_order(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def _length(version: int) -> int:
    return 4 if version == 4 else 16


def _family(version: int) -> Program:
    return [load_meta(NFT_META_NFPROTO), compare(bytes([NFPROTO[version]]))]


def _from_outside() -> Program:
    return [load_meta(NFT_META_IIF), compare(LOOPBACK_INDEX, NFT_CMP_NEQ)]


def _fib_local() -> Attributes:
    return expression("fib", FLAGS=NFT_FIB_F_DADDR, RESULT=ADDRTYPE, DREG=NFT_REG_1)


def _load(offset: int, length: int, register: int, base: int = NFT_PAYLOAD_NETWORK_HEADER) -> Attributes:
    return expression("payload", DREG=register, BASE=base, OFFSET=offset, LEN=length)


def _destination(version: int, register: int) -> Attributes:
    return _load(DESTINATION_OFFSET[version], _length(version), register)


def _port_key(version: int, bound: bool) -> Program:
    """Protocol, destination address if `bound`, destination port, in registers one after another."""
    words = _length(version) // 4 if bound else 0
    address = [_destination(version, _register(1))] if bound else []
    port = _load(2, 2, _register(1 + words), NFT_PAYLOAD_TRANSPORT_HEADER)
    return [load_meta(NFT_META_L4PROTO, _register(0)), *address, port]


def _translate(version: int, bound: bool) -> Program:
    address, port = _register(0), _register(_length(version) // 4)
    nat = expression(
        "nat", TYPE=NFT_NAT_DNAT, FAMILY=NFPROTO[version], REG_ADDR_MIN=address, REG_ADDR_MAX=address,
        REG_PROTO_MIN=port, REG_PROTO_MAX=port, FLAGS=DNAT_FLAGS,
    )  # fmt: skip
    return [_lookup(f"{'bound' if bound else 'any'}{version}", address), nat]


def _lookup(name: str, register: int | None = None) -> Attributes:
    """The register gets what the key leads to; without one, the rule ends when the key is not there."""
    target = {} if register is None else {"DREG": register}
    return expression("lookup", SET=name, SREG=NFT_REG_1, **target, FLAGS=set())


def _register(word: int) -> int:
    """The kernel's name for the register that begins at this of 16 words: NFT_REG_<n>, NFT_REG32_<n> between those."""
    return 8 + word if word % 4 else NFT_REG_1 + word // 4


def _masquerade() -> Attributes:
    return expression("masq")


def _jump(chain: str) -> Attributes:
    return _verdict(NFT_JUMP, ("NFTA_VERDICT_CHAIN", chain))


def _verdict(code: int, *more: tuple[str, Any]) -> Attributes:
    verdict = ("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", code), *more]})
    return expression("immediate", DREG=NFT_REG_VERDICT, DATA={"attrs": [verdict]})
