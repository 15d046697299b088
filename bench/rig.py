"""The lab of a comparison: one set of pods, and whatever variant has to carry their traffic now.

Every node has two bridge pods and two TUN pods. Kernel VXLAN and other tunnels are prepared once and only routed to;
the fabric's daemons are started anew when a variant needs other switches or another encapsulation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from bench.peers import TUNNELS, Tunnel
from bench.variants import Variant
from fabric.lab import Lab, LabError, Pod, measure, plan, topology

REACH_SECONDS = 15.0


class Unavailable(LabError):
    """A variant that cannot run here; the text says what to install."""


class Rig:
    """Context manager: the lab is up inside."""

    def __init__(self, mode: plan.Mode = "wire") -> None:
        self.lab = Lab(nodes=2, pods=4, pod_kind="mixed", mode=mode)
        self._setup: tuple[str, tuple[str, ...]] = ("vxlan", ())
        self._tunnels: dict[str, Tunnel] = {}

    def __enter__(self) -> Self:
        self.lab.up()
        try:
            self.lab.kernel_overlay()
            for pod in self.lab.pods:
                # What one variant's connections learned must not be the start of the next one's.
                self.lab.exec(pod.name, ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save"])
        except BaseException:
            self.lab.down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for tunnel in self._tunnels.values():
                tunnel.stop()
        finally:
            self.lab.down()

    def pods(self, variant: Variant) -> tuple[Pod, Pod]:
        """Source and target for a variant."""
        here, there = ([pod for pod in node.pods if pod.kind == variant.pods] for node in self.lab.nodes[:2])
        return here[0], here[1] if variant.same_node else there[0]

    def pids(self, variant: Variant) -> list[int]:
        """The processes that carry the traffic; none for kernel VXLAN."""
        if variant.kind == "tunnel":
            return self._tunnel(variant.name).pids()
        return list(self.lab.daemon_pids().values()) if variant.kind == "fabric" else []

    def start(self, variant: Variant) -> None:
        """Make a variant possible; raises Unavailable when a package is missing or it does not carry traffic."""
        try:
            with self.carrying(variant):
                pass
        except Unavailable:
            raise
        except LabError as error:
            raise Unavailable(f"{variant.name}: {error}") from None

    @contextmanager
    def carrying(self, variant: Variant) -> Iterator[tuple[Pod, Pod]]:
        """Let the variant carry the traffic of the pods it yields, proven by an answered ping."""
        with self._route(variant):
            pods = self.pods(variant)
            try:
                self._wait_reachable(*pods)
                yield pods
            finally:
                if variant.kind == "tunnel":
                    # A smaller MTU that was discovered on the way is this tunnel's only.
                    for pod in pods:
                        self.lab.exec(pod.name, ["ip", "route", "flush", "cache"])

    def _route(self, variant: Variant) -> AbstractContextManager[None]:
        if variant.kind == "kernel":
            return nullcontext() if variant.same_node else self.lab.kernel_overlay().active()
        if variant.kind == "tunnel":
            return self._tunnel(variant.name).active()
        self._configure(variant)
        return nullcontext()

    def _tunnel(self, name: str) -> Tunnel:
        if name not in self._tunnels:
            kind = TUNNELS[name]
            if packages := kind.missing():
                raise Unavailable(f"{name} is not installed; apt-get install {packages}")
            made = kind(self.lab.nodes, self.lab.run_dir)
            made.start()
            self._tunnels[name] = made
        return self._tunnels[name]

    def _configure(self, variant: Variant) -> None:
        """Daemons with the variant's encapsulation and offloads."""
        if variant.setup() == self._setup:
            return
        backend = {"Backend": {"Type": variant.encapsulation}}
        conf = plan.net_conf(replace(self.lab.options, net_conf=backend))
        (self.lab.run_dir / "net-conf.json").write_text(json.dumps(conf))
        self._setup = ("", ())
        for node in self.lab.fabric_nodes:
            with suppress(LabError):  # it may not be running after a start that failed
                self.lab.stop_daemon(node.name)
        for node in self.lab.fabric_nodes:
            self.lab.start_daemon(node.name, variant.arguments())
        topology.wait_routes(self.lab.nodes)
        self._setup = variant.setup()

    def _wait_reachable(self, source: Pod, target: Pod) -> None:
        deadline = time.monotonic() + REACH_SECONDS
        probe = measure.tool("ping", target.ip, "--timeout", "0.2")
        while not json.loads(self.lab.exec(source.name, probe))["answers"][0]["times"]:
            if time.monotonic() > deadline:
                raise LabError(f"{source.name} does not reach {target.name} within {REACH_SECONDS:g} s")

    def set_mode(self, mode: plan.Mode) -> None:
        """What the underlay passes on; daemons are started anew, as they look at that when they start."""
        self.lab.set_mode(mode)
        self._setup = ("", ())
