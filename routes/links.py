"""The device itself: MTU, queue length, up or down, and its sysctls."""

from functools import partial

from routes.codec import ifinfmsg
from routes.netlink import RTM_SETLINK, Netlink, Request
from routes.observe import IFF_UP
from routes.state import DeviceState, InterfaceState
from routes.sysctls import reconcile_sysctl
from routes.work import Operation, Work


def reconcile_link(netlink: Netlink, work: Work, state: DeviceState, link: InterfaceState) -> None:
    """MTU first (below 1280 bytes a device has no IPv6 and no IPv6 sysctls), up last (so that it comes up quiet)."""
    if state.mtu is not None and state.mtu != link.mtu:
        set_link(netlink, work, link, f"MTU set to {state.mtu} (was {link.mtu})", mtu=state.mtu)
    if state.txqueuelen is not None and state.txqueuelen != link.txqueuelen:
        verb = f"txqueuelen set to {state.txqueuelen} (was {link.txqueuelen})"
        set_link(netlink, work, link, verb, txqueuelen=state.txqueuelen)
    for sysctl in sorted(state.sysctls, key=lambda each: each.path):
        reconcile_sysctl(work, sysctl)
    if state.up is not None and state.up != link.up:
        set_link(netlink, work, link, "set up" if state.up else "set down", up=state.up)


def set_link(
    netlink: Netlink,
    work: Work,
    link: InterfaceState,
    verb: str,
    *,
    mtu: int | None = None,
    txqueuelen: int | None = None,
    up: bool | None = None,
) -> None:
    """One request per property, so that an error names the property that was refused."""
    request = partial(link_request, link.index, mtu, txqueuelen, up)
    work.perform(netlink, [Operation(f"device {link.name}", verb, request, lambda: None)])


def link_request(index: int, mtu: int | None, txqueuelen: int | None, up: bool | None) -> Request:
    message = ifinfmsg()
    message["index"] = index
    attributes = {"IFLA_MTU": mtu, "IFLA_TXQLEN": txqueuelen}
    message["attrs"] = [(name, value) for name, value in attributes.items() if value is not None]
    if up is not None:
        message["change"], message["flags"] = IFF_UP, IFF_UP if up else 0
    return RTM_SETLINK, 0, message
