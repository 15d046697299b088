"""Tracked UDP flows of mapped ports, forgotten when a mapping comes or goes.

UDP has no beginning: while a client sends, its flow keeps the translation that it got first, to a pod that may be gone
or to none at all. The table of flows can be long, so it is read without decoding what does not matter.

Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator

from fabric.model import Address
from routes.netlink import Netlink
from routes.wire import HEADER, attribute, attributes

NETLINK_NETFILTER = 12
CT_GET, CT_DELETE = 1 << 8 | 1, 1 << 8 | 2
TUPLE_ORIG, TUPLE_REPLY, CTA_ID = 1, 2, 12
TUPLE_IP, TUPLE_PROTO = 1, 2
SOURCE = {4: 1, 6: 3}
PROTO_NUM, PROTO_DPORT = 1, 3
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
NESTED = 0x8000


def forget_udp(version: int, ports: Collection[int], pod: Address | None = None) -> int:
    """Forget the UDP flows to these ports of the host; with `pod`, only those that it answers. How many went.

    Raises OSError; a kernel that tracks nothing has none.
    """
    with Netlink(NETLINK_NETFILTER) as netlink:
        try:
            found = list(_flows(netlink, version, ports, pod))
        except OSError as error:
            if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
                return 0
            raise
        results = netlink.perform((CT_DELETE, 0, message) for message in found)
    return sum(result is None for result in results)


def _flows(netlink: Netlink, version: int, ports: Collection[int], pod: Address | None) -> Iterator[bytes]:
    """The message that deletes each."""
    head = bytes([FAMILIES[version], 0, 0, 0])
    wanted = {port.to_bytes(2, "big") for port in ports}
    for _, data in netlink.dump(CT_GET, head):
        fields = attributes(data, HEADER.size + len(head))
        original, reply = fields.get(TUPLE_ORIG, b""), fields.get(TUPLE_REPLY, b"")
        protocol = attributes(attributes(original, 0).get(TUPLE_PROTO, b""), 0)
        if protocol.get(PROTO_NUM) != bytes([socket.IPPROTO_UDP]) or protocol.get(PROTO_DPORT) not in wanted:
            continue
        answers = attributes(attributes(reply, 0).get(TUPLE_IP, b""), 0).get(SOURCE[version])
        if pod is None or answers == pod.packed:
            yield head + attribute(TUPLE_ORIG | NESTED, original) + attribute(CTA_ID, fields.get(CTA_ID, b""))
