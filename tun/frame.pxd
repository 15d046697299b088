from libc.stdint cimport uint8_t, uint32_t

cdef enum Kind:
    KIND_OTHER = 0           # no transport flow whose order could matter
    KIND_ODD = 1             # belongs to a flow but can never be merged: fragment, options, extension headers, malformed
    KIND_FLOW = 2            # plain IPv4 or IPv6 header and a whole TCP or UDP header

cdef struct Parsed:
    uint32_t l4              # 0: unknown
    uint32_t header_length
    uint32_t payload_length
    uint8_t family
    uint8_t protocol
    uint8_t damaged          # the IPv4 header checksum is wrong

cdef Kind parse(const uint8_t* frame, uint32_t length, Parsed* p) noexcept nogil
# Non-zero hash of port, zone, family, addresses, ports and protocol of a KIND_FLOW frame.
cdef uint32_t flow_hash(int fd, uint32_t zone, const uint8_t* frame, const Parsed* p) noexcept nogil

# Used inside this module.
cdef Kind parse_ipv4(const uint8_t* frame, uint32_t length, Parsed* p) noexcept nogil
cdef Kind parse_ipv6(const uint8_t* frame, uint32_t length, Parsed* p) noexcept nogil
cdef Kind parse_l4(const uint8_t* frame, uint32_t length, Parsed* p) noexcept nogil
