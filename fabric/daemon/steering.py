"""Pods without a port of their own under policy: whether their traffic passes us, and what keeps it so."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from fabric.daemon.firewall import own_subnets

if TYPE_CHECKING:
    from fabric.config import Backend
    from fabric.daemon.parts import Steerer
    from fabric.flags import PolicyOptions
    from fabric.model import Lease

log = logging.getLogger("fabric")


class Steering:
    """`device` before there is a data path, `start` when it forwards, `lease_moved` when our subnets are others."""

    def __init__(self, make: Callable[[], Steerer] | None) -> None:
        self._make = make
        self._steerer: Steerer | None = None
        self._bridge_port = ""
        self._node_port = ""

    def device(self, options: PolicyOptions, sources: Sequence[str], backend: Backend) -> str:
        """Name of the bridge port's device; empty when pods' traffic is not led to it."""
        self._bridge_port = ""
        if sources and self._make is not None:
            if options.bridges and backend.encapsulation is not None:
                self._bridge_port = f"pods.{backend.vni}"
            else:
                why = "--policy-bridges=off" if not options.bridges else f"backend type {backend.type} has no node port"
                log.warning(
                    "policy is not enforced between pods that the host's kernel connects (bridge, veth): %s", why
                )
        return self._bridge_port

    async def start(self, lease: Lease, node_port: str) -> None:
        """Have the host lead them to us, or no longer. Raises StartError."""
        if self._make is not None:
            self._node_port = node_port
            self._steerer = self._make()
            self.lease_moved(lease)
            await self._steerer.first()

    def lease_moved(self, lease: Lease) -> None:
        """Follow our subnets."""
        if self._steerer is not None and self._bridge_port:
            from fabric.steering.rules import Steering as Wanted

            self._steerer.want(Wanted(own_subnets(lease), self._node_port, self._bridge_port))

    def tasks(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """What has to run meanwhile."""
        return [("steering", self._steerer.run)] if self._steerer is not None and self._bridge_port else []

    def problems(self) -> tuple[str, ...]:
        """What is not as it should be, one line each."""
        return self._steerer.problems() if self._steerer is not None else ()

    def close(self) -> None:
        """End its thread; what it made stays. Idempotent."""
        if self._steerer is not None:
            self._steerer.close()
