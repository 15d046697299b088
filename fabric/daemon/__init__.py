"""The node daemon `fabricd`: a flannel node in every respect, with the data path in user space.

    flags -> sources (which store, whose configuration) -> node: cluster + forwarding + firewall + uplink
                                                            |          |            |          |
                                            own lease, peers, disk     |            |          the interface's changes
                                                                data path, kernel   nftables

Theory of operation. `main` parses and refuses, `node` puts the parts together in the order that lets a refused start
leave no trace, and everything after that is level-triggered: each task (store watch, own lease, kernel, firewall,
uplink) only says that something may be different, and one synchronous `Forwarding.refresh` computes the desired state
from what is known now. `supervisor` starts a task again that died and ends the daemon when one cannot be kept alive.
Nothing that goes wrong after the start ends forwarding: stores go away, addresses change, devices are deleted, and the
last good state stays in use meanwhile. `flannel` takes the node over from a flanneld that was stopped.

Limits: one daemon per network namespace and run directory. The control plane is one event loop; what waits for the
kernel's locks runs in threads of its own (`routes`, `fabric.traffic`), the choice of the interface at the start does
not.
"""
