"""The addresses of the device: the desired ones there, others inside the overlay's networks away."""

import errno
import socket
from functools import partial

from routes.codec import ifaddrmsg
from routes.delta import DeltaTracker
from routes.netlink import NLM_F_CREATE, NLM_F_REPLACE, RTM_DELADDR, RTM_NEWADDR, Netlink, Request
from routes.observe import read_addresses
from routes.state import DeviceState, IPInterface
from routes.work import Operation, Work

IFA_F_NODAD = 0x02


class AddressTable:
    """Desired and observed addresses of one device; the value of the tracker says nothing, so it is always True."""

    def __init__(self) -> None:
        self._tracker: DeltaTracker[IPInterface, bool] = DeltaTracker()

    def desire(self, state: DeviceState) -> None:
        self._tracker.replace_desired(dict.fromkeys(state.addresses, True))

    def forget_all(self) -> None:
        self._tracker.replace_observed({})

    def observe(self, netlink: Netlink, index: int, state: DeviceState) -> None:
        """Read what is there. Addresses outside `state.networks` are somebody else's: they are not even looked at."""
        self._tracker.replace_observed(
            {
                address: True
                for address in read_addresses(netlink, index)
                if address in state.addresses or inside(address, state)
            }
        )

    @property
    def in_sync(self) -> bool:
        return self._tracker.in_sync

    def apply(self, netlink: Netlink, index: int, work: Work) -> None:
        if self._tracker.in_sync:
            return
        forget, observe = self._tracker.forget, self._tracker.observe
        operations = [
            Operation(
                f"address {address}",
                "removed",
                partial(delete_request, index, address),
                partial(forget, address),
                gone=(errno.EADDRNOTAVAIL,),
            )
            for address, _ in self._tracker.pending_deletions()
        ]
        operations += [
            Operation(
                f"address {address}", "added", partial(add_request, index, address), partial(observe, address, True)
            )
            for address, _, _ in self._tracker.pending_updates()
        ]
        work.perform(netlink, operations)


def inside(address: IPInterface, state: DeviceState) -> bool:
    return any(address.ip in network for network in state.networks if network.version == address.version)


def add_request(index: int, address: IPInterface) -> Request:
    """Without duplicate detection: no other node may hold an address of our lease, and nobody would answer."""
    message = address_message(index, address)
    if address.version == 6:
        message["flags"] = IFA_F_NODAD
        message["attrs"].append(("IFA_FLAGS", IFA_F_NODAD))
    return RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, message


def delete_request(index: int, address: IPInterface) -> Request:
    return RTM_DELADDR, 0, address_message(index, address)


def address_message(index: int, address: IPInterface) -> ifaddrmsg:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET if address.version == 4 else socket.AF_INET6
    message["prefixlen"] = address.network.prefixlen
    message["index"] = index
    message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    return message
