from libc.stdint cimport uint8_t, uint32_t
from encap.inner cimport Inner
from encap.vtep cimport Vtep
from fabric.forward.batch cimport Egress
from fabric.forward.lane cimport Lane
from fabric.forward.snapshot cimport Generation
from tun.split cimport Superframe
from tun.vnet cimport VnetHeader

cdef enum:
    MADE_BUFFER = 1302           # ENCAPSULATION and the longest packet that is made here

# True when memory of the frame is queued and must stay until the flush.
cdef bint to_tunnel(Egress* e, const Generation* g, uint32_t position, const Vtep* vtep, uint8_t* frame, Inner* inner,
                    const VnetHeader* vnet) noexcept nogil
cdef bint cut_superframe(Egress* e, const Vtep* vtep, Inner* inner, Superframe* s) noexcept nogil
cdef bint send_whole(Egress* e, const Vtep* vtep, uint8_t* frame, Inner* inner) noexcept nogil
cdef bint send_fragments(Egress* e, const Vtep* vtep, uint8_t* frame, Inner* inner) noexcept nogil
cdef uint32_t fragment_header(uint8_t* out, const uint8_t* frame, uint32_t header, bint first) noexcept nogil
# A packet of our own making to a VTEP; ENCAPSULATION bytes of room are in front of it. Where we do not send to that VTEP,
# the host does, whose kernel gets it through the node port. `inner` is of the packet that it answers.
cdef void send_made(Lane* lane, const Generation* g, const Vtep* vtep, uint8_t* packet, uint32_t length,
                    const Inner* inner) noexcept nogil
