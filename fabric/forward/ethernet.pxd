from libc.stdint cimport uint8_t, uint32_t
from encap.inner cimport Inner
from fabric.forward.batch cimport Egress
from fabric.forward.lane cimport Lane
from fabric.forward.snapshot cimport PortEntry
from tun.vnet cimport VnetHeader

# A frame that a TAP port sent: True when an IP packet follows the Ethernet header, to which `vnet` then refers.
cdef bint unwrap(Egress* e, const PortEntry* port, const uint8_t* frame, uint32_t length,
                 VnetHeader* vnet) noexcept nogil
cdef void answer_arp(Egress* e, const PortEntry* port, const uint8_t* frame, uint32_t length) noexcept nogil
cdef void answer_solicitation(Egress* e, const PortEntry* port, const uint8_t* frame, uint32_t length) noexcept nogil
cdef bint is_solicitation(const uint8_t* frame, uint32_t length) noexcept nogil
cdef void write_answer(Egress* e, const PortEntry* port, const uint8_t* frame, uint32_t length) noexcept nogil
# An IP packet from the underlay to a TAP port, with `gso_size` as for the merger; False: lost and counted. A partial
# checksum is left to the kernel where the port's offload is on.
cdef bint deliver(Lane* lane, const PortEntry* port, uint8_t* packet, const Inner* inner, uint32_t gso_size) noexcept nogil
