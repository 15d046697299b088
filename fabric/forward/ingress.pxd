from libc.stdint cimport uint8_t, uint32_t, uint64_t
from encap.inner cimport Inner
from encap.receive cimport RECEIVE_BUFFERS, Message, Receiver
from encap.vtep cimport PEER_SLOTS, Carried, Vtep
from fabric.forward.lane cimport Lane
from fabric.forward.snapshot cimport Generation, PortEntry
from tun.merge cimport Merger

cdef enum:
    NO_TARGET = 0x7FFFFFFF       # no port is known yet
    ARRIVALS = 8                 # datagrams examined before the first of them is forwarded

# A datagram between its checks and its way.
cdef struct Arrival:
    Inner inner
    const Message* message       # that it came in
    uint8_t* datagram
    uint8_t* packet              # IP header
    uint32_t length              # of the datagram
    uint32_t gso_size            # of a UDP superframe, else 0
    uint32_t position            # of the sender's VTEP
    uint64_t hash                # of the packet's flow, or 0
    uint8_t form

cdef struct Ingress:
    Lane lane
    Receiver receiver
    Merger merger
    Message messages_at[RECEIVE_BUFFERS]
    Arrival arrivals[ARRIVALS]   # examined, not yet forwarded
    uint32_t waiting             # so many of them
    uint64_t parks               # wake-ups of the parked thread
    uint32_t watched             # sockets this thread reads: the first so many of `Shared`
    uint32_t drops_seen[4]       # per socket, SO_RXQ_OVFL as last reported
    uint64_t datagrams           # received, whatever became of them
    uint64_t messages
    uint32_t turn                # socket that is read first: a flooded one does not starve the others
    # what the last datagram was checked against: a run of one flow is looked up once
    uint64_t last_number
    uint32_t last_vtep
    uint8_t last_family
    uint64_t last_src_high
    uint64_t last_src_low
    uint64_t last_dst_high
    uint64_t last_dst_low
    uint32_t last_target
    uint32_t target              # port position of the datagram at hand
    Carried carried[PEER_SLOTS]  # by the VTEP's slot: packets handed over; resident as they are used

cdef int ingress_open(Ingress* s) noexcept nogil
cdef void ingress_close(Ingress* s) noexcept nogil
cdef void ingress_run(Ingress* s) noexcept nogil
# One turn of this thread's work, by whoever does it now; datagrams received.
cdef uint64_t ingress_turn(Ingress* s) noexcept nogil
cdef void watch_wake(Ingress* s) noexcept nogil
cdef void watch_sockets(Ingress* s) noexcept nogil
cdef bint drain_sockets(Ingress* s, const Generation* g) noexcept nogil
cdef void take_message(Ingress* s, const Generation* g, const Message* m, uint8_t form) noexcept nogil
# Reads every socket once while there is no generation to judge by.
cdef void refuse_all(Ingress* s) noexcept nogil
cdef void refuse_message(Ingress* s, const Message* m, uint8_t form, int reason) noexcept nogil
cdef void refuse(Ingress* s, const Arrival* a, int reason) noexcept nogil
# Forward what waits; before the messages' memory is used again.
cdef void settle(Ingress* s, const Generation* g) noexcept nogil
cdef void settle_one(Ingress* s, const Generation* g, Arrival* a) noexcept nogil
cdef int forward(Ingress* s, const Generation* g, Arrival* a) noexcept nogil
cdef int hand_over(Ingress* s, const Generation* g, uint32_t position, uint8_t* packet, Inner* inner,
                   uint32_t gso_size) noexcept nogil
cdef uint32_t jumbo_gso_size(const PortEntry* port, const uint8_t* packet, const Inner* inner) noexcept nogil
cdef void answer_peer(Ingress* s, const Generation* g, const Vtep* vtep, const uint8_t* packet, const Inner* inner,
                      int kind, uint32_t mtu) noexcept nogil
