"""A VXLAN device of our own: made as flannel makes it, adopted when it is compatible, made anew when it is not.

Compatible is what flannel compares: VNI, underlay device, local address, group, l2miss, port and GBP; here a device
that lacks an underlay, an address or a port of its own is not compatible either. What flannel leaves alone is set in
place: MAC, MTU, learning. A device of another kind under the name is never touched.
"""

from functools import partial
from typing import Any

from routes.codec import ifinfmsg
from routes.netlink import NLM_F_CREATE, NLM_F_EXCL, RTM_NEWLINK, Netlink, Request
from routes.state import DeviceState, InterfaceState, IPAddress, ObjectError, VxlanLink
from routes.vxlan import KIND, OtherDevice, VxlanDevice, delete_request, read_vxlan
from routes.work import Operation, Work

OVERHEAD = {4: 50, 6: 70}
"""Bytes of outer IP, UDP and VXLAN headers and the inner Ethernet header, by the tunnel's IP version."""


def ensure_vxlan(
    netlink: Netlink, work: Work, state: DeviceState, wanted: VxlanLink, underlay: InterfaceState
) -> VxlanDevice | None:
    """The compatible device of that name, made now if need be; None, with an error in `work`, when there is none."""
    found = read_vxlan(netlink, state.name)
    if isinstance(found, OtherDevice):
        reason = f"it is {found}, not a VXLAN device, and is left alone; remove it with `ip link del {state.name}`"
        work.errors.append(ObjectError(f"device {state.name}", reason))
        return None
    if found is not None:
        different = differences(wanted, underlay.index, found)
        if not different:
            return found
        if not remove_vxlan(netlink, work, found, f"removed, to be made anew: {', '.join(different)}"):
            return None
    request = partial(create_request, state.name, state.mtu, wanted, underlay.index)
    verb = f"made: VXLAN {wanted.vni} port {wanted.port} local {wanted.local} dev {wanted.underlay}"
    work.perform(netlink, [Operation(f"device {state.name}", verb, request, lambda: None)])
    made = read_vxlan(netlink, state.name)
    return made if isinstance(made, VxlanDevice) else None


def differences(wanted: VxlanLink, underlay: int, found: VxlanDevice) -> list[str]:
    """What keeps `found` from being the device that is wanted, in words."""
    compared = [
        ("VNI", found.vni, wanted.vni),
        ("underlay index", found.underlay, underlay),
        ("local address", found.local, wanted.local),
        ("group", found.group, None),
        ("l2miss", found.l2miss, False),
        ("port", found.port, wanted.port),
        ("GBP", found.gbp, wanted.gbp),
        ("external", found.external, False),
    ]
    return [f"{name} {is_now} is not {wanted}" for name, is_now, wanted in compared if is_now != wanted]


def remove_vxlan(netlink: Netlink, work: Work, found: VxlanDevice, verb: str = "removed") -> bool:
    errors = len(work.errors)
    request = partial(delete_request, found.link.index)
    work.perform(netlink, [Operation(f"device {found.link.name}", verb, request, lambda: None)])
    return len(work.errors) == errors


def fitting_mtu(work: Work, state: DeviceState, wanted: VxlanLink, underlay: InterfaceState) -> int | None:
    """The desired MTU, or what the underlay leaves of it: the kernel cuts it so at creation, and refuses more later."""
    limit = underlay.mtu - OVERHEAD[wanted.local.version]
    if state.mtu is None or state.mtu <= limit:
        return state.mtu
    reason = f"its MTU {state.mtu} does not fit: {underlay.name} has {underlay.mtu}, which leaves {limit}"
    work.errors.append(ObjectError(f"device {state.name}", reason))
    return limit


def reconcile_options(netlink: Netlink, work: Work, wanted: VxlanLink, found: VxlanDevice) -> None:
    """MAC and learning, which can be set on a device in use."""
    name = f"device {found.link.name}"
    if found.mac != wanted.mac:
        verb = f"MAC set to {wanted.mac.hex(':')} (was {found.mac.hex(':')})"
        request = partial(set_request, found.link.index, [("IFLA_ADDRESS", wanted.mac.hex(":"))])
        work.perform(netlink, [Operation(name, verb, request, lambda: None)])
    if found.learning != wanted.learning:
        verb = f"learning switched {'on' if wanted.learning else 'off'}"
        options = linkinfo([("IFLA_VXLAN_LEARNING", int(wanted.learning))])
        work.perform(netlink, [Operation(name, verb, partial(set_request, found.link.index, options), lambda: None)])


def create_request(name: str, mtu: int | None, wanted: VxlanLink, underlay: int) -> Request:
    """The attributes that flannel's netlink library sends, less those whose value is the kernel's default.

    The UDP checksum attributes are among the latter: checksums are computed over both families, and over IPv6 they are
    required of others.
    """
    options: list[tuple[str, Any]] = [
        ("IFLA_VXLAN_ID", wanted.vni),
        ("IFLA_VXLAN_LINK", underlay),
        local_option(wanted.local),
        ("IFLA_VXLAN_LEARNING", int(wanted.learning)),
        ("IFLA_VXLAN_PORT", wanted.port),
    ]
    if wanted.gbp:
        options.append(("IFLA_VXLAN_GBP", True))
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_ADDRESS", wanted.mac.hex(":")), *linkinfo(options)]
    if mtu is not None:
        message["attrs"].append(("IFLA_MTU", mtu))
    return RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message


def local_option(local: IPAddress) -> tuple[str, Any]:
    return "IFLA_VXLAN_LOCAL" if local.version == 4 else "IFLA_VXLAN_LOCAL6", str(local)


def set_request(index: int, attributes: list[tuple[str, Any]]) -> Request:
    message = ifinfmsg()
    message["index"] = index
    message["attrs"] = attributes
    return RTM_NEWLINK, 0, message


def linkinfo(options: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    kind = ("IFLA_INFO_KIND", KIND)
    return [("IFLA_LINKINFO", {"attrs": [kind, ("IFLA_INFO_DATA", {"attrs": options})]})]
