from libc.stdint cimport uint8_t, uint32_t, uint64_t
from encap.inner cimport Inner
from encap.receive cimport Message
from fabric.forward.batch cimport Egress
from fabric.forward.ingress cimport Ingress
from fabric.forward.lane cimport Lane, Shared
from fabric.forward.mutate cimport Corpus
from fabric.forward.snapshot cimport Snapshot
from tun.vnet cimport VnetHeader

# All drops of one half; `own` leaves out what the kernel refused to send.
cdef uint64_t refused(const Lane* lane, bint own) noexcept nogil
cdef int parse_case(uint64_t* state, const Corpus* corpus, uint8_t* scratch, uint64_t* reasons) noexcept nogil
cdef bint answers_hold(const uint8_t* packet, const Inner* inner) noexcept nogil
cdef int ingress_case(Ingress* s, uint64_t* state, const Corpus* corpus, uint8_t* scratch) noexcept nogil
cdef int feed_message(Ingress* s, Message* message, const uint8_t* payload) noexcept nogil
cdef int egress_case(Egress* e, uint64_t* state, const Corpus* corpus, uint8_t* scratch) noexcept nogil
cdef int feed_frame(Egress* e, uint32_t position, const uint8_t* frame, uint32_t length,
                    const VnetHeader* vnet) noexcept nogil

cdef class Probe:
    cdef Shared shared
    cdef Egress* egress
    cdef Ingress* ingress
    cdef Snapshot snapshot
    cdef void _open_lane(self, Lane* lane)
