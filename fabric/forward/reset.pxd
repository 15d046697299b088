from libc.stdint cimport uint8_t, uint32_t
from encap.inner cimport Inner

cdef enum:
    RESET_BUFFER = 60            # the longest: an IPv6 and a TCP header

# Length of the RST about the TCP packet `packet` written to out (RESET_BUFFER bytes), 0 when none may be sent. `back`:
# to its sender, in the name of its receiver; else the other way round.
cdef uint32_t build_reset(uint8_t* out, const uint8_t* packet, const Inner* inner, bint back) noexcept nogil
cdef void write_back(uint8_t* segment, const uint8_t* tcp, uint32_t length) noexcept nogil
cdef void write_on(uint8_t* segment, const uint8_t* tcp) noexcept nogil
cdef uint32_t segment_length(const uint8_t* tcp, uint32_t bytes) noexcept nogil
