from libc.stdint cimport uint8_t, uint32_t
from encap.inner cimport Inner
from encap.vtep cimport Vtep
from fabric.forward.batch cimport Egress, Frame
from fabric.forward.ingress cimport Ingress
from fabric.forward.lane cimport Lane
from fabric.forward.snapshot cimport Generation

# Drop a frame of port `position` with a `verdict` of `flow_track` that refuses it; `route` is its destination's. False,
# as `egress_frame` has it of a frame that is in no queue.
cdef bint refuse_frame(Egress* e, const Generation* g, uint32_t position, uint32_t route, uint32_t verdict,
                       Frame* frame) noexcept nogil
# Tell the ends of a flow about a packet from `vtep` that is refused by such a verdict.
cdef void answer_cut(Ingress* s, const Generation* g, const Vtep* vtep, uint32_t verdict, const uint8_t* packet,
                     const Inner* inner) noexcept nogil
cdef uint32_t build_back(uint8_t* out, const Generation* g, const uint8_t* packet, const Inner* inner) noexcept nogil
cdef void write_made(Lane* lane, const Generation* g, uint32_t position, uint8_t* packet, uint32_t length) noexcept nogil
cdef void send_on(Egress* e, const Generation* g, uint32_t position, uint32_t route, uint32_t verdict,
                  uint8_t* packet, uint32_t length, const Inner* inner) noexcept nogil
