# What the egress and the ingress thread of a worker share with the control plane.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from encap.drops cimport DropReason
from encap.transmit cimport Transmitter
from fabric.forward.drop_ring cimport Ring
from fabric.forward.flow_track cimport Tracker
from fabric.forward.icmp cimport IcmpLimiter
from fabric.forward.snapshot cimport SLOTS, Generation, PortEntry
from tun.vnet cimport VnetHeader

cdef enum:
    SOCKETS = 4

# Written by the control plane, read by both threads.
cdef struct Shared:
    uint64_t current             # Generation*
    uint64_t stop
    uint64_t socket_count        # grows while the threads run: written last when a socket is added
    uint64_t joint               # 1: the egress thread serves both directions (see `joint`)
    uint64_t calm[2]             # light turns in a row, of the egress and of the ingress thread
    int wakes[2]                 # eventfds of both threads
    uint32_t worker              # index of this worker
    int sockets[SOCKETS]         # receive sockets
    uint8_t formats[SOCKETS]     # FORMAT_* they carry

# What one thread has counted for one port. Frames as they pass it: a superframe is one.
cdef struct PortCount:
    uint64_t frames_from
    uint64_t bytes_from          # of IP, as all bytes here
    uint64_t frames_to           # ingress: before they are joined
    uint64_t bytes_to
    uint64_t drops               # its frames, and datagrams for it, that were refused
    uint64_t spare[3]            # a cache line

# One thread's side. `seen` is the generation in use: 0 = about to load one, IDLE = none (asleep).
cdef struct Lane:
    Shared* shared
    uint64_t seen
    int wake                     # eventfd
    int epoll
    uint64_t drops[64]           # by DropReason
    Ring* ring                   # NULL: nobody asks what is refused
    int refused                  # reason of the last drop
    uint64_t packets             # inner packets forwarded (a superframe counts its segments)
    uint64_t bytes               # their inner IP bytes
    uint64_t superframes
    uint64_t wakeups
    uint64_t local               # frames handed from port to port on this node
    IcmpLimiter limiter
    Tracker tracker
    Transmitter transmitter      # of the egress thread; the ingress thread's sends only ICMP errors
    uint64_t dropped             # calls of `drop`
    PortCount ports[SLOTS]       # resident as they are used

cdef uint64_t monotonic() noexcept nogil
# Load the current generation for use until lane_idle; NULL before the first one.
cdef Generation* lane_enter(Lane* lane) noexcept nogil
cdef void lane_idle(Lane* lane) noexcept nogil
# One frame to a device: vnet header and two pieces. False: refused, errno says why.
cdef bint write_frame(int fd, const uint8_t* vnet, uint32_t vnet_length, const uint8_t* head, uint32_t head_length,
                      const uint8_t* body, uint32_t body_length) noexcept nogil
# The same to a port: an IP packet, whose offsets `vnet` counts from its start. A TAP gets its Ethernet header.
cdef bint write_packet(const PortEntry* port, uint32_t worker, const VnetHeader* vnet, const uint8_t* head,
                       uint32_t head_length, const uint8_t* body, uint32_t body_length) noexcept nogil
# The same; a refusal is counted.
cdef bint write_port(Lane* lane, const PortEntry* port, const VnetHeader* vnet, const uint8_t* head,
                     uint32_t head_length, const uint8_t* body, uint32_t body_length) noexcept nogil


cdef inline void drop(Lane* lane, int reason) noexcept nogil:
    lane.drops[reason] += 1
    lane.refused = reason
    lane.dropped += 1
