from libc.stdint cimport uint8_t, uint32_t
from encap.inner cimport Inner
from encap.vtep cimport Vtep
from fabric.forward.batch cimport Egress, Frame
from fabric.forward.lane cimport PortCount
from fabric.forward.snapshot cimport Generation
from tun.vnet cimport VnetHeader

cdef enum:
    BUDGET = 64                  # frames of one port before the next gets its turn
    EVENTS = 64
    SMALL = 2048                 # bytes: anything longer is forwarded at once, while it is in cache

cdef void egress_run(Egress* e) noexcept nogil
cdef void watch_ports(Egress* e, const Generation* g) noexcept nogil
cdef void drain_port(Egress* e, const Generation* g, uint32_t position) noexcept nogil
cdef void read_port(Egress* e, const Generation* g, uint32_t position, PortCount* count) noexcept nogil
cdef uint32_t route_of(Egress* e, const Generation* g, const Inner* inner) noexcept nogil
# Parse and check a frame, and look ahead for its flow; False when it is dropped.
cdef bint examine(Egress* e, const Generation* g, uint32_t position, uint8_t* data, uint32_t length,
                  Frame* frame) noexcept nogil
# Find a checked frame's way; True when its memory is still referenced by a queue.
cdef bint forward(Egress* e, const Generation* g, uint32_t position, Frame* frame) noexcept nogil
# Forward what was read from this port, in order.
cdef void forward_waiting(Egress* e, const Generation* g, uint32_t position) noexcept nogil
# Both for a single frame. True when memory of the frame is still referenced by a queue.
cdef bint egress_frame(Egress* e, const Generation* g, uint32_t position, uint8_t* data, uint32_t length,
                       const VnetHeader* vnet) noexcept nogil
cdef bint no_route(Egress* e, const Generation* g, uint32_t position, Frame* frame) noexcept nogil
cdef bint to_host(Egress* e, const Generation* g, uint32_t position, const Vtep* vtep, Frame* frame) noexcept nogil
cdef int check_pod(const Generation* g, uint32_t position, const Inner* inner) noexcept nogil
cdef bint is_unicast(const Inner* inner) noexcept nogil
