"""What a device receives, sent out by another: a rule at its ingress hook, in front of routing and every firewall.

`fwd` (net/netfilter/nft_fwd_netdev.c) looks up the destination's neighbour on the other device, lowers the TTL, which
must be above 1, and sends. No forwarding sysctl, no forward chain and no connection tracking has a part in it. Only
destinations on the other device's link can be reached that way.

The table is owned by our socket (NFT_TABLE_F_OWNER, Linux 5.12): nobody else can change it, and it goes with the
process.
"""

from __future__ import annotations

import sys

from fabric.traffic import nft
from fabric.traffic.expressions import (
    DESTINATION_OFFSET,
    NFPROTO,
    NFT_META_PROTOCOL,
    NFT_PAYLOAD_NETWORK_HEADER,
    NFT_REG_1,
    NFT_REG_2,
    Attributes,
    compare,
    expression,
    load_meta,
)
from routes.netlink import NLM_F_APPEND, NLM_F_CREATE, Request

FAMILY = "netdev"
NFT_TABLE_F_OWNER = 2
NF_NETDEV_INGRESS = 0
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
ADDRESS_BYTES = {4: 4, 6: 16}


class Redirect:
    """From device `source` to the one with index `target`, until `close`.

    Raises OSError where the kernel cannot do it; nothing is left then.
    """

    def __init__(self, source: str, target: int) -> None:
        self._kernel = nft.Nftables()
        try:
            self._kernel.commit(requests(source, target))
        except BaseException:
            self._kernel.close()
            raise

    def close(self) -> None:
        """End it; the kernel removes the table."""
        self._kernel.close()


def requests(source: str, target: int) -> list[Request]:
    """Table, chain and a rule per family, in one transaction; `target` is the device's index."""
    table = f"podfabric-{source}"
    hook = [("NFTA_HOOK_HOOKNUM", NF_NETDEV_INGRESS), ("NFTA_HOOK_PRIORITY", 0), ("NFTA_HOOK_DEV", source)]
    chain = nft.chain_message(
        FAMILY, table, "send", ("NFTA_CHAIN_HOOK", {"attrs": hook}), ("NFTA_CHAIN_TYPE", "filter"),
        ("NFTA_CHAIN_POLICY", nft.NF_ACCEPT),
    )  # fmt: skip
    made = [
        (nft.NEWTABLE, NLM_F_CREATE, nft.table_message(FAMILY, table, ("NFTA_TABLE_FLAGS", NFT_TABLE_F_OWNER))),
        (nft.NEWCHAIN, NLM_F_CREATE, chain),
    ]
    for version in (4, 6):
        program = ("NFTA_RULE_EXPRESSIONS", forward(version, target))
        made.append((nft.NEWRULE, NLM_F_CREATE | NLM_F_APPEND, nft.rule_message(FAMILY, table, "send", program)))
    return made


def forward(version: int, target: int) -> list[Attributes]:
    """The program: packets of that family to their destination by device number `target`."""
    index = {"attrs": [("NFTA_DATA_VALUE", target.to_bytes(4, sys.byteorder))]}
    return [
        load_meta(NFT_META_PROTOCOL),
        compare(ETHERTYPE[version].to_bytes(2, "big")),
        expression("immediate", DREG=NFT_REG_1, DATA=index),
        expression(
            "payload", DREG=NFT_REG_2, BASE=NFT_PAYLOAD_NETWORK_HEADER, OFFSET=DESTINATION_OFFSET[version],
            LEN=ADDRESS_BYTES[version],
        ),
        expression("fwd", SREG_DEV=NFT_REG_1, SREG_ADDR=NFT_REG_2, NFPROTO=NFPROTO[version]),
    ]
