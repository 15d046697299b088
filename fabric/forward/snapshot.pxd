from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from encap.vtep cimport VtepArray, VtepTable
from fabric.forward.enforcement cimport Enforcement, Rules
from fabric.forward.flow_table cimport Table
from fabric.forward.flows cimport FlowTable
from routes.fib cimport Fib, FibTable

cdef enum:
    MAX_WORKERS = 8
    # A route's value is a kind in the top byte and a position below.
    KIND_SHIFT = 24
    POSITION_MASK = 0xFFFFFF
    TO_VTEP = 1
    TO_PORT = 2
    TO_HOST = 3                  # a VTEP to which the host has a plain route; the position is the VTEP's
    LINK_HEADER = 14             # Ethernet
    SLOTS = 4096                 # ports that are counted one by one; slot 0 is the node port's
    NODE_PORT = 0
    POD_PORT = 1
    BRIDGE_PORT = 2              # the host's pods that have no port of their own: bridge, veth

# One port. Position 0 is the node port.
cdef struct PortEntry:
    int fds[MAX_WORKERS]         # queue of each worker; a single-queue port repeats its only fd
    uint32_t owner               # worker that reads a single-queue port; MAX_WORKERS: every worker reads its queue
    uint32_t features            # FEATURE_* of tun.vnet
    uint16_t mtu
    uint16_t account             # of its flows; 0 of the node port
    uint16_t slot                # where it is counted (lane.PortCount), the same for as long as it lives
    uint8_t kind
    uint8_t ethernet             # a TAP: frames carry an Ethernet header
    uint8_t link[12]             # the pod's MAC and the gateway's, as a frame to the pod begins
    uint8_t has4
    uint8_t has6
    uint32_t address4            # the pod's own addresses, host order
    uint64_t high6
    uint64_t low6

# One immutable generation of everything the worker threads read.
cdef struct Generation:
    uint64_t number
    uint64_t ports_version       # changes when the set of fds to read changed
    const FibTable* fib
    const VtepArray* vteps
    PortEntry* ports
    Table* flows                 # NULL: no flow is tracked
    const Rules* rules
    uint32_t port_count
    uint32_t rules_number        # of `rules`: what every packet's flow is compared with
    uint32_t vni
    uint16_t tunnel_ports[2]     # by FORMAT_*
    uint8_t strict
    uint32_t address4            # ours on the overlay: source of the ICMP errors we send
    uint64_t high6
    uint64_t low6
    uint32_t underlay4           # ours on the underlay (0: none)
    uint64_t underlay_high6
    uint64_t underlay_low6

cdef class Snapshot:
    cdef Generation generation
    cdef VtepTable vteps
    cdef Fib fib
    cdef FlowTable flows
    cdef Enforcement enforcement
    cdef object keep             # ports whose fds the generation names: alive as long as it is
    cdef object _track_flows(self, FlowTable flows)
    cdef object _place_port(self, uint32_t position, object port)
