"""The calculation graph: from the leases that exist now to what the data path and the kernel must hold now.

    store snapshot -> LeaseTable -> calculate -> accepted leases -> ForwardingState, KernelState, extension peers
                      (last good)    (rules)     + a verdict on every lease: by which way it is reached, or why not
    addresses on link --------------^

Theory of operation. Everything here is a pure function of current inputs (no clock, no I/O, no memory of earlier
answers), so the order in which inputs came never matters. Three questions are asked about each lease, in this order:

    claims   Is it valid by itself, and who has what two leases claim? Answered from the leases alone, so that every
             node picks the same winner: the lease created first, then the smaller key. On its own node a lease wins
             whatever its age, since nobody else may draw our pods' traffic.
    reach    By which way do we send to it? Each peer is reached by the type that its own lease names, all types at
             once: VXLAN and flannel's udp format by our data path, VXLAN by a kernel device where our configuration
             says so, a plain route on the underlay for host-gw and for DirectRouting while the peer is on link, a
             command for extension. What we accept from it are its type's format and our own type's.
    graph    Everything put together: peers for the data path, and objects for the kernel, device by device.

`sequence` orders the way from one outcome to the next: a VTEP before the routes that lead to it, and gone after them.

Limits: IPv4 inside rides the IPv4 underlay (PublicIP, BackendData), IPv6 inside the IPv6 underlay (PublicIPv6,
BackendV6Data), as in flannel's dual stack. flannel's udp format carries IPv4 only. Leases of the types udp and alloc
look alike (neither has a BackendType), so an alloc node is sent to in the udp format, as flannel does.
"""

from fabric.calc.claims import MAX_PEERS
from fabric.calc.graph import Memo, beats_ours, calculate
from fabric.calc.sequence import SetForwarding, SetKernel, Step, sequence
from fabric.calc.words import Node, OnLink, Outcome, Verdict

__all__ = [
    "MAX_PEERS",
    "Memo",
    "Node",
    "OnLink",
    "Outcome",
    "SetForwarding",
    "SetKernel",
    "Step",
    "Verdict",
    "beats_ours",
    "calculate",
    "sequence",
]
