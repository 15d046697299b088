from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef uint16_t fold(uint64_t total) noexcept nogil
cdef uint64_t header_sum(const uint8_t* data, uint32_t length) noexcept nogil
cdef uint16_t update16(uint16_t check, uint16_t old, uint16_t new) noexcept nogil
