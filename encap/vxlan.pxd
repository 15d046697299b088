from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    VXLAN_HEADER = 8
    ETHERNET_HEADER = 14
    ENCAPSULATION = 22           # what stands between the UDP header and the inner IP packet
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86DD

# PASS or why the VXLAN header at `data` is refused. `vni` is a host integer; `strict` is Linux's rule for reserved bits.
cdef int check_header(const uint8_t* data, uint32_t length, uint32_t vni, bint strict) noexcept nogil
# PASS or why the inner Ethernet header at `data` is refused: destination must be `own`, source `peer` (6 bytes each);
# `peer` NULL: any unicast source but `own`.
cdef int check_ethernet(const uint8_t* data, const uint8_t* own, const uint8_t* peer) noexcept nogil
# VXLAN and inner Ethernet header, 22 bytes, ethertype IPv4.
cdef void build_header(uint8_t* out, uint32_t vni, const uint8_t* destination, const uint8_t* source) noexcept nogil
# The 22 bytes of `header` in front of a packet of the given IP family.
cdef void stamp(uint8_t* out, const uint8_t* header, uint8_t family) noexcept nogil
