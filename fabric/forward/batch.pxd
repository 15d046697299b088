from libc.stdint cimport uint8_t, uint32_t, uint64_t
from encap.inner cimport Inner
from fabric.forward.ingress cimport Ingress
from fabric.forward.lane cimport Lane
from tun.vnet cimport VnetHeader

cdef enum:
    HEADROOM = 22                # VXLAN and inner Ethernet header in front of a frame
    ARENA_SIZE = 262144
    FRAME_ROOM = 65600           # vnet header and the longest frame
    SIDE_SIZE = 49152
    TAP_LINKS = 8
    WINDOW = 8                   # frames read before the first of them is forwarded

# A prefix whose addresses are neighbours on the underlay; host order as in Inner.
cdef struct Link:
    uint64_t mask_high
    uint64_t mask_low
    uint64_t high
    uint64_t low
    uint8_t family

# A frame of a port between its checks and its way: its flow's record is loaded meanwhile.
cdef struct Frame:
    Inner inner
    VnetHeader vnet
    uint8_t* data                # IP header
    uint32_t length
    uint32_t end                 # of its room in the arena
    uint64_t hash                # of its flow, or 0

# The egress thread's side of the data path: its lane and the memory of one drain.
cdef struct Egress:
    Lane lane
    uint8_t* arena               # frames of one drain, adjacent where they form a train
    uint32_t fill
    Frame window[WINDOW]         # of one port
    uint32_t waiting             # frames in it
    uint32_t window_start        # `fill` before the first of them
    uint8_t* side                # headers of segments and fragments
    uint32_t side_fill
    uint64_t ports_version
    Ingress* ingress             # whose sockets this thread reads while traffic is sparse
    uint32_t joined              # so many of them are in this thread's epoll set
    uint32_t pressure            # heavy turns of late while it does
    uint64_t joint_turns         # turns in which it did
    uint64_t last_number         # generation of the remembered route
    uint64_t last_high
    uint64_t last_low
    uint32_t last_route
    uint8_t last_family
    int tap                      # TAP for tunnel-GSO transmit, -1: cut superframes here
    uint8_t tap_mac[6]
    Link tap_link[TAP_LINKS]     # where the TAP's frames can go
    uint32_t tap_links
    uint64_t neighbours          # answers to ARP requests and neighbour solicitations
    uint64_t injected            # superframes sent through it

cdef int egress_open(Egress* e) noexcept nogil
cdef void egress_close(Egress* e) noexcept nogil
cdef void egress_flush(Egress* e) noexcept nogil
cdef uint8_t* side_room(Egress* e, uint32_t size) noexcept nogil
