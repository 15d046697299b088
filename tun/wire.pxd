# Big-endian words of a frame. Inline here because a call into another compiled module costs more than the load.
from libc.stdint cimport uint8_t, uint32_t

cdef inline uint32_t load16(const uint8_t* data) noexcept nogil:
    return (<uint32_t>data[0] << 8) | data[1]

cdef inline uint32_t load32(const uint8_t* data) noexcept nogil:
    return (load16(data) << 16) | load16(data + 2)

cdef inline void store16(uint8_t* data, uint32_t value) noexcept nogil:
    data[0] = (value >> 8) & 0xFF
    data[1] = value & 0xFF
