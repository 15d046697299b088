from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from encap.inner cimport Inner

cdef enum:
    ICMP_BUFFER = 1280

cdef enum IcmpError:
    NET_UNREACHABLE = 1
    HOST_UNREACHABLE = 2
    PACKET_TOO_BIG = 3
    TIME_EXCEEDED = 4
    PROHIBITED = 5               # by a policy

# Token buckets, one per port (hashed): at most `ICMP_RATE` errors a second and a burst of the same.
cdef enum:
    ICMP_RATE = 100
    ICMP_BUCKETS = 64

cdef struct IcmpLimiter:
    uint64_t stamp[ICMP_BUCKETS]     # ns, monotonic
    uint32_t tokens[ICMP_BUCKETS]
    uint64_t sent
    uint64_t limited

cdef bint allow(IcmpLimiter* limiter, uint32_t port, uint64_t now) noexcept nogil
# Length of the ICMP error about `packet` written to out (ICMP_BUFFER bytes), 0 when none may be sent.
cdef uint32_t build_error(uint8_t* out, const uint8_t* packet, const Inner* inner, int kind, uint32_t mtu,
                          uint32_t source4, uint64_t source_high6, uint64_t source_low6) noexcept nogil
cdef bint answerable(const uint8_t* packet, const Inner* inner) noexcept nogil
cdef uint32_t build4(uint8_t* out, const uint8_t* packet, const Inner* inner, int kind, uint32_t mtu,
                     uint32_t source) noexcept nogil
cdef uint32_t build6(uint8_t* out, const uint8_t* packet, const Inner* inner, int kind, uint32_t mtu,
                     uint64_t high, uint64_t low) noexcept nogil
