"""A cluster on one machine: nodes and pods in network namespaces, joined by an underlay bridge. Needs root.

    from fabric.lab import Lab, measure

    with Lab(nodes=2, pods=1, mode="wire") as lab:          # fields of Options; `up` is all or nothing
        a, b = lab.pods                                      # Pod(name, netns, node, port, ips)
        measure.ping_pairs(lab)                              # every pod pair, all addresses
        measure.tcp(lab, a, b, streams=4, seconds=2).gbps    # at the receiver; also .cpu_per_gb, .cpu.daemons
        measure.udp(lab, a, b, sizes=[64], flows=16).kpps    # datagrams that reached the socket layer
        measure.round_trips(lab, a, b, interval=0.001).p99   # microseconds
        with lab.kernel_overlay().active():                  # the same pods over kernel VXLAN: the baseline
            measure.tcp(lab, a, b)
        lab.set_mode("bare")                                 # what the underlay passes on: wire, veth, bare
        lab.exec("node1", ["ip", "route"])                   # a command in a node or pod; popen() for a running one
        lab.control("node1", "status")                       # the daemon's control socket
        lab.restart_daemon("node1", ["--offload", "udp-gso=off"])
        lab.unplug(a.name)                                   # the CNI plugin's DEL; `plug` is its ADD
        measure.resident(lab.daemon_pids()["node1"])         # bytes
    # everything is gone here, also after an exception

One lab per machine: a second one is refused with a LabError. All namespaces are called `fablab-*`, all files lie in
/run/fablab, the host's own namespace gets no device. `fabric.lab.lab.remove()` takes down what a crash left.
Modules: `plan` (names, options), `topology` (namespaces and modes), `kernel` (kernel VXLAN peer and baseline),
`registry` (leases the lab writes), `daemons`, `runtime` (pods through the CNI plugin), `measure`, `capture`,
`traffic` (the tools inside pods).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric.lab.lab import Lab
    from fabric.lab.plan import LabError, Node, Options, Pod

__all__ = ["Lab", "LabError", "Node", "Options", "Pod"]
_HOMES = {"Lab": "fabric.lab.lab"}


def __getattr__(name: str) -> Any:
    # Lazy: the traffic tools start in this package too, and must start fast.
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "fabric.lab.plan")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
