from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from encap.inner cimport Inner

cdef enum:
    SECRET_WORDS = 11
    NO_QUOTE = 2

# Both ends of a flow, the lower (address, port) first: the two directions have one key.
cdef struct FlowKey:
    uint64_t high[2]      # IPv4 addresses are in `low`, host order
    uint64_t low[2]
    uint16_t port[2]      # of an ICMP echo see echo_ports; 0 where there is none
    uint8_t protocol
    uint8_t family

# Key of a packet that is no later fragment; the side (0 or 1) that sent it.
cdef uint32_t flow_key(const Inner* inner, const uint8_t* packet, FlowKey* key) noexcept nogil
cdef uint32_t order_ends(FlowKey* key, uint64_t src_high, uint64_t src_low, uint16_t sport, uint64_t dst_high,
                         uint64_t dst_low, uint16_t dport) noexcept nogil
cdef bint is_echo(uint8_t family, uint8_t protocol, uint8_t kind) noexcept nogil
cdef bint is_echo_reply(uint8_t family, uint8_t protocol, uint8_t kind) noexcept nogil
# Ports of an echo: its identifier where it is asked, one more where it is answered. 0 for other ICMP.
cdef void echo_ports(uint8_t family, uint8_t protocol, const uint8_t* l4, uint32_t* sport,
                     uint32_t* dport) noexcept nogil
cdef bint is_error(const Inner* inner, const uint8_t* packet) noexcept nogil
# Key of the packet that an ICMP error quotes; the side that sent it, or NO_QUOTE.
cdef uint32_t quoted_key(const Inner* inner, const uint8_t* packet, FlowKey* key) noexcept nogil
cdef uint64_t flow_hash(const FlowKey* key, const uint64_t* secret) noexcept nogil
