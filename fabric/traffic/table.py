"""Our own table: what it should be, and the one transaction that brings it there from whatever it is.

The table is `inet podfabric`; everything in it is ours, nothing outside it is touched here. A chain whose rules are not
right gets them replaced in place: the kernel picks a chain's old or new rules once per packet, so that no packet meets
none. Only where the table itself is not as it should be (asleep, a chain too many or of another kind) is it made anew,
also in one transaction; then a packet may for an instant find its chain empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from fabric.traffic import nft
from fabric.traffic.expressions import expressions
from fabric.traffic.rules import Chain, Rule
from routes.netlink import NLM_F_APPEND, NLM_F_CREATE, Request

FAMILY, TABLE = "inet", "podfabric"
NAME = f"{FAMILY} {TABLE}"

Described = tuple[tuple[nft.Expression, ...], str]
"""A rule as the kernel describes it: program and comment."""


class OwnTable:
    """The wanted content of the table: `chains`, none of which means that the table should not exist."""

    def __init__(self, chains: Sequence[Chain]) -> None:
        self._chains = {chain.name: chain for chain in chains}

    def requests(self, kernel: nft.Nftables) -> list[Request]:
        """What has to be done, in one transaction; nothing when the table is as it should be. Raises OSError."""
        table = kernel.table(FAMILY, TABLE)
        delete = (nft.DELTABLE, 0, nft.table_message(FAMILY, TABLE))
        create = (nft.NEWTABLE, NLM_F_CREATE, nft.table_message(FAMILY, TABLE))
        if not self._chains:
            return [delete] if table is not None else []
        if table is None:
            return [create, *self._fill(self._chains)]
        looked_up = {name: kernel.chain(FAMILY, TABLE, name) for name in self._chains}
        seen = {name: chain for name, chain in looked_up.items() if chain is not None}
        if table.flags or table.objects != len(seen) or any(seen[name] != self._base(name) for name in seen):
            return [delete, create, *self._fill(self._chains)]
        wrong = [name for name in self._chains if name not in seen or not self._has_its_rules(kernel, name)]
        flush = [(nft.DELRULE, 0, nft.rule_message(FAMILY, TABLE, name)) for name in wrong if name in seen]
        return [*flush, *self._fill(wrong)]

    def _has_its_rules(self, kernel: nft.Nftables, name: str) -> bool:
        wanted = [described(FAMILY, rule) for rule in self._chains[name].rules]
        return wanted == [(rule.program, rule.comment) for rule in kernel.rules(FAMILY, TABLE, name)]

    def _base(self, name: str) -> nft.BaseChain:
        chain = self._chains[name]
        return nft.BaseChain(FAMILY, TABLE, name, chain.type, chain.hook, chain.priority, drops=False)

    def _fill(self, names: Iterable[str]) -> Iterator[Request]:
        for name in names:
            yield nft.NEWCHAIN, NLM_F_CREATE, nft.base_chain_message(self._base(name))
            for rule in self._chains[name].rules:
                yield append(FAMILY, TABLE, name, rule)


def append(family: str, table: str, chain: str, rule: Rule) -> Request:
    """The request that puts `rule` at the end of a chain."""
    program = ("NFTA_RULE_EXPRESSIONS", expressions(rule, both_families=family == "inet"))
    message = nft.rule_message(family, table, chain, program, nft.comment_attribute(rule.comment))
    return nft.NEWRULE, NLM_F_CREATE | NLM_F_APPEND, message


@lru_cache(maxsize=256)
def described(family: str, rule: Rule) -> Described:
    """`rule` as the kernel describes it in a table of that family."""
    _, _, message = append(family, "", "", rule)
    return nft.program_of(nft.decoded(message)), rule.comment
