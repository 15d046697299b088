from libc.stdint cimport uint8_t, uint32_t
from encap.inner cimport Inner
from fabric.forward.batch cimport Egress
from fabric.forward.snapshot cimport Generation, PortEntry
from tun.split cimport Superframe
from tun.vnet cimport VnetHeader

cdef void to_port(Egress* e, const Generation* g, uint32_t position, uint32_t target, uint8_t* frame, Inner* inner,
                  const VnetHeader* vnet) noexcept nogil
cdef void write_segments(Egress* e, const PortEntry* port, uint8_t* frame, const Superframe* s) noexcept nogil
cdef void answer(Egress* e, const Generation* g, uint32_t position, const uint8_t* frame, const Inner* inner, int kind,
                 uint32_t mtu) noexcept nogil
# Bytes of the largest IP packet a frame becomes: itself, or one segment of a superframe.
cdef uint32_t frame_size(const Inner* inner, const uint8_t* frame, const VnetHeader* vnet) noexcept nogil
