"""pyroute2's nf_tables message classes (encode and decode), without its sockets.

The module that has them also has pyroute2's sockets for them, and those bring event loops, namespaces, compression and
more: 1.1 MB and 34 ms of processor time on top of what `routes.codec` loads, against 0.2 MB and 7 ms without (pyroute2
0.9.7, Python 3.11). We talk by `routes.netlink`, so the socket classes it derives from are stood in for while it loads.
Then the module is forgotten, and whoever imports it elsewhere gets the real one. The same way as in `routes.codec`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from routes.codec import bare_package

SOCKETS, MESSAGES = "pyroute2.netlink.nlsocket", "pyroute2.netlink.nfnetlink.nftsocket"


@contextmanager
def no_sockets() -> Iterator[None]:
    """While open, the message classes can be imported without the socket classes of their module."""
    if SOCKETS in sys.modules:
        yield
        return
    sockets = ModuleType(SOCKETS)
    sockets.__dict__.update(AsyncNetlinkSocket=object, NetlinkSocket=object)
    sys.modules[SOCKETS] = sockets
    try:
        yield
    finally:
        del sys.modules[SOCKETS]
        sys.modules.pop(MESSAGES, None)


with bare_package("pyroute2"), no_sockets():
    from pyroute2.netlink import NETLINK_NETFILTER
    from pyroute2.netlink.nfnetlink import nfgen_msg
    from pyroute2.netlink.nfnetlink.nftsocket import (
        nft_chain_msg,
        nft_contains_expr,
        nft_gen_msg,
        nft_rule_msg,
        nft_set_msg,
        nft_table_msg,
    )

# pyroute2 0.9.7 names a type here that does not exist; this copy of its classes is ours alone.
nft_contains_expr.nft_expr.nft_fwd.nla_map = tuple(
    (name, "be32" if kind == "u32" else kind) for name, kind in nft_contains_expr.nft_expr.nft_fwd.nla_map
)


class rule_msg(nft_rule_msg):  # type: ignore[misc]
    """pyroute2's rule message with the user data raw: its own type takes a comment for the only thing in there."""

    nla_map = tuple(
        (name, "cdata" if name == "NFTA_RULE_USERDATA" else kind) for name, kind in nft_rule_msg.nla_map
    )


__all__ = ["NETLINK_NETFILTER", "nfgen_msg", "nft_chain_msg", "nft_gen_msg", "nft_set_msg", "nft_table_msg", "rule_msg"]
