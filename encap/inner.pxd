from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum Fragment:
    WHOLE = 0
    FIRST_FRAGMENT = 1
    LATER_FRAGMENT = 2

cdef enum:
    IPPROTO_ICMP = 1
    IPPROTO_TCP = 6
    IPPROTO_UDP = 17
    IPPROTO_DCCP = 33
    IPPROTO_ICMPV6 = 58
    IPPROTO_SCTP = 132
    IPPROTO_UDPLITE = 136
    MAX_EXTENSION_HEADERS = 8
    MAX_EXTENSION_BYTES = 256

# An inner packet's headers, decoded once. Offsets are bytes from the start of the IP header.
cdef struct Inner:
    uint32_t length       # of the packet by its own header, never more than the bytes received
    uint16_t l4           # transport header (or payload of a later fragment)
    uint8_t family        # 4 or 6
    uint8_t protocol      # upper-layer protocol
    uint8_t tos           # DSCP and ECN
    uint8_t ttl
    uint8_t fragment      # Fragment
    uint8_t dont_fragment
    uint16_t sport        # 0 where there is none
    uint16_t dport
    uint32_t fragment_id  # of a fragment
    uint32_t hash         # of addresses, protocol and ports (of a fragment: without ports)
    uint64_t src_high     # IPv4 addresses are in *_low, host order, *_high is 0
    uint64_t src_low
    uint64_t dst_high
    uint64_t dst_low

cdef uint32_t mix(uint64_t a, uint64_t b) noexcept nogil
# PASS or the DropReason.
cdef int parse(const uint8_t* packet, uint32_t captured, Inner* inner) noexcept nogil
cdef int parse4(const uint8_t* packet, uint32_t captured, Inner* inner) noexcept nogil
cdef int parse6(const uint8_t* packet, uint32_t captured, Inner* inner) noexcept nogil
cdef int walk_extensions(const uint8_t* packet, Inner* inner, uint8_t next_header) noexcept nogil
cdef int parse_transport(const uint8_t* packet, Inner* inner) noexcept nogil
cdef bint unicast4(uint32_t address) noexcept nogil
cdef bint unicast6(uint64_t high, uint64_t low) noexcept nogil
# Lowers TTL or hop limit by one with the checksum kept right (RFC 1624); the caller has checked that it is above 1.
cdef void decrement_ttl(uint8_t* packet) noexcept nogil
