from libc.stdint cimport uint8_t, uint32_t
from encap.inner cimport Inner
from encap.receive cimport Message
from fabric.forward.ingress cimport Arrival, Ingress
from fabric.forward.snapshot cimport Generation

cdef int examine(Ingress* s, const Generation* g, Arrival* a) noexcept nogil
# PASS when source and destination are allowed; `last_target` is then the port position.
cdef int admit(Ingress* s, const Generation* g, uint32_t position, const Inner* inner) noexcept nogil
# Inner segment size when the whole message is one datagram holding a UDP superframe, else 0.
cdef uint32_t inner_superframe(const Message* m, uint8_t form) noexcept nogil
