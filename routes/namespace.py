"""Brings this network namespace to a desired state: several devices, and the one routing table they share.

`reconcile` observes everything and repairs what differs; `flush` does only what a new desired state adds to or takes
from the last observation, so that one more peer costs its own requests and no dump. What it writes to tables only is
written from netlink port `port`, so that a listener can leave it out. Both take the same path to the
kernel, and neither depends on anything but the desired state and what the kernel says. Synchronous: run it in a thread.

Order. A peer on a VXLAN device is a neighbour, a forwarding entry and a route. They are added in this order, so that
the route, which attracts packets, comes last; and removed in the reverse. Removals of routes come first and those of
entries last, so that a peer whose MAC changes has its new entries before its old ones go. Objects do not wait for each
other's success: a peer whose neighbour is refused has a route, whose packets are dropped here instead of leaving by
the default route, and the neighbour is tried again as every failure is.
"""

from dataclasses import replace

from routes.device import DeviceReconciler
from routes.main_table import RouteTable
from routes.netlink import Netlink
from routes.state import DesiredState, DeviceState, ReconcileResult
from routes.work import Work


class NamespaceReconciler:
    """Keeps the last observation. Not for two threads at once."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._desired = DesiredState()
        self._observed = False
        self._devices: dict[str, DeviceReconciler] = {}
        self._routes = RouteTable()

    def reconcile(self, desired: DesiredState) -> ReconcileResult:
        """Observe all devices, their entries and the main table, and bring them to `desired`. Never raises OSError."""
        work = Work()
        self._desire(desired)
        with work.attempt("netlink"), Netlink() as netlink:
            for device in self._devices.values():
                device.look(netlink, work)
            with work.attempt("routes"):
                self._observe_routes(netlink)
                self._observed = True
                self._apply(netlink, work)
                work.errors += self._routes.problems()
                self._forget_released()
        return self._result(work)

    def flush(self, desired: DesiredState) -> ReconcileResult:
        """Do what `desired` asks beyond the last observation; a full reconcile when there is none to build on."""
        if not (self._observed and self._differs_in_tables_only(desired)):
            return self.reconcile(desired)
        work = Work()
        self._desire(desired)
        tables_only = not any(device.has_pending_addresses for device in self._devices.values())
        with work.attempt("netlink"), Netlink(port=self._port if tables_only else 0) as netlink:
            for device in self._devices.values():
                device.apply_addresses(netlink, work)
            self._apply(netlink, work)
        return replace(self._result(work), acknowledged=tables_only and not work.errors)

    def _apply(self, netlink: Netlink, work: Work) -> None:
        with work.attempt("routes"):
            self._routes.remove(netlink, work)
        for device in self._devices.values():
            device.add_entries(netlink, work)
        with work.attempt("routes"):
            self._routes.add(netlink, work)
        for device in self._devices.values():
            device.remove_entries(netlink, work)

    def _desire(self, desired: DesiredState) -> None:
        if desired is self._desired:
            return
        self._desired = desired
        states = {state.name: state for state in desired.devices}
        for name in [*states, *self._devices]:
            self._devices.setdefault(name, DeviceReconciler(name)).desire(states.get(name))
        self._routes.desire(desired)

    def _observe_routes(self, netlink: Netlink) -> None:
        devices = [device for device in self._devices.values() if device.index is not None]
        self._routes.observe(
            netlink,
            indexes={device.name: device.index for device in devices if device.index is not None},
            up=frozenset(device.name for device in devices if device.up),
            own=frozenset(device.name for device in devices if device.is_own),
        )

    def _forget_released(self) -> None:
        """A device that no state names is looked after until nothing of ours is left on it."""
        wanted = {state.name for state in self._desired.devices}
        for name in self._devices.keys() - wanted:
            if self._devices[name].is_empty and not self._routes.remembers(name):
                del self._devices[name]

    def _differs_in_tables_only(self, desired: DesiredState) -> bool:
        """Whether what is new in `desired` are addresses, entries and routes on devices that are known and there."""
        return [settings_of(state) for state in desired.devices] == [
            settings_of(state) for state in self._desired.devices
        ] and all(device.index is not None for device in self._devices.values())

    def _result(self, work: Work) -> ReconcileResult:
        wanted = (self._devices[state.name] for state in self._desired.devices)
        devices = {device.name: device.index for device in wanted if device.known}
        return ReconcileResult(tuple(work.changes), tuple(work.errors), devices)


def settings_of(state: DeviceState) -> tuple[object, ...]:
    """Everything in a state but what it keeps in tables."""
    return state.name, state.mtu, state.txqueuelen, state.up, state.sysctls, state.networks, state.vxlan
