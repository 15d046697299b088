"""Brings one device of this network namespace to its desired state, except for its routes, which all devices share.

A look observes and repairs the device itself and its addresses, and observes its neighbours and forwarding entries;
those are written in the order that the whole asks for (namespace.py).
"""

from dataclasses import replace
from ipaddress import ip_network

from routes.addresses import AddressTable
from routes.links import reconcile_link
from routes.neighbours import FdbTable, NeighbourTable
from routes.netlink import Netlink
from routes.observe import read_link
from routes.state import DeviceState, InterfaceState, ObjectError, VxlanLink
from routes.vxlan import VxlanDevice, read_vxlan
from routes.vxlan_link import ensure_vxlan, fitting_mtu, reconcile_options, remove_vxlan
from routes.work import Work


class DeviceReconciler:
    """Keeps the last observation of one device. Not for two threads at once.

    `index` is its interface index, None when there is no such device; `known` says whether the kernel has told, `up`
    whether the last look found the device ready to carry entries and routes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.index: int | None = None
        self.known = self.up = False
        self._state: DeviceState | None = None
        self._released = False
        self._own: int | None = None
        self._mac: bytes | None = None
        self._addresses = AddressTable()
        self._neighbours = NeighbourTable()
        self._fdb = FdbTable()

    def desire(self, state: DeviceState | None) -> None:
        """From now on the device should be like `state`; None: nothing of ours should be there."""
        self._released = state is None
        if state is None and self._state is not None:
            state = released(self._state)
        if state is not self._state:
            self._state = state
            for table in (self._addresses, self._neighbours, self._fdb):
                table.desire(state or DeviceState(self.name))

    @property
    def is_empty(self) -> bool:
        """Whether a device that nobody names any more has nothing of ours left, its routes not counted."""
        return self._own is None and self._addresses.in_sync

    @property
    def has_pending_addresses(self) -> bool:
        """Whether addresses that were last observed differ from those that are desired."""
        return not self._addresses.in_sync

    @property
    def is_own(self) -> bool:
        """Whether a VXLAN device that we made or adopted is there, as far as we know."""
        return self._own is not None

    def look(self, netlink: Netlink, work: Work) -> None:
        """Observe and repair; what the kernel refuses to say is an error and no news about the device."""
        self.up = False
        with work.attempt(f"device {self.name}"):
            if self._state is None or self._state.vxlan is None:
                self._give_up(netlink, work)
            if self._state is not None and (self._state.vxlan or not self.is_own):
                self._look(netlink, work, self._state)

    def add_entries(self, netlink: Netlink, work: Work) -> None:
        """A neighbour before the forwarding entry of its MAC."""
        if self.index is not None and self.up and self.is_own:
            with work.attempt(f"neighbours of {self.name}"):
                self._neighbours.add(netlink, work, self.name, self.index)
                self._fdb.add(netlink, work, self.name, self.index)

    def remove_entries(self, netlink: Netlink, work: Work) -> None:
        """The reverse order."""
        if self.index is not None and self.up and self.is_own:
            with work.attempt(f"neighbours of {self.name}"):
                self._fdb.remove(netlink, work, self.name, self.index)
                self._neighbours.remove(netlink, work, self.name, self.index)

    def apply_addresses(self, netlink: Netlink, work: Work) -> None:
        """Write what a new desired state adds to or takes from the addresses last observed."""
        if self.index is not None:
            with work.attempt(f"addresses of {self.name}"):
                self._addresses.apply(netlink, self.index, work)

    def _look(self, netlink: Netlink, work: Work, state: DeviceState) -> None:
        """Link before addresses before entries; each is observed after the step before, which may have changed it."""
        if state.vxlan is None:
            link = self._reconcile_given(netlink, work, state)
        else:
            link = self._reconcile_own(netlink, work, state, state.vxlan)
        if link is None:
            return
        self.up = link.up
        with work.attempt(f"addresses of {self.name}"):
            self._addresses.observe(netlink, link.index, state)
            self._addresses.apply(netlink, link.index, work)
        if state.vxlan is not None:
            with work.attempt(f"neighbours of {self.name}"):
                self._neighbours.observe(netlink, link.index)
                self._fdb.observe(netlink, link.index)

    def _reconcile_given(self, netlink: Netlink, work: Work, state: DeviceState) -> InterfaceState | None:
        """A device that somebody else makes, as it is after its repair; None when it is not there."""
        link = read_link(netlink, name=self.name)
        self._found(link)
        if link is None:
            if not self._released:
                work.errors.append(ObjectError(f"device {self.name}", "it is gone; its owner has to make it again"))
            return None
        reconcile_link(netlink, work, state, link)
        return read_link(netlink, index=link.index)

    def _reconcile_own(
        self, netlink: Netlink, work: Work, state: DeviceState, wanted: VxlanLink
    ) -> InterfaceState | None:
        """Our VXLAN device, as it is after its repair; None when there is none and none could be made."""
        underlay = read_link(netlink, name=wanted.underlay)
        if underlay is None:
            reason = f"its underlay interface {wanted.underlay} is missing"
            work.errors.append(ObjectError(f"device {self.name}", reason))
            if self._find_own(netlink) is None:  # the kernel removes it together with its underlay
                self._lost()
            return None
        found = ensure_vxlan(netlink, work, state, wanted, underlay)
        self._found(found.link if found else None)
        self._own = self.index
        if found is None:
            return None
        if self._mac is not None:
            self._check_mac(work, self._mac, found.mac)
        reconcile_options(netlink, work, wanted, found)
        mtu = fitting_mtu(work, state, wanted, underlay)
        reconcile_link(netlink, work, replace(state, mtu=mtu), found.link)
        after = read_vxlan(netlink, self.name)
        if not isinstance(after, VxlanDevice):
            return None
        self._mac = wanted.mac if self._check_mac(work, wanted.mac, after.mac) else None
        return after.link

    def _check_mac(self, work: Work, set_before: bytes, found: bytes) -> bool:
        """Whether the MAC that was set has stayed: peers send to it, and it is published."""
        if found == set_before:
            return True
        reason = (
            f"its MAC {set_before.hex(':')} was changed to {found.hex(':')} by another program and is set back; "
            "if systemd does it, set MACAddressPolicy=none for the device in a .link file"
        )
        work.errors.append(ObjectError(f"device {self.name}", reason))
        return False

    def _give_up(self, netlink: Netlink, work: Work) -> None:
        """Remove the VXLAN device that is no longer wanted; the same name may be somebody else's device by now."""
        if self._own is None:
            return
        found = self._find_own(netlink)
        if found is None or remove_vxlan(netlink, work, found):
            self._lost()

    def _find_own(self, netlink: Netlink) -> VxlanDevice | None:
        """The VXLAN device that we made or adopted, if it is still there."""
        found = read_vxlan(netlink, self.name)
        return found if isinstance(found, VxlanDevice) and found.link.index == self._own else None

    def _lost(self) -> None:
        self._own = None
        self._found(None)

    def _found(self, link: InterfaceState | None) -> None:
        """Another index under the same name is another device: nothing observed on the old one holds."""
        self.known = True
        index = link.index if link else None
        if index != self.index:
            self.index = index
            self._mac = None
            for table in (self._addresses, self._neighbours, self._fdb):
                table.forget_all()


def released(state: DeviceState) -> DeviceState | None:
    """What becomes of `state` when nobody names the device any more: empty, and otherwise as it is.

    Nothing becomes of a VXLAN device of our own: it goes, and what else may have its name is not ours to look at.
    """
    if state.vxlan is not None:
        return None
    ours = frozenset(ip_network(address.ip) for address in state.addresses)
    return DeviceState(state.name, up=None, networks=state.networks | ours)
