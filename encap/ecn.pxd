from libc.stdint cimport uint8_t

cdef enum:
    ECN_MASK = 3
    ECN_CE = 3

# The inner ECN field after decapsulation, or -1 when the packet must be dropped (RFC 6040 section 4.2).
cdef int decapsulated_ecn(uint8_t outer_tos, uint8_t inner_tos) noexcept nogil
# Rewrites the ECN bits of an IPv4 or IPv6 header in place, checksum kept right.
cdef void set_ecn(uint8_t* packet, uint8_t ecn) noexcept nogil
