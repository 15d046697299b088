from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "arpa/inet.h" nogil:
    uint16_t htons(uint16_t)
    uint16_t ntohs(uint16_t)

cdef enum Verdict:
    CHECKSUM_BAD = 0
    CHECKSUM_GOOD = 1
    CHECKSUM_PARTIAL = 2
    CHECKSUM_NONE = 3        # UDP over IPv4 sent without a checksum (field 0)

# One's-complement sums are unfolded 64-bit accumulators of big-endian 16-bit words.
cdef uint16_t fold(uint64_t total) noexcept nogil
cdef uint64_t payload_sum(const uint8_t* data, uint32_t length) noexcept nogil
# Pseudo-header sum of the IPv4 or IPv6 packet at `packet` (family from its first nibble).
cdef uint64_t pseudo_sum(const uint8_t* packet, uint8_t protocol, uint32_t l4_length) noexcept nogil
# Finish a CHECKSUM_PARTIAL frame in place: sum from csum_start to the end, store at csum_start + csum_offset.
cdef void complete(uint8_t* packet, uint32_t length, uint32_t csum_start, uint32_t csum_offset) noexcept nogil
# State of the TCP/UDP checksum of an unfragmented packet whose transport header is at offset l4.
cdef Verdict verify(const uint8_t* packet, uint32_t length, uint32_t l4, uint8_t protocol) noexcept nogil

# Used inside this module: the same sums in native byte order (RFC 1071 section 2(B)).
cdef uint64_t native_sum(const uint8_t* data, uint64_t length) noexcept nogil
cdef uint64_t native_pseudo(const uint8_t* packet, uint8_t protocol, uint32_t l4_length) noexcept nogil
