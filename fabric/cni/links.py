"""Links of the host and of the container: made, found, changed, deleted. Each function takes an open conversation.

The namespace is the conversation's: `Pod.run(Netlink)` opens one inside the container. Raises CniError (112) with the
kernel's words.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from fabric.cni.errors import KERNEL_REFUSED, CniError
from routes.codec import ifinfmsg
from routes.netlink import NLM_F_CREATE, NLM_F_EXCL, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK, Message, Netlink

RTM_DELLINK = 17
IFF_UP, IFF_PROMISC = 0x1, 0x100
RTEXT_FILTER_SKIP_STATS = 8
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

    def attributes(self) -> list[tuple[str, Any]]:
        """As netlink attributes, what was not given left to the kernel."""
        found: list[tuple[str, Any]] = [("IFLA_IFNAME", self.name)]
        found += [("IFLA_ADDRESS", self.mac)] if self.mac else []
        return found + ([("IFLA_MTU", self.mtu)] if self.mtu else [])


def find(netlink: Netlink, name: str = "", index: int = 0) -> Link | None:
    """The link of this name or number, None when there is none."""
    named = [("IFLA_IFNAME", name)] if name else []
    message = _message([*named, ("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)], index)
    try:
        data = netlink.ask(RTM_GETLINK, message)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise refused(f"look up interface {name or index}", error) from None
    answer = ifinfmsg(data)
    answer.decode()
    info = answer.get_attr("IFLA_LINKINFO")
    return Link(
        ifindex=answer["index"],
        name=answer.get_attr("IFLA_IFNAME"),
        kind=(info.get_attr("IFLA_INFO_KIND") if info else "") or "",
        mac=answer.get_attr("IFLA_ADDRESS") or "",
        mtu=answer.get_attr("IFLA_MTU") or 0,
        up=bool(answer["flags"] & IFF_UP),
        operational=answer.get_attr("IFLA_OPERSTATE") == "UP",
        promiscuous=bool(answer["flags"] & IFF_PROMISC) or bool(answer.get_attr("IFLA_PROMISCUITY")),
        master=answer.get_attr("IFLA_MASTER") or 0,
        peer=answer.get_attr("IFLA_LINK") or 0,
        alias=answer.get_attr("IFLA_IFALIAS") or "",
    )


def must_find(netlink: Netlink, name: str) -> Link:
    """The link of this name. Raises CniError (112) when there is none."""
    link = find(netlink, name)
    if link is None:
        raise CniError(KERNEL_REFUSED, f"interface {name} is gone: somebody deleted it meanwhile")
    return link


def create_veth(netlink: Netlink, host: VethEnd, pod: VethEnd, pod_fd: int, master: int = 0) -> None:
    """A pair with one end here and one in the namespace `pod_fd`, in one step; the host's end in bridge `master`."""
    peer = {"attrs": [*pod.attributes(), ("IFLA_NET_NS_FD", pod_fd)]}
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]}
    attributes = [*host.attributes(), ("IFLA_LINKINFO", info)]
    attributes += [("IFLA_MASTER", master)] if master else []
    what = f"make the veth pair {host.name} and {pod.name} (in the container)"
    perform(netlink, what, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _message(attributes))


def create_bridge(netlink: Netlink, name: str, mac: str, mtu: int) -> bool:
    """A bridge with a MAC of its own, which ports cannot change; False when there is something of this name already."""
    info = {"attrs": [("IFLA_INFO_KIND", "bridge")]}
    attributes = [*VethEnd(name, mac, mtu).attributes(), ("IFLA_LINKINFO", info)]
    error = netlink.perform([(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _message(attributes))])[0]
    if error is not None and error.errno != errno.EEXIST:
        raise refused(f"could not add {name!r}", error)
    return error is None


def set_hairpin(netlink: Netlink, link: Link) -> None:
    """Let the bridge send back by the port by which a frame came in."""
    data = {"attrs": [("IFLA_BRPORT_MODE", 1)]}
    info = {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", data)]}
    message = _message([("IFLA_LINKINFO", info)], link.ifindex)
    perform(netlink, f"set hairpin mode of {link.name}", RTM_NEWLINK, 0, message)


def set_up(netlink: Netlink, link: Link, alias: str = "", promiscuous: bool = False) -> None:
    """Bring the link up; `alias` is what `ip link` shows about it."""
    message = _message([("IFLA_IFALIAS", alias[:MAX_ALIAS])] if alias else [], link.ifindex)
    flags = IFF_UP | (IFF_PROMISC if promiscuous else 0)
    message["flags"] = message["change"] = flags
    perform(netlink, f"set {link.name} up", RTM_SETLINK, 0, message)


def name_it(netlink: Netlink, link: Link, alias: str, mac: str) -> None:
    """Give the link an alias, and a MAC if one is given."""
    attributes = [("IFLA_IFALIAS", alias[:MAX_ALIAS])] + ([("IFLA_ADDRESS", mac)] if mac else [])
    perform(netlink, f"set the alias of {link.name}", RTM_SETLINK, 0, _message(attributes, link.ifindex))


def set_mac(netlink: Netlink, link: Link, mac: str) -> None:
    """Give the link this MAC; a bridge then keeps it whatever its ports are."""
    perform(netlink, f"set the MAC of {link.name}", RTM_SETLINK, 0, _message([("IFLA_ADDRESS", mac)], link.ifindex))


def delete(netlink: Netlink, name: str, kinds: tuple[str, ...]) -> bool:
    """Delete the link of this name when it is of one of the `kinds`; whether it was there."""
    link = find(netlink, name)
    if link is None or link.kind not in kinds:
        return False
    error = netlink.perform([(RTM_DELLINK, 0, _message([], link.ifindex))])[0]
    if error is not None and error.errno != errno.ENODEV:
        raise refused(f"delete interface {name}", error)
    return True


def perform(netlink: Netlink, what: str, kind: int, flags: int, message: Message) -> None:
    """One request. Raises CniError (112)."""
    error = netlink.perform([(kind, flags, message)])[0]
    if error is not None:
        raise refused(what, error)


def refused(what: str, error: OSError) -> CniError:
    """The kernel's refusal as this plugin's error."""
    hint = "; the plugin needs CAP_NET_ADMIN" if error.errno == errno.EPERM else ""
    return CniError(KERNEL_REFUSED, f"{what}: {error.strerror or error}{hint}")


def _message(attributes: list[tuple[str, Any]], index: int = 0) -> Message:
    message = ifinfmsg()
    message["index"] = index
    message["attrs"] = attributes
    return message
