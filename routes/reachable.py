"""Which underlay addresses are on link: reached without a gateway, and through which device.

The question behind flannel's DirectRouting and host-gw: a peer whose public IP is on link can be a gateway itself. It
is put to the kernel as `ip route get` does, so policy rules, the local table and metrics count, many at a time.
"""

import errno
import socket
from collections.abc import Collection
from functools import lru_cache

from routes.netlink import RTM_GETROUTE, Netlink
from routes.observe import RTA_DST, RTA_GATEWAY, RTA_MULTIPATH, RTA_OIF, RTA_VIA, RTN_UNICAST, read_link
from routes.state import IPAddress
from routes.wire import HEADER, ROUTE, attribute, attributes, number

NO_SUCH_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENOENT)
"""What a missing, unreachable, prohibit, blackhole or throw route answers."""
BEYOND = frozenset({RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH})

Reachability = dict[IPAddress, str | None]
"""Address to the name of the device through which it is on link, None when it is not."""


def on_link(addresses: Collection[IPAddress]) -> Reachability:
    """The answer for each address now. Raises OSError when the kernel gives none."""
    with Netlink() as netlink:
        return ask_on_link(netlink, addresses)


def ask_on_link(netlink: Netlink, addresses: Collection[IPAddress]) -> Reachability:
    names: dict[int, str | None] = {0: None}
    reachable: Reachability = {}
    for address, answer in zip(addresses, netlink.ask_each(RTM_GETROUTE, map(question, addresses)), strict=True):
        if isinstance(answer, OSError):
            if answer.errno not in NO_SUCH_ROUTE:
                raise answer
            reachable[address] = None
            continue
        index = direct_index(answer)
        if index not in names:
            link = read_link(netlink, index=index)
            names[index] = link.name if link else None
        reachable[address] = names[index]
    return reachable


@lru_cache(maxsize=4096)
def question(address: IPAddress) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_DST, address.packed)


def direct_index(answer: bytes) -> int:
    """Interface index of a unicast route without a gateway, 0 for any other answer: also for an address of our own."""
    if ROUTE.unpack_from(answer, HEADER.size)[7] != RTN_UNICAST:
        return 0
    found = attributes(answer, HEADER.size + ROUTE.size)
    return number(found.get(RTA_OIF)) if BEYOND.isdisjoint(found) else 0
