"""Links of the host and of the container: made, found, changed, deleted. Each function takes an open conversation.

The namespace is the conversation's: `Pod.run(Netlink)` opens one inside the container. Raises CniError (112) with the
kernel's words.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from fabric.cni.errors import INVALID_CONFIG, KERNEL_REFUSED, CniError
from routes.netlink import NLM_F_CREATE, NLM_F_EXCL, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK, Netlink
from routes.wire import HEADER, LINK, NUMBER, attribute, attributes, number, read_text, text

IFF_UP, IFF_PROMISC = 0x1, 0x100
RTEXT_FILTER_SKIP_STATS = 8
IF_OPER_UP = 6
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_OPERSTATE = 1, 3, 4, 5, 10, 16
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_PROMISCUITY = 18, 20, 28, 29, 30
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_INFO_PEER, IFLA_BRPORT_MODE = 1, 4
"""Attributes: linux/if_link.h, linux/veth.h."""
MAX_ALIAS = 255  # IFALIASZ without its NUL


class Link(NamedTuple):
    """A link as the kernel shows it. `kind` is its driver ("veth", "tun", "bridge"); `peer` the index of a veth's other
    end, in that one's namespace; `master` the bridge's index; `operational` is IFLA_OPERSTATE "UP"."""

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    operational: bool
    promiscuous: bool
    master: int
    peer: int
    alias: str


class VethEnd(NamedTuple):
    """One end of a veth pair that is to be made."""

    name: str
    mac: str = ""
    mtu: int = 0

    def attributes(self) -> bytes:
        """As netlink attributes, what was not given left to the kernel."""
        found = text(IFLA_IFNAME, self.name)
        found += attribute(IFLA_ADDRESS, hardware(self.mac)) if self.mac else b""
        return found + (attribute(IFLA_MTU, NUMBER.pack(self.mtu)) if self.mtu else b"")


def find(netlink: Netlink, name: str = "", index: int = 0) -> Link | None:
    """The link of this name or number, None when there is none."""
    named = text(IFLA_IFNAME, name) if name else b""
    mask = attribute(IFLA_EXT_MASK, NUMBER.pack(RTEXT_FILTER_SKIP_STATS))
    try:
        data = netlink.ask(RTM_GETLINK, _message(named + mask, index))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise refused(f"look up interface {name or index}", error) from None
    return parse(data)


def parse(data: bytes) -> Link:
    """A whole RTM_NEWLINK message."""
    _, _, ifindex, flags, _ = LINK.unpack_from(data, HEADER.size)
    found = attributes(data, HEADER.size + LINK.size)
    info = attributes(found.get(IFLA_LINKINFO, b""), 0)
    return Link(
        ifindex=ifindex,
        name=read_text(found.get(IFLA_IFNAME)),
        kind=read_text(info.get(IFLA_INFO_KIND)),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=number(found.get(IFLA_MTU)),
        up=bool(flags & IFF_UP),
        operational=found.get(IFLA_OPERSTATE) == bytes([IF_OPER_UP]),
        promiscuous=bool(flags & IFF_PROMISC) or bool(number(found.get(IFLA_PROMISCUITY))),
        master=number(found.get(IFLA_MASTER)),
        peer=number(found.get(IFLA_LINK)),
        alias=read_text(found.get(IFLA_IFALIAS)),
    )


def must_find(netlink: Netlink, name: str) -> Link:
    """The link of this name. Raises CniError (112) when there is none."""
    link = find(netlink, name)
    if link is None:
        raise CniError(KERNEL_REFUSED, f"interface {name} is gone: somebody deleted it meanwhile")
    return link


def create_veth(netlink: Netlink, host: VethEnd, pod: VethEnd, pod_fd: int, master: int = 0) -> None:
    """A pair with one end here and one in the namespace `pod_fd`, in one step; the host's end in bridge `master`."""
    peer = LINK.pack(0, 0, 0, 0, 0) + pod.attributes() + attribute(IFLA_NET_NS_FD, NUMBER.pack(pod_fd))
    attributes = host.attributes() + _kind("veth", attribute(VETH_INFO_PEER, peer))
    attributes += attribute(IFLA_MASTER, NUMBER.pack(master)) if master else b""
    what = f"make the veth pair {host.name} and {pod.name} (in the container)"
    perform(netlink, what, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _message(attributes))


def create_bridge(netlink: Netlink, name: str, mac: str, mtu: int) -> bool:
    """A bridge with a MAC of its own, which ports cannot change; False when there is something of this name already."""
    attributes = VethEnd(name, mac, mtu).attributes() + _kind("bridge")
    error = netlink.perform([(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _message(attributes))])[0]
    if error is not None and error.errno != errno.EEXIST:
        raise refused(f"could not add {name!r}", error)
    return error is None


def set_hairpin(netlink: Netlink, link: Link) -> None:
    """Let the bridge send back by the port by which a frame came in."""
    data = attribute(IFLA_INFO_SLAVE_DATA, attribute(IFLA_BRPORT_MODE, b"\1"))
    info = attribute(IFLA_LINKINFO, text(IFLA_INFO_SLAVE_KIND, "bridge") + data)
    message = _message(info, link.ifindex)
    perform(netlink, f"set hairpin mode of {link.name}", RTM_NEWLINK, 0, message)


def set_up(netlink: Netlink, link: Link, alias: str = "", promiscuous: bool = False) -> None:
    """Bring the link up; `alias` is what `ip link` shows about it."""
    flags = IFF_UP | (IFF_PROMISC if promiscuous else 0)
    message = _message(text(IFLA_IFALIAS, alias[:MAX_ALIAS]) if alias else b"", link.ifindex, flags)
    perform(netlink, f"set {link.name} up", RTM_SETLINK, 0, message)


def name_it(netlink: Netlink, link: Link, alias: str, mac: str) -> None:
    """Give the link an alias, and a MAC if one is given."""
    attributes = text(IFLA_IFALIAS, alias[:MAX_ALIAS]) + (attribute(IFLA_ADDRESS, hardware(mac)) if mac else b"")
    perform(netlink, f"set the alias of {link.name}", RTM_SETLINK, 0, _message(attributes, link.ifindex))


def set_mac(netlink: Netlink, link: Link, mac: str) -> None:
    """Give the link this MAC; a bridge then keeps it whatever its ports are."""
    message = _message(attribute(IFLA_ADDRESS, hardware(mac)), link.ifindex)
    perform(netlink, f"set the MAC of {link.name}", RTM_SETLINK, 0, message)


def delete(netlink: Netlink, name: str, kinds: tuple[str, ...]) -> bool:
    """Delete the link of this name when it is of one of the `kinds`; whether it was there."""
    link = find(netlink, name)
    if link is None or link.kind not in kinds:
        return False
    error = netlink.perform([(RTM_DELLINK, 0, _message(b"", link.ifindex))])[0]
    if error is not None and error.errno != errno.ENODEV:
        raise refused(f"delete interface {name}", error)
    return True


def perform(netlink: Netlink, what: str, kind: int, flags: int, message: bytes) -> None:
    """One request. Raises CniError (112)."""
    error = netlink.perform([(kind, flags, message)])[0]
    if error is not None:
        raise refused(what, error)


def refused(what: str, error: OSError) -> CniError:
    """The kernel's refusal as this plugin's error."""
    hint = "; the plugin needs CAP_NET_ADMIN" if error.errno == errno.EPERM else ""
    return CniError(KERNEL_REFUSED, f"{what}: {error.strerror or error}{hint}")


def hardware(mac: str) -> bytes:
    """The bytes of a MAC. Raises CniError (7)."""
    try:
        return bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        raise CniError(INVALID_CONFIG, f"{ascii(mac)[:40]} is no MAC") from None


def _message(attributes: bytes, index: int = 0, flags: int = 0) -> bytes:
    """`flags` are the ones to set; others stay as they are."""
    return LINK.pack(0, 0, index, flags, flags) + attributes


def _kind(name: str, data: bytes = b"") -> bytes:
    return attribute(IFLA_LINKINFO, text(IFLA_INFO_KIND, name) + (attribute(IFLA_INFO_DATA, data) if data else b""))
