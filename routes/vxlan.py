"""The kernel's VXLAN devices: which are there, what they hold, and the removal of one. Read by dump, without memory.

A device that is up holds its UDP port on the wildcard address of its family (drivers/net/vxlan/vxlan_core.c), which no
other socket can have meanwhile: flannel's `flannel.1` has to be gone, or down, before a daemon can receive on 8472.
"""

import errno
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from routes.codec import ifinfmsg
from routes.netlink import RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, Netlink
from routes.observe import decoded, parse_link, read_addresses
from routes.state import InterfaceState, IPAddress

KIND = "vxlan"


@dataclass(frozen=True, slots=True)
class VxlanDevice:
    """A VXLAN device as observed. `port` in host order, `mac` 6 bytes; `underlay` is an interface index, 0 for none.

    `local` and `group` are None when the device has none; a unicast default destination counts as group, as it does in
    the kernel's attributes.
    """

    link: InterfaceState
    mac: bytes
    vni: int
    port: int
    underlay: int
    local: IPAddress | None
    group: IPAddress | None
    learning: bool
    l2miss: bool
    gbp: bool
    external: bool

    @property
    def sockets(self) -> tuple[tuple[int, int], ...]:
        """(IP version, UDP port) of the wildcard sockets that the kernel holds for it: none while it is down."""
        if not self.link.up:
            return ()
        outer = self.local or self.group
        versions = (4, 6) if self.external else (outer.version if outer else 4,)
        return tuple((version, self.port) for version in versions)


def vxlan_devices() -> list[VxlanDevice]:
    """All VXLAN devices of this network namespace with their addresses, by name. Raises OSError."""
    with Netlink() as netlink:
        found = [parse_vxlan(data) for kind, data in netlink.dump(RTM_GETLINK, ifinfmsg()) if kind == RTM_NEWLINK]
        devices = [with_addresses(netlink, each) for each in found if isinstance(each, VxlanDevice)]
    return sorted(devices, key=lambda device: device.link.name)


def with_addresses(netlink: Netlink, device: VxlanDevice) -> VxlanDevice:
    addresses = frozenset(read_addresses(netlink, device.link.index))
    return replace(device, link=replace(device.link, addresses=addresses))


def delete_vxlan(name: str) -> None:
    """Delete the VXLAN device `name`. Raises OSError when there is none or when it is of another kind."""
    with Netlink() as netlink:
        found = read_vxlan(netlink, name)
        if found is None:
            raise OSError(errno.ENODEV, f"there is no device {name} in this network namespace; `ip link` lists them")
        if isinstance(found, OtherDevice):
            raise OSError(errno.EINVAL, f"{name} is {found}, not a VXLAN device; it is left alone")
        (error,) = netlink.perform([delete_request(found.link.index)])
        if error is not None:
            raise error


@dataclass(frozen=True, slots=True)
class OtherDevice:
    """A device that is no VXLAN device; `kind` as `ip -d link` names it, empty for hardware."""

    kind: str

    def __str__(self) -> str:
        return f"a {self.kind} device" if self.kind else "a hardware device"


def read_vxlan(netlink: Netlink, name: str) -> VxlanDevice | OtherDevice | None:
    """The device called `name`; None when there is none."""
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name)]
    try:
        return parse_vxlan(netlink.ask(RTM_GETLINK, message))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def parse_vxlan(data: bytes) -> VxlanDevice | OtherDevice:
    message = decoded(ifinfmsg, data)
    information = message.get_attr("IFLA_LINKINFO")
    kind = information.get_attr("IFLA_INFO_KIND") if information else None
    if kind != KIND:
        return OtherDevice(kind or "")
    options = information.get_attr("IFLA_INFO_DATA")

    def option(name: str) -> Any:
        return options.get_attr(f"IFLA_VXLAN_{name}")

    local, group = (option(name) or option(f"{name}6") for name in ("LOCAL", "GROUP"))
    return VxlanDevice(
        link=parse_link(data),
        mac=bytes.fromhex(message.get_attr("IFLA_ADDRESS").replace(":", "")),
        vni=option("ID") or 0,
        port=option("PORT") or 0,
        underlay=option("LINK") or 0,
        local=ip_address(local) if local else None,
        group=ip_address(group) if group else None,
        learning=bool(option("LEARNING")),
        l2miss=bool(option("L2MISS")),
        gbp=option("GBP") is not None,
        external=bool(option("COLLECT_METADATA")),
    )


def delete_request(index: int) -> tuple[int, int, Any]:
    message = ifinfmsg()
    message["index"] = index
    return RTM_DELLINK, 0, message
