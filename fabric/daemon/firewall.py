"""The host's firewall for pods: our own rules by `fabric.traffic`, and flannel's taken away once ours are in place."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from fabric.config import NetConf
from fabric.daemon.flannel import Flannel
from fabric.daemon.parts import Traffic
from fabric.errors import TrafficError
from fabric.flags import TrafficOptions
from fabric.model import Lease, Network
from fabric.traffic import checks
from fabric.traffic.rules import TrafficState

log = logging.getLogger("fabric")


class Firewall:
    """`start` once the lease is there, `sweep` when the node forwards, `lease_moved` when our subnets are others.

    Keep `traffic.run` running meanwhile. The rules stay at the end, as flannel's do: what is translated stays so.
    """

    def __init__(self, traffic: Traffic, options: TrafficOptions, conf: NetConf) -> None:
        self.traffic = traffic
        self._options = options
        self._conf = conf

    async def start(self, lease: Lease) -> None:
        """Put our rules in place. Raises StartError."""
        self.lease_moved(lease)
        await self.traffic.first()

    def warnings(self) -> list[str]:
        """What of the host is not as pods need it, besides what `traffic` looks after; flannel refuses to start."""
        return [line for line in (checks.bridge_netfilter(self._conf.networks),) if line]

    async def sweep(self, host: Flannel) -> None:
        """Remove what flannel left in the firewall of `host`. Never raises: double rules do no harm."""
        try:
            lines = await asyncio.get_running_loop().run_in_executor(None, host.sweep_firewall)
        except TrafficError as error:
            lines = [str(error)]
        for line in lines:
            log.info("taking over from flannel: %s", line)

    async def undo(self) -> None:
        """The start failed: rules that it made are taken away; those of an earlier run stay. Never raises."""
        if self.traffic.counters()["changes"]:
            with contextlib.suppress(TrafficError):
                await self.traffic.remove()

    def close(self) -> None:
        """End its thread. Idempotent."""
        self.traffic.close()

    def lease_moved(self, lease: Lease) -> None:
        """Have the rules follow our subnets."""
        options = self._options
        self.traffic.want(
            TrafficState(
                networks=self._conf.networks,
                subnets=own_subnets(lease),
                ip_masq=options.masquerade,
                random_fully=options.random_fully,
                forward=options.forward_rules,
            )
        )


def own_subnets(lease: Lease) -> tuple[Network, ...]:
    """The lease's subnets, IPv4 first."""
    return tuple(subnet for subnet in (lease.subnet, lease.ipv6_subnet) if subnet is not None)
