# Big-endian loads and stores on unaligned wire bytes, inlined into every module that cimports them.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<endian.h>" nogil:
    uint16_t be16toh(uint16_t)
    uint32_t be32toh(uint32_t)
    uint64_t be64toh(uint64_t)


cdef inline uint16_t load16(const uint8_t* p) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, p, 2)
    return be16toh(value)


cdef inline uint32_t load32(const uint8_t* p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return be32toh(value)


cdef inline uint64_t load64(const uint8_t* p) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, 8)
    return be64toh(value)


cdef inline void store16(uint8_t* p, uint16_t value) noexcept nogil:
    value = be16toh(value)
    memcpy(p, &value, 2)


cdef inline void store32(uint8_t* p, uint32_t value) noexcept nogil:
    value = be32toh(value)
    memcpy(p, &value, 4)


cdef inline void store64(uint8_t* p, uint64_t value) noexcept nogil:
    value = be64toh(value)
    memcpy(p, &value, 8)
