"""Ports of the host that lead to pods, and pods that are masqueraded one by one: table `inet podfabric_hostports`.

Theory of operation. The rules of the table are fixed (`portmap_table`); what belongs to pods are elements of its sets
and maps, so the cost of a packet does not depend on how many mappings there are:

    bound4, bound6      protocol . host address . host port  ->  pod's address . pod's port
    any4, any6          protocol . host port                 ->  the same, for every address of the host
    hairpin4, hairpin6  interface . pod's address: whoever reaches the pod through a mapping by the interface that also
                        leads to the pod is masqueraded, because the pod's answer would not come by here otherwise
    self4, self6        pod's address twice: the same for the pod itself, where a bridge with br_netfilter does not
                        say by which interface a packet came
    local4              pod's address: what the host sent from 127.0.0.0/8 is masqueraded
    masquerade4, ...6   pod's address -> a chain that masquerades what does not go to the pod's network

Every element carries its owner as a comment (`network/container/interface`). So whatever a crash has left is found and
removed by the owner's name alone, without a record and without a daemon; nobody else's elements are ever touched. ADD
never replaces another owner's mapping (NLM_F_EXCL): of two that want the same port, one is told the other's name.

Elements come by the thousand: they are packed and read field by field (`routes.wire`). The rest is pyroute2's.

Source: include/uapi/linux/netfilter/nf_tables.h; containernetworking/plugins `plugins/meta/portmap` for what a mapping
means. Limits: a connection to ::1 cannot be led to a pod (the kernel lets no packet with that source out); a mapping of
all addresses and one of a single address may both hold a port, the latter wins; programs that listen on a mapped port
of the host are not noticed, and get no connection from then on.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from fabric.model import Address
from fabric.traffic import nft
from routes.netlink import NLM_F_CREATE, NLM_F_EXCL, Request
from routes.wire import ATTRIBUTE, HEADER, attribute, attributes

FAMILY, TABLE = "inet", "podfabric_hostports"
VERSION_CHAIN = "version_1"
"""An empty chain that says by which version of this code the table was made."""
SETS = {
    "bound4": (12, 8), "any4": (8, 8), "hairpin4": (20, 0), "self4": (8, 0), "local4": (4, 0), "masquerade4": (4, -1),
    "bound6": (24, 20), "any6": (8, 20), "hairpin6": (32, 0), "self6": (32, 0), "masquerade6": (16, -1),
}  # fmt: skip
"""Bytes of a key and of what it leads to: 0 for a plain set, -1 for a verdict."""
PORTS = ("bound4", "any4", "bound6", "any6")
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
MAX_OWNER = 250
"""Bytes; user data of an element hold at most 256."""

NEWSETELEM, GETSETELEM, DELSETELEM = (nft.SUBSYSTEM << 8 | number for number in (12, 13, 14))
NFPROTO_INET = 1
NESTED = 0x8000
LIST_TABLE, LIST_SET, LIST_ELEMENTS, LIST_ELEM = 1, 2, 3, 1
ELEM_KEY, ELEM_DATA, ELEM_USERDATA = 1, 2, 6
DATA_VALUE, DATA_VERDICT, VERDICT_CODE, VERDICT_CHAIN = 1, 2, 1, 2
NFT_GOTO = -4
ATTEMPTS = 20
AT_ONCE = 256
"""Elements in one transaction: all of it has to fit into the socket's buffer."""


class Element(NamedTuple):
    """One element: its set, its key and what that leads to as the kernel has them. `chain` is that of a verdict."""

    set: str
    key: bytes
    data: bytes = b""
    chain: str = ""
    owner: str = ""


class TakenError(Exception):
    """A port is another owner's; `holder` is its name."""

    def __init__(self, element: Element, holder: str) -> None:
        super().__init__(holder)
        self.element = element
        self.holder = holder


def port_element(owner: str, protocol: str, host: Address | None, host_port: int, pod: Address, port: int) -> Element:
    """A mapping to `pod`; `host` None is any address of the host."""
    key = bytes([PROTOCOLS[protocol], 0, 0, 0]) + (host.packed if host else b"") + _port(host_port)
    kind = "bound" if host else "any"
    return Element(f"{kind}{pod.version}", key, pod.packed + _port(port), owner=owner)


def hairpin_element(owner: str, interface: str, pod: Address) -> Element:
    """Connections that come by the interface and go back by it."""
    return Element(f"hairpin{pod.version}", interface.encode().ljust(16, b"\0") + pod.packed, owner=owner)


def self_element(owner: str, pod: Address) -> Element:
    """Connections of the pod to itself."""
    return Element(f"self{pod.version}", pod.packed * 2, owner=owner)


def local_element(owner: str, pod: Address) -> Element:
    """Connections from the host's 127.0.0.0/8."""
    return Element("local4", pod.packed, owner=owner)


def masquerade_element(owner: str, pod: Address, chain: str) -> Element:
    """What the pod sends goes through the chain."""
    return Element(f"masquerade{pod.version}", pod.packed, chain=chain, owner=owner)


def add(kernel: nft.Nftables, elements: Collection[Element], missing: Callable[[], list[Request]]) -> None:
    """Add all elements. Raises TakenError, or OSError; some may be there then, under their owner's name.

    `missing` says what has to be made before them. An element that is ours already, or a stale one that nobody can hold
    beside us, is replaced; a port of somebody else is not.
    """
    for attempt in range(ATTEMPTS):
        stale = []
        for element, found in zip(elements, look_up(kernel, elements), strict=True):
            if found is None:
                continue
            if found.owner != element.owner and element.set in PORTS:
                raise TakenError(element, found.owner)
            stale.append(found)
        try:
            return _commit(kernel, [*missing(), *map(_deleting, stale), *map(_adding, elements)])
        except OSError as error:  # somebody added or removed meanwhile: look again
            if error.errno not in (errno.EEXIST, errno.ENOENT, errno.EBUSY) or attempt == ATTEMPTS - 1:
                raise


def look_up(kernel: nft.Nftables, elements: Iterable[Element]) -> list[Element | None]:
    """What the kernel has under each element's key. Raises OSError."""
    found: list[Element | None] = []
    wanted = list(elements)
    for element, answer in zip(wanted, kernel.ask_each(GETSETELEM, [_message(e) for e in wanted]), strict=True):
        if isinstance(answer, OSError):
            if answer.errno != errno.ENOENT:
                raise answer
            found.append(None)
        else:
            found.append(next(_elements(element.set, answer), None))
    return found


def owned(kernel: nft.Nftables, wanted: Callable[[str], bool]) -> list[Element]:
    """The elements of every owner that is `wanted`. Raises OSError."""
    found: list[Element] = []
    for name in SETS:
        try:
            for _, data in kernel.dump(GETSETELEM, _message(Element(name, b""))):
                found += [element for element in _elements(name, data) if wanted(element.owner)]
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    return found


def remove(kernel: nft.Nftables, wanted: Callable[[str], bool]) -> list[Element]:
    """Remove the elements of every owner that is `wanted`, and chains that nobody needs then; what went.

    A kernel without nf_tables, or without our table, has none. Raises OSError.
    """
    gone: list[Element] = []
    for attempt in range(ATTEMPTS):
        try:
            found = owned(kernel, wanted)
            if not found:
                break
            _commit(kernel, [_deleting(element) for element in found])
            gone += found
        except OSError as error:
            if error.errno in nft.UNSUPPORTED:
                return gone
            if error.errno != errno.ENOENT or attempt == ATTEMPTS - 1:
                raise
    for chain in {element.chain for element in gone if element.chain}:
        try:
            kernel.commit([(nft.DELCHAIN, 0, nft.chain_message(FAMILY, TABLE, chain))])
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT):
                raise
    return gone


def owner_name(network: str, container_id: str, interface: str) -> str:
    """The comment on an attachment's elements: `network/container/interface`; a hash for the last two of a long one."""
    name = f"{network}/{container_id}/{interface}"
    if len(name.encode()) <= MAX_OWNER:
        return name
    from hashlib import sha256

    return f"{network}/~{sha256(name.encode()).hexdigest()[:40]}"  # a network's name has at most 200 bytes


def _commit(kernel: nft.Nftables, requests: list[Request]) -> None:
    for start in range(0, len(requests), AT_ONCE):
        kernel.commit(requests[start : start + AT_ONCE])


def _port(number: int) -> bytes:
    return struct.pack(">HH", number, 0)


def _adding(element: Element) -> Request:
    return NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, _message(element, whole=True)


def _deleting(element: Element) -> Request:
    return DELSETELEM, 0, _message(element)


def _message(element: Element, whole: bool = False) -> bytes:
    """nfgenmsg and the names of table, set and element; with what it leads to and its owner when `whole`."""
    message = bytes([NFPROTO_INET, 0, 0, 0])
    message += attribute(LIST_TABLE, TABLE.encode() + b"\0") + attribute(LIST_SET, element.set.encode() + b"\0")
    if not element.key:
        return message
    inner = attribute(ELEM_KEY | NESTED, attribute(DATA_VALUE, element.key))
    if whole:
        comment = element.owner.encode() + b"\0"
        inner += attribute(ELEM_DATA | NESTED, _data(element)) if SETS[element.set][1] else b""
        inner += attribute(ELEM_USERDATA, bytes([nft.UDATA_COMMENT, len(comment)]) + comment)
    return message + attribute(LIST_ELEMENTS | NESTED, attribute(LIST_ELEM | NESTED, inner))


def _data(element: Element) -> bytes:
    if not element.chain:
        return attribute(DATA_VALUE, element.data)
    verdict = attribute(VERDICT_CODE, struct.pack(">i", NFT_GOTO))
    verdict += attribute(VERDICT_CHAIN, element.chain.encode() + b"\0")
    return attribute(DATA_VERDICT | NESTED, verdict)


def _elements(name: str, message: bytes) -> Iterator[Element]:
    """The elements of an answer."""
    listed = attributes(message, HEADER.size + 4).get(LIST_ELEMENTS, b"")
    offset = 0
    while offset + ATTRIBUTE.size <= len(listed):
        length, _ = ATTRIBUTE.unpack_from(listed, offset)
        if length < ATTRIBUTE.size:
            return
        fields = attributes(listed[: offset + length], offset + ATTRIBUTE.size)
        key = attributes(fields.get(ELEM_KEY, b""), 0).get(DATA_VALUE, b"")
        data = attributes(fields.get(ELEM_DATA, b""), 0)
        chain = attributes(data.get(DATA_VERDICT, b""), 0).get(VERDICT_CHAIN, b"")
        userdata = fields.get(ELEM_USERDATA, b"")
        owner = userdata[2 : 2 + userdata[1]].rstrip(b"\0") if len(userdata) > 2 else b""
        text = chain.rstrip(b"\0").decode(errors="replace")
        yield Element(name, key, data.get(DATA_VALUE, b""), text, owner.decode(errors="replace"))
        offset += (length + 3) & ~3
