"""Other programs' chains at the forward hook that drop by default, and what we do about them.

An accept in nftables ends the chain it stands in and no other: a packet is forwarded only when every base chain at the
hook accepts it. So the accept rules of our own table do not help against, say, Docker, which sets the policy of
iptables' FORWARD to DROP. flannel's rules stand in that very chain, and so do ours then:

- iptables-nft's chain (`filter FORWARD` of the families ip and ip6): while its policy is drop, the two accept rules
  stand at its end, under a comment by which we know them again. They have the form that iptables itself would give
  them, because it refuses to work on a table with rules that it cannot read. They go when the policy is accept again.
- any other chain at that hook whose policy is drop: whoever made it has his own idea of order in there, so it is
  reported, with the commands that would help, unless a rule of it accepts the pods' addresses already.

Limits. Of other chains only plain rules are understood (address in a prefix, accept); a chain with policy accept and a
last rule that drops is not noticed, and flannel's appended rules do not help there either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Any

from fabric.model import Network
from fabric.traffic import nft
from fabric.traffic.expressions import DESTINATION_OFFSET, NFPROTO, SOURCE_OFFSET
from fabric.traffic.rules import forward_rules
from fabric.traffic.table import append, described
from routes.netlink import Request

FAMILY_OF = {4: "ip", 6: "ip6"}
IPTABLES_TABLE, IPTABLES_CHAIN = "filter", "FORWARD"
COMMENT = "podfabric forward"
ADDRESS_BYTES = {"ip": 4, "ip6": 16}
ADDRESSES = {
    (FAMILY_OF[version], "NFT_PAYLOAD_NETWORK_HEADER", offset): side
    for side, offsets in (("saddr", SOURCE_OFFSET), ("daddr", DESTINATION_OFFSET))
    for version, offset in offsets.items()
}
NFPROTO_FAMILIES = {bytes([number]): FAMILY_OF[version] for version, number in NFPROTO.items()}
UNDERSTOOD = ("meta", "payload", "bitwise", "cmp", "immediate")
ACCEPT = ("NFTA_DATA_VERDICT", (("NFTA_VERDICT_CODE", "NF_ACCEPT"),))


def iptables_requests(kernel: nft.Nftables, networks: Iterable[Network]) -> list[Request]:
    """What brings our rules in iptables-nft's FORWARD chains to what they should be; `networks` are to be forwarded."""
    found = []
    for version, family in FAMILY_OF.items():
        chain = kernel.chain(family, IPTABLES_TABLE, IPTABLES_CHAIN)
        if chain is not None:
            closed = chain.hook == "forward" and chain.drops
            wanted = [each for each in networks if each.version == version] if closed else []
            found += _iptables_requests(kernel, family, wanted)
    return found


def _iptables_requests(kernel: nft.Nftables, family: str, networks: Sequence[Network]) -> list[Request]:
    wanted = [rule for network in networks for rule in forward_rules(network, COMMENT)]
    rules = kernel.rules(family, IPTABLES_TABLE, IPTABLES_CHAIN)
    ours = [rule for rule in rules if rule.comment == COMMENT]
    if [(rule.program, rule.comment) for rule in ours] == [described(family, rule) for rule in wanted]:
        return []
    names = (family, IPTABLES_TABLE, IPTABLES_CHAIN)
    delete = [(nft.DELRULE, 0, nft.rule_message(*names, ("NFTA_RULE_HANDLE", rule.handle))) for rule in ours]
    return [*delete, *(append(*names, rule) for rule in wanted)]


def closed_chains(kernel: nft.Nftables, networks: Sequence[Network]) -> list[str]:
    """One line for each chain, other than the above, that drops what it does not know and does not know the pods."""
    found = []
    for chain in kernel.forward_chains():
        is_iptables = chain.family in FAMILY_OF.values() and chain.table == IPTABLES_TABLE
        if not chain.drops or (is_iptables and chain.name == IPTABLES_CHAIN):
            continue
        here = [each for each in networks if chain.family in ("inet", FAMILY_OF[each.version])]
        rules = kernel.rules(chain.family, chain.table, chain.name) if here else ()
        accepted = [each for each in (accepted_prefix(chain.family, rule) for rule in rules) if each is not None]
        missing = [each for each in here if not _covered(each, accepted)]
        if missing:
            found.append(_advice(chain, missing))
    return found


def _advice(chain: nft.BaseChain, networks: Sequence[Network]) -> str:
    name = f"{chain.family} {chain.table} {chain.name}"
    commands = [
        f"nft add rule {name} {FAMILY_OF[network.version]} {side} {network} accept"
        for network in networks
        for side in ("saddr", "daddr")
    ]
    shown = " and ".join(str(network) for network in networks)
    return (
        f"nftables chain {name} drops by default and no simple rule of it accepts {shown}: pods may not reach other"
        f" nodes; allow them: {'; '.join(commands)}"
    )


def _covered(network: Network, accepted: Iterable[tuple[str, Network]]) -> bool:
    holding = {side for side, prefix in accepted if _holds(prefix, network)}
    return holding == {"saddr", "daddr"}


def _holds(outer: Network, inner: Network) -> bool:
    same = outer.version == inner.version and outer.prefixlen <= inner.prefixlen
    return same and inner.network_address in outer


def accepted_prefix(family: str, rule: nft.SeenRule) -> tuple[str, Network] | None:
    """("saddr" or "daddr", prefix) if `rule` accepts by nothing but that; None for any other rule."""
    program = [(name, dict(values)) for name, values in rule.program if name in UNDERSTOOD]
    names = [name for name, _ in program]
    if len(program) != sum(name != "counter" for name, _ in rule.program):
        return None
    if family == "inet":  # the family is asked for first
        if names[:2] != ["meta", "cmp"] or program[0][1]["NFTA_META_KEY"] != "NFT_META_NFPROTO":
            return None
        family = NFPROTO_FAMILIES.get(_data(program[1][1]["NFTA_CMP_DATA"]), "")
        program, names = program[2:], names[2:]
    mask = None
    if names == ["payload", "bitwise", "cmp", "immediate"]:
        mask = _data(program.pop(1)[1]["NFTA_BITWISE_MASK"])
    elif names != ["payload", "cmp", "immediate"]:
        return None
    load, compare, verdict = (values for _, values in program)
    side = ADDRESSES.get((family, load["NFTA_PAYLOAD_BASE"], load["NFTA_PAYLOAD_OFFSET"]))
    size = ADDRESS_BYTES.get(family, 0)
    is_plain = compare["NFTA_CMP_OP"] == "NFT_CMP_EQ" and load["NFTA_PAYLOAD_LEN"] <= size
    if side is None or not is_plain or ACCEPT not in verdict["NFTA_IMMEDIATE_DATA"]:
        return None
    start = _data(compare["NFTA_CMP_DATA"])
    length = len(start) * 8 if mask is None else int.from_bytes(mask, "big").bit_count()
    return side, ip_network((start.ljust(size, b"\0"), length), strict=False)


def _data(value: Any) -> bytes:
    return bytes(dict(value)["NFTA_DATA_VALUE"])
