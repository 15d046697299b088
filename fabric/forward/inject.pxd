from libc.stdint cimport uint8_t, uint16_t, uint32_t
from encap.inner cimport Inner
from encap.vtep cimport Vtep
from fabric.forward.batch cimport Egress
from fabric.forward.snapshot cimport Generation
from tun.split cimport Superframe
from tun.vnet cimport VnetHeader

cdef enum:
    TUNNEL_VNET = 24             # struct virtio_net_hdr_v1_hash_tunnel
    VNET_UDP_TUNNEL_CSUM = 8
    GSO_UDP_TUNNEL_IPV4 = 0x20
    GSO_UDP_TUNNEL_IPV6 = 0x40
    INJECT_HEADER = 84           # Ethernet, IPv6, UDP, VXLAN, Ethernet at most

# True when the superframe was handed to the kernel whole.
cdef bint inject_superframe(Egress* e, const Generation* g, const Vtep* vtep, uint8_t* frame, const Inner* inner,
                            const Superframe* s, const VnetHeader* vnet) noexcept nogil
cdef bint linked(const Egress* e, const Vtep* vtep) noexcept nogil
cdef uint32_t outer_ipv4(uint8_t* out, const Generation* g, const Vtep* vtep, uint32_t udp_length, uint8_t ecn,
                         uint16_t source_port) noexcept nogil
cdef uint32_t outer_ipv6(uint8_t* out, const Generation* g, const Vtep* vtep, uint32_t udp_length, uint8_t ecn,
                         uint16_t source_port) noexcept nogil
cdef void tunnel_vnet(uint8_t* out, uint32_t outer, const Inner* inner, const Superframe* s, const VnetHeader* vnet,
                      bint ipv6) noexcept nogil
